"""Objects that several files hold, put together: what to measure with, and what is known of them.

Rows of any surveys are one object where their positions are within RADIUS_ARCSEC, or where they
have one object_id and no position speaks against it. Nothing of what a file holds is kept in
memory but where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from training.modalities import STREAM
from training.observations import CatalogueValue, Observation, Skipped
from training.surveys import multimodal_universe
from training.tokens import key_of_image, key_of_spectrum

RADIUS_ARCSEC = 1.0  # of AION-1's own cross-matches
SAME_ID_ARCSEC = 10.0  # two surveys may number their objects alike
# Of two images or spectra of an object the first in this order counts; display images come last.
SURVEY_ORDER = ("legacysurvey", "hsc", "desi", "sdss", "provabgs", "gaia", "gz10")
_ARCSEC = np.pi / 180 / 3600

Show = Callable[[str, int, int], None]
Values = dict[str, float]  # what is known of an object by name; a name may be absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One row of a file: where it is, and which streams it could give."""

    file: Path
    source_part: str
    survey: str
    object_id: str
    ra_deg: float  # NaN = not known
    dec_deg: float
    streams: frozenset[str]
    values: Values

    @classmethod
    def of(
        cls,
        file: Path,
        seen: Observation,
        *,
        streams: Iterable[str] = (),
        values: Values | None = None,
    ) -> Sighting:
        """What is known of one row of a file."""
        return cls(
            file=file,
            source_part=seen.source_part,
            survey=seen.survey,
            object_id=seen.object_id,
            ra_deg=np.nan if seen.ra_deg is None else seen.ra_deg,
            dec_deg=np.nan if seen.dec_deg is None else seen.dec_deg,
            streams=frozenset(streams),
            values={} if values is None else values,
        )

    def order(self) -> tuple[int, str, str, str]:
        """What decides which of an object's rows comes first; the order of files does not."""
        known = self.survey in SURVEY_ORDER
        place = SURVEY_ORDER.index(self.survey) if known else len(SURVEY_ORDER)
        return (place, self.object_id, self.source_part, str(self.file))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One object: where each of its streams is, and what is known of it."""

    object_id: str
    streams: Mapping[str, Sighting]
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Objects that have all that was asked for, in the order of their ids."""

    members: tuple[Member, ...]
    left_out: Mapping[str, int]  # why -> how many objects
    skipped: tuple[Skipped, ...]  # rows and files that could not be read


def gather(
    files: Sequence[Path],
    kinds: Mapping[str, tuple[str, ...]],
    known: Callable[[Mapping[str, CatalogueValue]], Values],
    *,
    what: str,
    show: Show | None = None,
) -> Cohort:
    """Read all files and put their objects together.

    Args:
        files: Multimodal Universe files, of several data sets.
        kinds: Modality -> the token streams that are of it; an object needs one of each.
        known: What the catalogue columns of a row say of its object, {} for nothing.
        what: The word for that, for people.
        show: Called with a stage, files read, and files in all.

    Raises:
        ValueError: no file could be read.
    """
    keys = tuple(key for streams in kinds.values() for key in streams)
    sightings: list[Sighting] = []
    skipped: list[Skipped] = []
    for number, file in enumerate(files):
        for batch in multimodal_universe.read(file):
            skipped += batch.skipped
            sightings += [_sighting(file, seen, keys, known) for seen in batch.observations]
        if show is not None:
            show("reading", number + 1, len(files))
    if not sightings:
        reason = f": {skipped[0].reason}" if skipped else ""
        raise ValueError(f"no object could be read from {len(files):,} files{reason}")
    members, left_out = [], Counter[str]()
    for rows in put_together(sightings):
        values = next((row.values for row in rows if row.values), {})
        streams = _choose(rows, kinds)
        lacking = [name for name, those in kinds.items() if not streams.keys() & set(those)]
        if not values:
            left_out[f"no {what}"] += 1
        elif lacking:
            left_out[f"no {' and no '.join(lacking)}"] += 1
        else:
            members.append(Member(object_id=rows[0].object_id, streams=streams, values=values))
    return Cohort(members=tuple(members), left_out=dict(left_out), skipped=tuple(skipped))


