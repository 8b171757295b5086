"""The paper's light evaluations: morphology, galaxy properties and redshift from a frozen encoder.

Morphology is the class of Galaxy10 DECaLS (`gz10_label`), judged by accuracy. Properties are
PROVABGS's, judged by R2 each:

    redshift       Z_HP
    log_mass       LOG_MSTAR, log10 of the stellar mass in suns; 0 or less = no fit
    age            TAGE_MW, mass-weighted age in Gyr
    log_z_mw       log10 Z_MW, mass-weighted metallicity
    log_ssfr       log10 AVG_SFR - LOG_MSTAR, AVG_SFR in suns a year; NaN where that is 0

(the paper does not say which of them it takes the logarithm of; the others are as in the file).
Redshift alone is that of any file that has one, stars and flagged redshifts left out.

A fifth of the objects is kept for the test, of each class where there are classes.

Source: arXiv 2510.17960; MultimodalUniverse scripts/desi_provabgs for the columns.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split

from training import features as frozen
from training import probes, published
from training.cohort import Cohort, Show, Values, gather
from training.encoder import Encoder
from training.features import Features
from training.observations import CatalogueValue, Skipped
from training.probes import Kind, Split
from training.surveys import multimodal_universe
from training.surveys.mmu_columns import GZ10_CLASSES

TEST_SHARE = 0.2
MIN_OBJECTS = 10
MIN_OF_CLASS = 5  # one of them is in the test
DEFAULT_REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is predicted, from what by default, and what the paper reports."""

    name: str
    targets: tuple[str, ...]
    measure: Literal["accuracy", "r2"]
    probe: Kind
    modalities: tuple[str, ...]
    label: str  # for people: what an object must have
    known: Callable[[Mapping[str, CatalogueValue]], Values]
    published: published.Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one target is predicted, over splits."""

    mean: float
    spread: float | None  # standard deviation over splits; None with one
    num_objects: int  # that have this target


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The result of one protocol."""

    protocol: str
    measure: str
    probe: Kind
    modalities: tuple[str, ...]
    encoder_hash: str
    seed: int
    repeats: int
    num_objects: int
    num_test: int
    scores: Mapping[str, Score]
    published: Mapping[str, Mapping[str, float]]  # model -> target -> score
    chance: Mapping[str, float]  # the largest class, or the mean, for all objects
    left_out: Mapping[str, int]  # why -> how many objects
    skipped: tuple[Skipped, ...]  # rows and files that could not be read

    def to_json(self) -> dict[str, object]:
        """The document of `skykin evaluate --protocol ... --json`."""
        return {
            "protocol": self.protocol,
            "probe": self.probe,
            "modalities": list(self.modalities),
            "encoder_hash": self.encoder_hash,
            "seed": self.seed,
            "splits": self.repeats,
            "objects": self.num_objects,
            "test": self.num_test,
            "scores": {
                target: {
                    self.measure: score.mean,
                    "spread": score.spread,
                    "chance": self.chance[target],
                    "objects": score.num_objects,
                    "published": {model: row[target] for model, row in self.published.items()},
                }
                for target, score in self.scores.items()
            },
            "left_out": dict(self.left_out),
            "skipped": [{"file": each.file, "reason": each.reason} for each in self.skipped],
        }


