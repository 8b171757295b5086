"""How well an encoder finds what is alike: held-out skies, real pictures, image to spectrum.

    python benchmarks/retrieval.py [--encoder nano] [--head head|raw|centred|pca ...]
        [--objects 20000] [--seeds 3] [--cache FOLDER] [--data FOLDER] [--workers N] [--json]

Simulated skies have the paper's prevalence of classes: spirals 26 %, mergers 2 %, lenses 0.1 %,
these as ten disjoint sets put one after the other into the same background. Single objects ask, by
their images; a figure is the median over seeds of the mean nDCG@10 over queries, with a standard
error by bootstrap over queries, and the exact expectation of a random order as chance. AION-1 on
the real sky reaches 0.643, 0.384 and 0.015, which is not like for like: this sky is simulated.

Real pictures are ranked each set by itself: Galaxy Zoo 2 (spirals among 1,400), Space Warps (grade
2 and above among hard negatives), Galaxy Zoo's DECaLS examples (merging or tidal). Where they are
absent the figure is null, and `run.skipped` says why.

Image and spectrum of one object ask for each other among all objects; beside how often the other
is in the first ten stands an oracle that knows true griz fluxes and sees the image's with noise.

Redshift R2 of galaxies rises from fluxes to image to spectrum: by the mean of the encoder's own
posterior where it has a stream of redshift, else by an MLP on half of the galaxies. How flat the
probability integral transform of these posteriors is stands under `run.redshift_pit`.

Several heads are measured in one run: raw mean vectors; centred; centred principal components;
the encoder's own head. Means and components are those of the ranked vectors themselves, without
labels, as `skykin build` fits them. The document is of the first head named, `heads` has all.
Nothing is trained here on what is measured but the probes of redshift, on their own half.
Drawing and embedding 20,000 objects takes some minutes; with --cache it is done once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ranking
import redshifts
import torch
from held_out import FIRST_SEED, HeldOut, HeldOutSky, check_unseen, pictures, sky, sky_config
from ranking import Scores, Vectors

from training import encoder as encoders
from training.encoder import Encoder
from training.progress import progress_bars
from training.search_head import principal_components

HEADS = ("head", "raw", "centred", "pca")
CLASSES = ("spiral", "merger")
PICTURES = {"gz2": "gz2", "spacewarps": "spacewarps", "galaxyzoo_merging": "galaxyzoo"}
DIRECTIONS = ("image_to_spectrum", "spectrum_to_image")
NUM_REDSHIFTS = 400  # galaxies a seed at most: posteriors take all of the transformer

Transform = Callable[[Mapping[str, Vectors], str, str], Vectors]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="nano", help="a shipped name or a folder")
    parser.add_argument("--head", nargs="+", choices=HEADS, help="default: all there are")
    parser.add_argument("--objects", type=int, default=20_000, help="of each simulated sky")
    parser.add_argument("--seeds", type=int, default=3, help="how many skies")
    parser.add_argument("--cache", type=Path, help="keeps vectors; default: a folder that goes")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SKYKIN_TEST_DATA", "../shared/data")),
        help="folder of the real pictures; default: $SKYKIN_TEST_DATA, ../shared/data",
    )
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    if given.objects < 200 or given.seeds < 1:
        parser.error("expected 200 objects or more and at least one seed")
    with tempfile.TemporaryDirectory() as scratch, progress_bars() as show:
        report = measure(
            given.encoder,
            heads=given.head,
            num_objects=given.objects,
            seeds=range(FIRST_SEED, FIRST_SEED + given.seeds),
            cache=given.cache or Path(scratch),
            data=given.data,
            num_workers=given.workers,
            show=lambda what, share: show(what, share, 1),
        )
    if given.json:
        print(json.dumps(report))
    else:
        print_table(report)


def measure(
    name: str,
    *,
    heads: Sequence[str] | None,
    num_objects: int,
    seeds: range,
    cache: Path,
    data: Path,
    num_workers: int | None,
    show: Callable[[str, float], None],
) -> dict[str, Any]:
    """All figures of one encoder.

    Raises:
        ValueError: a head is asked for that the encoder has not, or it trained on these skies.
    """
    encoder = encoders.load(name)
    folder = encoders.SHIPPED / name if (encoders.SHIPPED / name).is_dir() else Path(name)
    check_unseen(folder, seeds)
    chosen = tuple(heads or [each for each in HEADS if each != "head" or encoder.head is not None])
    if "head" in chosen and encoder.head is None:
        raise ValueError(f"the encoder {name} has no search head: ask for --head pca")
    kept = cache / encoder.hash[:16]
    skies = [
        sky(name, seed, num_objects, kept, num_workers=num_workers, show=show) for seed in seeds
    ]
    skipped: dict[str, str] = {}
    sets: dict[str, HeldOut] = {}
    for figure, which in PICTURES.items():
        try:
            sets[figure] = pictures(name, which, data, kept, show=show)
        except FileNotFoundError as error:
            skipped[figure] = f"{error.filename} is not there"
    if "spectrum" not in skies[0].background.vectors:
        skipped["cross_modal"] = "the encoder makes no vector of these spectra"
    oracles = [ranking.oracle(each.background) for each in skies]
    by_head = {}
    for number, each in enumerate(chosen):
        by_head[each] = figures_of(transform_of(each, encoder), skies, sets, oracles, skipped)
        show("ranking", (number + 1) / len(chosen))
    r2, how = redshift_figures(name, skies, seeds, num_objects)
    first = by_head[chosen[0]]
    return {
        **first,
        "redshift_r2": {step: each["r2"] for step, each in r2.items()},
        "heads": by_head,
        "run": {
            "encoder": name,
            "encoder_hash": encoder.hash,
            "head_hash": encoder.head_hash,
            "head": chosen[0],
            "objects": num_objects,
            "seeds": list(seeds),
            "lenses": f"{skies[0].set_size} in each of ten sets",
            "redshift_by": how,
            "redshift_r2_error": {step: each["error"] for step, each in r2.items()},
            "redshift_pit": {step: each["pit"] for step, each in r2.items() if "pit" in each},
            "skipped": skipped,
        },
    }


def transform_of(head: str, encoder: Encoder) -> Transform:
    """From encoder vectors of a view and a survey to unit vectors; fitted on what is given."""

    def made(vectors: Mapping[str, Vectors], view: str, survey: str) -> Vectors:
        mine = vectors[view]
        if head == "head":
            return encoder.search_vectors(mine, view, survey)
        if head == "pca":
            with torch.inference_mode():
                return principal_components({view: mine})(torch.from_numpy(mine), view).numpy()
        if head == "centred":
            mine = mine - mine.mean(axis=0)
        return mine / np.maximum(np.linalg.norm(mine, axis=1, keepdims=True), 1e-12)

    return made


def figures_of(
    transform: Transform,
    skies: Sequence[HeldOutSky],
    sets: Mapping[str, HeldOut],
    oracles: Sequence[tuple[Scores, Scores]],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """What one head reaches: the retrieval part of the document."""
    classes: dict[str, list[Scores]] = {"spiral": [], "merger": [], "lens": []}
    cross: dict[str, list[Scores]] = {direction: [] for direction in DIRECTIONS}
    for each in skies:
        background, lenses = each.background, each.lenses
        # one transform for all lens sets: each of them is a thousandth of what it is fitted on
        together = np.concatenate([background.vectors["image"], lenses.vectors["image"]])
        images = transform({"image": together}, "image", background.survey)
        own, bent = images[: len(background)], images[len(background) :]
        first = np.concatenate([own, bent[: each.set_size]])
        for label in CLASSES:
            known = [background.labels[label], lenses.labels[label][: each.set_size]]
            classes[label].append(ranking.of_class(first, np.concatenate(known)))
        classes["lens"].append(ranking.of_lenses(own, bent, each))
        if "cross_modal" not in skipped:
            spectra = transform(background.vectors, "spectrum", background.survey)
            cross["image_to_spectrum"].append(ranking.across(own, spectra))
            cross["spectrum_to_image"].append(ranking.across(spectra, own))
    figures: dict[str, Any] = {
        "simulated": {label: ranking.figure(scores) for label, scores in classes.items()}
    }
    for name in PICTURES:
        figures[name] = None
        if name in sets:
            (is_class,) = sets[name].labels.values()
            vectors = transform(sets[name].vectors, "image", sets[name].survey)
            figures[name] = ranking.figure([ranking.of_class(vectors, is_class)])
    figures["cross_modal"] = None
    if "cross_modal" not in skipped:
        figures["cross_modal"] = {
            direction: {
                **ranking.figure(cross[direction]),
                "found@10": float(np.median([ranking.found(one) for one in cross[direction]])),
                "oracle_ndcg@10": ranking.figure([one[number] for one in oracles])["ndcg@10"],
                "oracle_found@10": float(
                    np.median([ranking.found(one[number]) for one in oracles])
                ),
            }
            for number, direction in enumerate(DIRECTIONS)
        }
    return figures


def redshift_figures(
    name: str, skies: Sequence[HeldOutSky], seeds: range, num_objects: int
) -> tuple[redshifts.Figures, str]:
    """Medians over seeds of R2, error and flatness, and what they were made by."""
    how = "the mean of the encoder's posterior"
    try:
        runs = [
            redshifts.of_posteriors(
                name, sky_config(seed, num_objects), min(NUM_REDSHIFTS, num_objects // 10)
            )
            for seed in seeds
        ]
    except ValueError as error:
        how = f"an MLP on half of the galaxies, for {error}"
        runs = [redshifts.of_probes(each.background) for each in skies]
    return {
        step: {key: float(np.median([run[step][key] for run in runs])) for key in figures}
        for step, figures in runs[0].items()
    }, how


def print_table(report: Mapping[str, Any]) -> None:
    """The figures of all heads, a line each, for people."""
    run = report["run"]
    print(
        f"{run['encoder']}, skies of {run['objects']:,} objects, seeds "
        f"{run['seeds'][0]} to {run['seeds'][-1]}; nDCG@10 +- error (chance)"
    )
    for head, figures in report["heads"].items():
        lines = {f"simulated {label}": one for label, one in figures["simulated"].items()}
        lines |= {name: figures[name] for name in PICTURES if figures[name]}
        lines |= figures["cross_modal"] or {}
        for what, one in lines.items():
            print(
                f"{head:8} {what:20} {one['ndcg@10']:.3f} +- {one['error']:.3f} "
                f"({one['chance']:.4f})"
                + (
                    f"  found@10 {one['found@10']:.3f}, oracle {one['oracle_found@10']:.3f}"
                    if "found@10" in one
                    else ""
                )
            )
    for step, r2 in report["redshift_r2"].items():
        pit = run["redshift_pit"].get(step)
        flat = "" if pit is None else f", PIT {pit:.0f} (9 +- 4.2 where flat)"
        print(f"redshift R2, {step}: {r2:.3f} +- {run['redshift_r2_error'][step]:.3f}{flat}")
    for what, why in run["skipped"].items():
        print(f"not measured: {what}, for {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
