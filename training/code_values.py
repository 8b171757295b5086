"""Fresh token tables in which codes of near values begin alike.

To a fresh transformer all codes are equally far apart, and it has to learn from their company that
two of them stand for nearly the same. The tokenizer knows it from the start: its quantizer gives
each code a place. With `value_share` in the recipe a part of what is drawn for a code is a random
linear map of that place. AION-1 has no such thing; the default is to draw all codes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from training.modalities import STREAM
from training.tokenizers.field import FieldTokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.released import Codec
from training.tokenizers.scalar import GridTokenizer, ScalarTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.tokenizers.xp import MultiScalarTokenizer
from training.transformer import Draw, initialise
from training.transformer_config import Domain

NUM_WAVES = 6  # of the rank of a number: half a period, one, two, up to 16 over all codes

Values = Float[Tensor, "code value"]


def code_values(domains: Mapping[str, Domain], codecs: Mapping[str, Codec]) -> dict[str, Values]:
    """The place of each code of each stream, by stream; near codes have near places.

    Codes of images, masks and spectra are where their quantizer puts them; those of numbers, which
    are ranks, on waves of several lengths. Ellipses have none: their codes are of many kinds.

    Args:
        domains: Streams of a transformer.
        codecs: Their tokenizers by codec name.

    Returns:
        Of each value the mean over codes is 0 and the variance 1. Codes that the tokenizer does not
        make have zeros.
    """
    values = {}
    for key, domain in domains.items():
        places = _places(codecs[STREAM[key].codec])
        if places is not None:
            whole = torch.zeros(domain.vocabulary, places.shape[1])
            whole[: len(places)] = (places - places.mean(0)) / places.std(0, correction=0)
            values[key] = whole
    return values


def _places(codec: Codec) -> Values | None:
    if isinstance(codec, ImageTokenizer | FieldTokenizer | SpectrumTokenizer):
        return codec.quantizer.decode(torch.arange(codec.quantizer.num_codes))
    if isinstance(codec, ScalarTokenizer | GridTokenizer | MultiScalarTokenizer):
        rank = torch.linspace(0, math.pi, codec.num_codes)[:, None]
        phase = rank * 2.0 ** torch.arange(NUM_WAVES)
        return torch.cat([phase.sin(), phase.cos()], dim=1)
    return None


def drawn_by_value(values: Mapping[str, Values], share: float) -> Draw:
    """How `devices.build` draws parameters, so that tables of tokens know the places of codes.

    Both tables of a stream are drawn so, that of its tokens and that of its logits; all else is as
    `transformer.initialise` has it, and so is the size of what is drawn.

    Args:
        values: From `code_values`.
        share: Of the variance of a table that comes from places, from 0 to 1.
    """

    def draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
        initialise(name, parameter, generator)
        stream = _stream_of(name)
        if stream not in values:
            return
        places = values[stream]
        directions = torch.randn(places.shape[1], parameter.shape[1], generator=generator)
        placed = places @ directions * (parameter.std() / places.shape[1] ** 0.5)
        parameter.mul_(math.sqrt(1 - share)).add_(placed, alpha=math.sqrt(share))

    return draw


def _stream_of(name: str) -> str:
    """The stream that a table of codes belongs to; empty for all other parameters."""
    parts = name.split(".")
    is_table = parts[-2:] in (["token_emb", "weight"], ["to_logits", "weight"])
    return parts[1] if is_table else ""
