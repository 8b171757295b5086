"""Light for a search head that was made without it, so that nothing is trained again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from training.fibre_light import NUM_LIGHT
from training.pairing import ViewVectors
from training.search_head import SearchHead, look_axes


def adding_light(
    head: SearchHead, data: Mapping[str, ViewVectors], *, light_share: Mapping[str, float]
) -> SearchHead:
    """A head that gives light a share of its space, where it gave none or another one.

    Of a head that was made for vectors without light, what it made so far is turned to its
    principal components, and those of least length are left out to make room.

    Args:
        head: Made for the same vectors, or for these without light.
        data: Vectors with light, of the head's views, at least as many as its dimensions.
        light_share: As in SearchHeadConfig.

    Raises:
        ValueError: the head is for other vectors, or there are too few.
    """
    dim = next(iter(data.values())).vectors.shape[1]
    if head.config.light_share and head.config.dim == dim:
        other = SearchHead(replace(head.config, light_share=dict(light_share)))
        other.load_state_dict(head.state_dict())
        return other.eval()
    if head.config.light_share or head.config.kinds or head.config.dim != dim - NUM_LIGHT:
        raise ValueError(
            f"expected a search head for vectors of {dim - NUM_LIGHT} dimensions without light or "
            f"kinds, got {head.config}"
        )
    config = replace(head.config, dim=dim, light_share=dict(light_share))
    with torch.inference_mode():
        made = [
            head(torch.from_numpy(part.vectors[:, : config.num_inputs]), view, part.surveys or None)
            for view, part in data.items()
            if view in config.views
        ]
        axes = look_axes(made)[1][:, : config.num_outputs].float()
    lit = SearchHead(config)
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    turned = ["output"] if config.hidden else [f"inputs.{view}" for view in config.views]
    for layer in turned:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            state[name] = axes.T @ state[name]
    lit.load_state_dict(state | {"frequencies": lit.frequencies})
    return lit.eval()
