"""A probe that gives a distribution, not a number: how sure an encoder's output lets one be.

The head, of any kind that `probes` has, gives a mixture of normal distributions. Their widths are
then scaled by one factor, the most probable given the objects held back, since a head that fits its
training objects well is too sure of others. Few objects move that factor little.

Source: Bishop 1994, Mixture Density Networks (NCRG/94/004).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from training.densities import Densities
from training.features import Features
from training.probes import Kind, Split, check_features, check_targets, head_of, learn, predict

NUM_COMPONENTS = 5
NUM_BINS = 512
MARGIN = 0.25  # of the range of known targets, that bins reach beyond it
MIN_WIDTH = 1e-3  # of a component, in standard deviations of the targets
_FACTORS = np.geomspace(0.5, 4, 121)  # that widths are scaled by
HELD_BACK = 0.25  # of the training objects: more than to stop alone, widths are chosen by them
FACTOR_SPREAD = 0.1  # of its logarithm, before the objects held back are looked at


def regress_densities(
    kind: Kind,
    features: Features,
    target: Float64[ndarray, " object"],
    split: Split,
    *,
    seed: int,
    device: str = "cpu",
) -> Densities:
    """Distributions of a number for the test objects; NaN = not known, not learned from.

    They lie on equal bins over the range of the known targets and a quarter of it on either side;
    what is beyond counts in the outermost.

    Raises:
        ValueError: a target is infinite or the same for all, fewer than ten are known to learn
            from, or a feature is not finite.
    """
    check_features(features, split)
    check_targets(target[:, None], split)
    train = split.train[~np.isnan(target[split.train])]
    known = target[train]
    if len(known) < 10 or np.ptp(known) == 0:
        raise ValueError(
            f"expected ten or more different targets to learn from, got {len(known)} "
            f"from {known.min()} to {known.max()}"
        )
    mean, scale = known.mean(), known.std()
    scaled = torch.from_numpy((target - mean) / scale).float().to(device)

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        return -_log_likelihood(outputs, scaled[objects]).mean()

    make = head_of(kind, features, 3 * NUM_COMPONENTS)
    learnt = learn(make, features, train, loss, seed=seed, device=device, held_back=HELD_BACK)
    held = predict(learnt.head, features, learnt.held_back, device=device)
    truth = scaled[torch.from_numpy(learnt.held_back).to(device)].cpu()
    fits = [
        float(_log_likelihood(held, truth, factor=factor).sum())
        - math.log(factor) ** 2 / (2 * FACTOR_SPREAD**2)
        for factor in _FACTORS
    ]
    outputs = predict(learnt.head, features, split.test, device=device)
    margin = MARGIN * np.ptp(known)
    edges = np.linspace(known.min() - margin, known.max() + margin, NUM_BINS + 1)
    inner = torch.from_numpy((edges[1:-1] - mean) / scale)
    below = _cumulative(outputs.double(), inner, factor=float(_FACTORS[int(np.argmax(fits))]))
    mass = np.diff(np.pad(below.numpy(), ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))))
    return Densities(edges, np.maximum(mass, 0))


def _mixture(
    outputs: Float[Tensor, "object output"], factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, middles and widths of the components, (object, component) each."""
    weights, middles, widths = outputs.chunk(3, dim=1)
    widths = (torch.nn.functional.softplus(widths) + MIN_WIDTH) * factor
    return weights.log_softmax(dim=1), middles, widths


def _log_likelihood(
    outputs: Float[Tensor, "object output"], truth: Float[Tensor, " object"], *, factor: float = 1.0
) -> Float[Tensor, " object"]:
    weights, middles, widths = _mixture(outputs, factor)
    reach = (truth[:, None] - middles) / widths
    return (weights - widths.log() - reach**2 / 2).logsumexp(dim=1) - math.log(2 * math.pi) / 2


def _cumulative(
    outputs: Float[Tensor, "object output"], at: Float[Tensor, " edge"], *, factor: float
) -> Float[Tensor, "object edge"]:
    weights, middles, widths = _mixture(outputs, factor)
    reach = (at[None, None] - middles[..., None]) / widths[..., None]
    return (weights.exp()[..., None] * torch.special.ndtr(reach)).sum(dim=1)
