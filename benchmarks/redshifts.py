"""Redshift of held-out galaxies from fluxes, then with image, then with spectrum.

R2, and where there are posteriors how flat their probability integral transform is: chi-square of
ten bins, 9 +- 4.2 where it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np
from held_out import HeldOut
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from training import encoder as encoders
from training.densities import flatness
from training.features import Features
from training.modalities import STREAM
from training.observations import Observation
from training.probes import Split, regress
from training.surveys.simulated import SkyConfig, draw

KEY = "tok_z"
# Each with what came before it.
STEPS = {"photometry": ("scalar",), "image": ("image",), "spectrum": ("spectrum",)}
NUM_RESAMPLES = 1000

Figures = dict[str, dict[str, float]]


def of_posteriors(encoder: str, config: SkyConfig, num_objects: int) -> Figures:
    """R2 of the mean of the encoder's own posterior over galaxies of a sky, and its flatness.

    Raises:
        ValueError: the encoder has no stream of redshift.
    """
    generation = importlib.import_module("training.generation")
    loaded = encoders.load(encoder)
    keys = tuple(loaded.transformer.config.domains_in)
    if KEY not in keys:
        raise ValueError(f"the encoder has no stream {KEY}")
    seen = _galaxies(config, num_objects)
    truth = np.array([each.scalars[KEY] for each in seen])
    figures: Figures = {}
    fed: tuple[str, ...] = ()
    for step, kinds in STEPS.items():
        fed = (*fed, *kinds)
        streams = tuple(key for key in keys if STREAM[key].searchable and STREAM[key].kind in fed)
        tokens: list[Mapping[str, Tensor]] = generation.observed(seen, loaded.codecs, streams)
        densities = generation.posterior(
            loaded.transformer, tokens, KEY, loaded.codecs[STREAM[KEY].codec]
        )
        even = flatness(densities.pit(truth))
        figures[step] = _r2(truth, densities.mean()) | {"pit": even.chi_square}
    return figures


def of_probes(sky: HeldOut) -> Figures:
    """R2 of an MLP on fluxes, then on vectors too, half of the galaxies to learn from."""
    known = sky.known
    rows = np.flatnonzero((known["galaxy"][:, 0] > 0) & np.isfinite(known["redshift"][:, 0]))
    truth = known["redshift"][rows]
    flux, radius = known["flux"][rows], known["radius"][rows]
    magnitude = np.arcsinh(np.nan_to_num(flux, nan=0.0) * 10)
    parts = [magnitude, np.isfinite(flux), np.nan_to_num(radius)]
    order = np.random.default_rng(0).permutation(len(rows))
    split = Split(np.sort(order[::2]), np.sort(order[1::2]))
    figures: Figures = {}
    for step in STEPS:
        if step in sky.vectors:
            parts = [*parts, sky.vectors[step][rows]]
        elif step != "photometry":
            continue
        values = np.concatenate(parts, axis=1).astype(np.float32)
        predicted = regress("mlp", Features(values=values), truth, split, seed=0)
        figures[step] = _r2(truth[split.test, 0], predicted[:, 0])
    return figures


def _galaxies(config: SkyConfig, num: int) -> Sequence[Observation]:
    """The first galaxies of a sky that have a redshift."""
    found: list[Observation] = []
    for seen in draw(config):
        if seen.catalogue.get("spectrum_class") == "GALAXY" and KEY in seen.scalars:
            found.append(seen)
        if len(found) == num:
            break
    return found


def _r2(truth: Float64[ndarray, " n"], predicted: Float64[ndarray, " n"]) -> dict[str, float]:
    def of(rows: Int64[ndarray, " n"] | slice) -> float:
        spread = ((truth[rows] - truth[rows].mean()) ** 2).sum()
        return float(1 - ((truth[rows] - predicted[rows]) ** 2).sum() / spread)

    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(len(truth), size=len(truth))) for _ in range(NUM_RESAMPLES)]
    return {"r2": of(slice(None)), "error": float(np.std(drawn))}
