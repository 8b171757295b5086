"""Redshift posteriors and drawn spectra of an encoder on a simulated sky that it never saw.

    python benchmarks/generation.py [--encoder nano] [--objects 2000] [--seed N] [--json]

Posteriors are the encoder's own, read from its decoder in one step: from photometry (fluxes and
size), then with the image, then with the spectrum. Galaxies of a fresh sky with the settings of the
encoder's training (recipe.toml or NAME.toml in its folder; a clear sky where there is none); stars
are left out, as in the paper. For each step:

    r2            of the posterior mean, with its bootstrap error
    pit           chi-square of ten bins of the probability integral transform against a flat one;
                  9 on average where the posteriors are calibrated, with deviation 4.2
    pit_by_code   the same of codes alone, wherever in its code a truth lies
    width         mean standard deviation of the posteriors: it should fall from step to step
    coverage      share of truths within the central 68 %
    outliers      share of means further than 0.15 (1 + z) from the truth

What limits them is measured beside: the same with as many random tokens of each object as training
showed at once, mean of three draws (`within_budget`), and linear and MLP probes with posteriors on
the mean vector of the same tokens, half of the galaxies to learn from: what the encoder knows and
its decoder does not say.

Drawn spectra: samples from photometry and image, decoded to flux, against the tokenizer's own
reconstruction of the true spectrum: median correlation in wavelength, beside that with the
reconstruction of another galaxy of the sky (chance).

stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray

from training import encoder, token_values
from training.densities import Densities, bin_edges, flatness
from training.encoder import Encoder
from training.features import Features
from training.generation import Streams, generate, observed, posterior
from training.modalities import STREAM
from training.observations import Observation
from training.posterior_probe import regress_densities
from training.probes import Kind, Split
from training.sampling import SamplingConfig
from training.surveys.simulated import SkyConfig, clear_sky, draw
from training.tokenizers.scalar import GridTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer

KEY = "tok_z"
STEPS = {"photometry": ("scalar",), "image": ("image",), "spectrum": ("spectrum",)}
NUM_RESAMPLES = 1000
PROBES: tuple[Kind, ...] = ("linear", "mlp")
NUM_DRAWN = 24  # galaxies whose spectra are drawn
NUM_SAMPLES = 4  # of each
NUM_SUBSETS = 3
BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="nano")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one each run")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    loaded = encoder.load(given.encoder)
    config, trained_seed, budget = training_sky(given.encoder, given.objects, seed)
    if seed == trained_seed:
        parser.error(f"seed {seed} is that of the training sky")
    seen = list(galaxies(config))
    report = {"encoder": given.encoder, "encoder_hash": loaded.hash, "seed": seed,
              "galaxies": len(seen), **measure(loaded, seen, budget, seed)}  # fmt: skip
    print(json.dumps(report, indent=None if given.json else 2))


def training_sky(name: str, num_objects: int, seed: int) -> tuple[SkyConfig, int | None, int]:
    """A sky as the encoder was trained on, every object with a spectrum, from another seed.

    Returns:
        The sky, the seed of the training sky, and the tokens that training showed at once.
    """
    folder = encoder.SHIPPED / name if (encoder.SHIPPED / name).is_dir() else Path(name)
    files = [file for file in (folder / f"{folder.name}.toml", folder / "recipe.toml")
             if file.is_file()]  # fmt: skip
    asked: dict[str, Any] = {"num_objects": num_objects, "seed": seed, "spectrum_fraction": 1.0}
    if not files:
        return clear_sky(**asked), None, 256
    recipe = tomllib.loads(files[0].read_text())
    sky = recipe.get("data", {}).get("sky", {})
    masking = recipe.get("encoder", {}).get("training", {}).get("masking", {})
    return SkyConfig(**{**sky, **asked}), sky.get("seed"), masking.get("num_input_tokens", 256)


def galaxies(config: SkyConfig) -> Iterator[Observation]:
    """All of a sky that are galaxies and have a redshift."""
    for seen in draw(config):
        if seen.catalogue.get("spectrum_class") == "GALAXY" and KEY in seen.scalars:
            yield seen


def measure(loaded: Encoder, seen: Sequence[Observation], budget: int, seed: int) -> dict[str, Any]:
    """All figures of one run."""
    truth = np.array([each.scalars[KEY] for each in seen])
    order = np.random.default_rng(0).permutation(len(seen))
    split = Split(np.sort(order[::2]), np.sort(order[1::2]))
    figures: dict[str, dict[str, Any]] = {"posterior": {}, "within_budget": {}}
    figures |= {f"probe_{kind}": {} for kind in PROBES}
    tokens = tokens_by_step(loaded, seen)
    for step, objects in tokens.items():
        figures["posterior"][step] = figures_of(densities_of(loaded, objects), truth)
        if max(sum(map(len, mine.values())) for mine in objects) > budget:
            fewer = marginal(loaded, objects, budget, seed)
            figures["within_budget"][step] = figures_of(fewer, truth)
        vectors = Features(vectors_of(loaded, objects))
        for kind in PROBES:
            found = regress_densities(kind, vectors, truth, split, seed=0)
            figures[f"probe_{kind}"][step] = figures_of(found, truth[split.test])
    return {
        "redshift_r2": {step: mine["r2"] for step, mine in figures["posterior"].items()},
        "redshift": figures,
        "drawn_spectra": drawn_spectra(loaded, seen[:NUM_DRAWN], tokens, seed),
    }


def tokens_by_step(loaded: Encoder, seen: Sequence[Observation]) -> dict[str, list[Streams]]:
    """What is known at each step: its streams and those before."""
    keys = tuple(loaded.transformer.config.domains_in)
    searchable = tuple(key for key in keys if STREAM[key].searchable)
    whole = observed(seen, loaded.codecs, searchable)
    steps: dict[str, list[Streams]] = {}
    fed: tuple[str, ...] = ()
    for step, kinds in STEPS.items():
        fed = (*fed, *kinds)
        steps[step] = [
            {key: mine[key] for key in mine if STREAM[key].kind in fed} for mine in whole
        ]
    return steps


def densities_of(loaded: Encoder, objects: Sequence[Streams]) -> Densities:
    codec = loaded.codecs[STREAM[KEY].codec]
    return posterior(loaded.transformer, objects, KEY, codec)


def marginal(loaded: Encoder, objects: Sequence[Streams], budget: int, seed: int) -> Densities:
    """Mean of some posteriors, each from as many random tokens as training showed at once.

    Numbers are always among them; the long streams are thinned.
    """
    rng, model = np.random.default_rng(seed), loaded.transformer
    layout, codec = model.layout, loaded.codecs[STREAM[KEY].codec]
    assert isinstance(codec, GridTokenizer)
    mass = np.zeros((len(objects), codec.num_codes))
    for start in range(0, len(objects), BATCH):
        some = objects[start : start + BATCH]
        length = min(budget, *(sum(map(len, mine.values())) for mine in some))
        for _ in range(NUM_SUBSETS):
            ids = torch.zeros(len(some), length, dtype=torch.long)
            positions = torch.zeros_like(ids)
            for row, mine in enumerate(some):
                line = torch.cat([codes + layout.id_start[key] for key, codes in mine.items()])
                where = torch.cat(
                    [torch.arange(len(codes)) + layout.start[key] for key, codes in mine.items()]
                )
                alone = np.concatenate([np.full(len(codes), len(codes) == 1)
                                        for codes in mine.values()])  # fmt: skip
                chosen = np.sort(np.argsort(rng.random(len(line)) - alone)[:length])
                ids[row], positions[row] = line[chosen], where[chosen]
            asked = torch.full((len(some), 1), layout.start[KEY])
            with torch.no_grad():
                valid = torch.ones_like(ids, dtype=torch.bool)
                encoded = model.encode_selected(ids, positions, valid)
                states = model.decode(encoded, asked, torch.ones_like(asked, dtype=torch.bool))
                scores = model.logits(KEY, states[:, 0])[:, : codec.num_codes]
            mass[start : start + len(some)] += scores.double().softmax(dim=1).numpy() / NUM_SUBSETS
    return Densities(bin_edges(codec), mass)


def vectors_of(loaded: Encoder, objects: Sequence[Streams]) -> Float32[ndarray, "object dim"]:
    """Mean vectors of the same tokens."""
    parts = []
    for start in range(0, len(objects), BATCH):
        with torch.no_grad():
            encoded = loaded.transformer.encode_packed(objects[start : start + BATCH])
            parts.append(loaded.transformer.pool(encoded).numpy())
    return np.concatenate(parts)


def figures_of(densities: Densities, truth: Float64[ndarray, " object"]) -> dict[str, Any]:
    """What the docstring of this file says."""
    mean, (low, high) = densities.mean(), densities.interval(0.68).T
    rng = np.random.default_rng(0)
    picks = rng.integers(len(truth), size=(NUM_RESAMPLES, len(truth)))
    return {
        "r2": r2(truth, mean),
        "r2_error": float(np.std([r2(truth[rows], mean[rows]) for rows in picks])),
        "r2_median": r2(truth, densities.median()),
        "pit": evenness(densities.pit(truth)),
        "pit_by_code": evenness(densities.pit(truth, by_bin=True)),
        "width": float(densities.deviation().mean()),
        "coverage": float(((truth >= low) & (truth <= high)).mean()),
        "outliers": float((np.abs(mean - truth) > 0.15 * (1 + truth)).mean()),
    }


def evenness(pit: Float64[ndarray, " object"]) -> dict[str, Any]:
    """Flatness of the transform, beside what is expected where posteriors are calibrated."""
    even = flatness(pit)
    error = float(np.sqrt(2 * even.degrees))
    return {**asdict(even), "expected": even.degrees, "error": error}


def r2(truth: Float64[ndarray, " n"], predicted: Float64[ndarray, " n"]) -> float:
    return float(1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def drawn_spectra(
    loaded: Encoder,
    seen: Sequence[Observation],
    tokens: Mapping[str, Sequence[Streams]],
    seed: int,
) -> dict[str, float] | None:
    """How like the true spectra those are that are drawn from photometry and image."""
    codec = loaded.codecs.get("spectrum")
    keys = [key for key in loaded.transformer.config.asked if STREAM[key].kind == "spectrum"]
    if not isinstance(codec, SpectrumTokenizer) or not keys:
        return None
    key, given = keys[0], tokens["image"][: len(seen)]
    config = SamplingConfig(num_samples=NUM_SAMPLES, seed=seed)
    drawn = generate(loaded.transformer, given, [key], config, codecs=loaded.codecs)[key]
    truth = torch.stack([mine[key] for mine in tokens["spectrum"][: len(seen)]])
    wavelength = np.arange(4000.0, 9000.0, 4.0)
    mean = token_values.spectra(drawn, codec, wavelength).mean(axis=1)
    expected = token_values.spectra(truth, codec, wavelength)
    other = np.roll(expected, 1, axis=0)
    return {
        "galaxies": float(len(seen)),
        "samples_of_each": float(NUM_SAMPLES),
        "correlation": correlation(mean, expected),
        "chance": correlation(other, expected),
        "level_ratio": float(np.median(mean.mean(axis=1) / expected.mean(axis=1))),
    }


def correlation(a: Float32[ndarray, "n w"], b: Float32[ndarray, "n w"]) -> float:
    """Median over objects of the correlation in wavelength."""
    return float(np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


if __name__ == "__main__":
    main()