def put_together(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Rows of one object side by side, objects by their ids; the order given changes nothing."""
    rows = sorted(sightings, key=Sighting.order)
    ra, dec = (np.radians([getattr(row, name) for row in rows]) for name in ("ra_deg", "dec_deg"))
    vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    pairs = np.concatenate([_near(vectors), _same_id([row.object_id for row in rows], vectors)])
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows),) * 2)
    _, number = connected_components(graph, directed=False)
    objects: dict[int, list[Sighting]] = {}
    for row, of in zip(rows, number.tolist(), strict=True):
        objects.setdefault(of, []).append(row)
    return sorted(objects.values(), key=lambda mine: (mine[0].object_id, mine[0].order()))


def observations_of(
    members: Sequence[Member], show: Show | None = None
) -> Iterator[list[tuple[Observation, list[tuple[int, str]]]]]:
    """Read the rows that members need again, some at a time.

    Yields:
        Observations, each with the members (their numbers) that take streams (their keys) from it.
    """
    takers: dict[Path, dict[str, list[tuple[int, str]]]] = {}
    for number, member in enumerate(members):
        for key, row in member.streams.items():
            takers.setdefault(row.file, {}).setdefault(row.source_part, []).append((number, key))
    done, total = 0, sum(len(parts) for parts in takers.values())
    for file in sorted(takers):
        wanted = takers[file]
        for batch in multimodal_universe.read(file):
            found = [
                (seen, wanted[seen.source_part])
                for seen in batch.observations
                if seen.source_part in wanted
            ]
            if found:
                yield found
                done += len(found)
                if show is not None:
                    show("tokenizing", done, total)
    if done != total:
        raise ValueError(f"{total - done:,} of {total:,} rows are no longer in their files")


def _sighting(
    file: Path,
    seen: Observation,
    keys: tuple[str, ...],
    known: Callable[[Mapping[str, CatalogueValue]], Values],
) -> Sighting:
    streams = {key for key in keys if STREAM[key].kind == "scalar" and key in seen.scalars}
    streams |= {key for key in (key_of_image(keys, seen), key_of_spectrum(keys, seen)) if key}
    return Sighting.of(file, seen, streams=streams, values=known(seen.catalogue))


def _choose(rows: Sequence[Sighting], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, Sighting]:
    """For each stream the first row that has it; of images, and of spectra, one alone."""
    streams: dict[str, Sighting] = {}
    for those in kinds.values():
        alone = any(STREAM[key].kind in ("image", "spectrum") for key in those)
        for row in rows:
            mine = [key for key in those if key in row.streams]
            streams |= {key: row for key in mine if key not in streams}
            if alone and mine:
                break
    return streams


def _near(vectors: Float64[ndarray, "row 3"]) -> Int64[ndarray, "pair 2"]:
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    chord = 2 * np.sin(RADIUS_ARCSEC * _ARCSEC / 2)
    pairs = cKDTree(vectors[known]).query_pairs(chord, output_type="ndarray")
    return known[pairs.reshape(-1, 2)].astype(np.int64)


def _same_id(ids: Sequence[str], vectors: Float64[ndarray, "row 3"]) -> Int64[ndarray, "pair 2"]:
    """Each row with the first of its id, unless both have positions and these are apart."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(each, row), row) for row, each in enumerate(ids)]
    pairs_of = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    chord = np.linalg.norm(vectors[pairs_of[:, 0]] - vectors[pairs_of[:, 1]], axis=1)
    apart = chord > 2 * np.sin(SAME_ID_ARCSEC * _ARCSEC / 2)  # False for NaN
    return pairs_of[~apart]