def measure(
    sources: Sequence[Path],
    protocol: str,
    encoder: Encoder,
    *,
    probe: str | None = None,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    repeats: int = DEFAULT_REPEATS,
    limit: int | None = None,
    show: Show | None = None,
) -> Measured:
    """Predict what a protocol asks for, on objects that the head has not seen.

    Args:
        sources: Multimodal Universe files or folders of them, of all the data sets that are
            needed: labels, images, spectra. Objects are matched across them.
        protocol: One of PROTOCOLS.
        encoder: What is measured.
        probe: The head; the protocol's own by default.
        modalities: What the encoder reads; the protocol's own by default.
        seed: Of the first split and head; the next ones have the next numbers.
        repeats: How many splits.
        limit: Take that many objects at most, drawn by the seed.
        show: Called with a stage, how much is done, and how much there is.

    Raises:
        ValueError: an unknown word, no such file, no label, or too few objects.
        OSError: token outputs cannot be written to the temporary folder.
    """
    asked = _protocol(protocol)
    kind = asked.probe if probe is None else probes.kind_of(probe)
    if repeats < 1:
        raise ValueError(f"expected 1 split or more, got {repeats}")
    if limit is not None and limit < MIN_OBJECTS:
        raise ValueError(f"expected a limit of {MIN_OBJECTS} objects or more, got {limit}")
    ordered = _in_order(asked.modalities if modalities is None else modalities)
    kinds = frozen.kinds_of(encoder, ordered)
    cohort = gather(_files(sources), kinds, asked.known, what=asked.label, show=show)
    cohort = _limited(_of_classes(cohort) if asked.measure == "accuracy" else cohort, limit, seed)
    targets = _targets(cohort, asked)
    with tempfile.TemporaryDirectory(prefix="skykin-") as folder:
        token_file = Path(folder) / "tokens.npy" if probes.pools(kind) else None
        made = frozen.embed(cohort.members, encoder, token_file=token_file, show=show)
        scores = []
        for number in range(repeats):
            scores.append(_one_split(asked, kind, made, targets, seed + number))
            if show is not None:
                show("learning", number + 1, repeats)
    rows = np.array(scores)  # (split, target)
    spread = rows.std(axis=0, ddof=1) if repeats > 1 else None
    return Measured(
        protocol=asked.name,
        measure=asked.measure,
        probe=kind,
        modalities=tuple(ordered),
        encoder_hash=encoder.hash,
        seed=seed,
        repeats=repeats,
        num_objects=len(cohort.members),
        num_test=_num_test(len(cohort.members)),
        scores={
            target: Score(
                mean=float(rows[:, column].mean()),
                spread=None if spread is None else float(spread[column]),
                num_objects=int((~np.isnan(targets[:, column])).sum()),
            )
            for column, target in enumerate(asked.targets)
        },
        published=published.rows_beside(asked.published, ordered, encoder.transformer.config),
        chance={
            target: _largest_share(targets[:, column]) if asked.measure == "accuracy" else 0.0
            for column, target in enumerate(asked.targets)
        },
        left_out=cohort.left_out,
        skipped=cohort.skipped,
    )


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _in_order(modalities: Sequence[str]) -> list[str]:
    """Each once, known ones in the order of the paper's tables."""
    known = [name for name in frozen.MODALITIES if name in modalities]
    return known + [name for name in modalities if name not in frozen.MODALITIES]


def _files(sources: Sequence[Path]) -> list[Path]:
    files = {
        file.absolute(): None
        for source in sources
        for file in multimodal_universe.list_files(source)
    }
    return sorted(files)


def _of_classes(cohort: Cohort) -> Cohort:
    """Only objects of classes that are large enough to be divided."""
    counts = Counter(member.values["class"] for member in cohort.members)
    kept = tuple(each for each in cohort.members if counts[each.values["class"]] >= MIN_OF_CLASS)
    left_out = dict(cohort.left_out)
    if len(kept) < len(cohort.members):
        reason = f"of a class of fewer than {MIN_OF_CLASS}"
        left_out[reason] = len(cohort.members) - len(kept)
    if cohort.members and len({each.values["class"] for each in kept}) < 2:
        raise ValueError(
            f"expected two classes or more of {MIN_OF_CLASS} objects or more, got "
            + ", ".join(f"{GZ10_CLASSES[int(c)]}: {num:,}" for c, num in sorted(counts.items()))
        )
    return Cohort(members=kept, left_out=left_out, skipped=cohort.skipped)


def _limited(cohort: Cohort, limit: int | None, seed: int) -> Cohort:
    num = len(cohort.members)
    if limit is None or num <= limit:
        return cohort
    chosen = np.sort(np.random.default_rng(seed).permutation(num)[:limit])
    members = tuple(cohort.members[number] for number in chosen.tolist())
    left_out = {**cohort.left_out, "beyond the limit": num - limit}
    cohort = Cohort(members=members, left_out=left_out, skipped=cohort.skipped)
    return _of_classes(cohort) if "class" in members[0].values else cohort


def _targets(cohort: Cohort, asked: Protocol) -> Float64[ndarray, "object target"]:
    if len(cohort.members) < MIN_OBJECTS:
        reasons = "; ".join(f"{num:,} with {why}" for why, num in cohort.left_out.items())
        raise ValueError(
            f"protocol {asked.name} needs {MIN_OBJECTS} objects or more that have "
            f"{asked.label} and all modalities, got {len(cohort.members):,}"
            + (f" ({reasons})" if reasons else "")
            + (f"; not read: {cohort.skipped[0].reason}" if cohort.skipped else "")
        )
    targets = np.array(
        [[each.values.get(name, np.nan) for name in asked.targets] for each in cohort.members]
    )
    for name, column in zip(asked.targets, targets.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known) < MIN_OBJECTS or known.min() == known.max():
            raise ValueError(
                f"{name} must be known and vary: {len(known):,} of {len(column):,} objects have "
                "one" + (f", and all the same ({known[0]:g})" if len(known) else "")
            )
    return targets


def _num_test(num: int) -> int:
    return math.ceil(TEST_SHARE * num)


def _one_split(
    asked: Protocol,
    probe: Kind,
    made: Features,
    targets: Float64[ndarray, "object target"],
    seed: int,
) -> list[float]:
    """Scores of the targets on one test."""
    stratify = targets[:, 0] if asked.measure == "accuracy" else None
    train, test = train_test_split(
        np.arange(len(targets)),
        test_size=max(_num_test(len(targets)), 2),
        random_state=seed,
        stratify=stratify,
    )
    split = Split(np.sort(train), np.sort(test))
    if asked.measure == "accuracy":
        _, classes = np.unique(targets[:, 0], return_inverse=True)
        classes = classes.astype(np.int64)
        predicted = probes.classify(probe, made, classes, split, seed=seed)
        return [float(accuracy_score(classes[split.test], predicted))]
    outputs = probes.regress(probe, made, targets, split, seed=seed)
    scores = []
    for column, name in enumerate(asked.targets):
        truth = targets[split.test, column]
        there = ~np.isnan(truth)
        if there.sum() < 2:
            raise ValueError(f"{name} is known of {there.sum()} objects of the test alone")
        scores.append(float(r2_score(truth[there], outputs[there, column])))
    return scores


def _largest_share(classes: Float64[ndarray, " object"]) -> float:
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


def _class_of(catalogue: Mapping[str, CatalogueValue]) -> Values:
    return _numbers({"class": catalogue.get("gz10_label")})


def _redshift_of(catalogue: Mapping[str, CatalogueValue]) -> Values:
    if catalogue.get("spectrum_class") == "STAR":
        return {}
    return _numbers({"redshift": catalogue.get("redshift")})


def _properties_of(catalogue: Mapping[str, CatalogueValue]) -> Values:
    found = _numbers(
        {
            "redshift": catalogue.get("redshift"),
            "log_mass": catalogue.get("log10_stellar_mass_msun"),
            "age": catalogue.get("age_gyr"),
            "z_mw": catalogue.get("stellar_metallicity"),
            "sfr": catalogue.get("sfr_msun_per_year"),
        }
    )
    log_mass = found.get("log_mass", 0.0)
    if log_mass <= 0:
        return {}
    z_mw, sfr = found.pop("z_mw", 0.0), found.pop("sfr", 0.0)
    if z_mw > 0:
        found["log_z_mw"] = math.log10(z_mw)
    if sfr > 0:
        found["log_ssfr"] = math.log10(sfr) - log_mass
    return found


def _numbers(values: Mapping[str, CatalogueValue]) -> Values:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


PROTOCOLS: dict[str, Protocol] = {
    "morphology": Protocol(
        name="morphology",
        targets=("class",),
        measure="accuracy",
        probe="mlp",
        modalities=("image",),
        label="gz10_label",
        known=_class_of,
        published=published.MORPHOLOGY,
    ),
    "properties": Protocol(
        name="properties",
        targets=published.PROPERTIES,
        measure="r2",
        probe="attentive-mlp",
        modalities=("photometry", "image"),
        label="PROVABGS properties",
        known=_properties_of,
        published=published.GALAXY_PROPERTIES,
    ),
    "redshift": Protocol(
        name="redshift",
        targets=("redshift",),
        measure="r2",
        probe="attentive-mlp",
        modalities=("photometry", "image"),
        label="trusted redshift",
        known=_redshift_of,
        published=published.REDSHIFT,
    ),
}
