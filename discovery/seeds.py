"""From what a query names to one unit vector: find the seeds, take their vectors, add them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from discovery.positions import resolve_name
from discovery.query import Query
from discovery.results import Seed
from index.errors import NoObjectNear, OutsideFootprint, UnknownObject
from index.footprint import covers
from index.search import SMALLEST_SUM
from index.version import Version
from training.encoder import Encoder
from training.modalities import VIEWS
from training.observations import Observation
from training.surveys import reader

Vector = Float32[ndarray, " dim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What to search for, resolved against one version."""

    vector: Vector  # unit length
    view: str  # to search in
    seeds: tuple[Seed, ...]
    keys: Int64[ndarray, " seed"]  # objects that are seeds, not to be returned


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A seed with its vector in every view it has."""

    vectors: Mapping[str, Vector]
    object_id: str | None = None
    key: int = -1
    source: str | None = None
    separation_arcsec: float | None = None
    unlike: bool = False

    @property
    def what(self) -> str:
        return f"object {self.object_id}" if self.object_id else f"file {self.source}"


def resolve(query: Query, version: Version, encoder: Encoder | None) -> Aim:
    """Find the seeds of a query and add up their vectors.

    Args:
        query: What was asked.
        version: Where to find the seeds.
        encoder: Needed only for observations of one's own.

    Raises:
        UnknownObject: an id is not in this sky.
        OutsideFootprint: a position lies where this sky has no objects.
        NoObjectNear: no object lies within the query's radius of a position.
        ValueError: a file is not usable, seeds share no view, or their sum is zero.
    """
    candidates = [
        *_objects(version, query.like, unlike=False),
        *_positions(query, version),
        *_own(query, encoder),
        *_objects(version, query.unlike, unlike=True),
    ]
    for candidate in candidates:
        if not candidate.vectors:
            raise UnknownObject(f"{candidate.what} has no vector in any view")
    view = query.view or _shared_view(candidates)
    if view != "any" and view not in version.views:
        views = ", ".join(known for known in VIEWS if known in version.views)
        raise ValueError(f"this sky has no view {view!r}, it has {views}")
    total = np.zeros(0)
    seeds = []
    for candidate in candidates:
        own = view if view in candidate.vectors else next(iter(candidate.vectors))
        signed = candidate.vectors[own].astype(np.float64) * (-1 if candidate.unlike else 1)
        total = total + signed if total.size else signed
        seeds.append(
            Seed(
                view=own,
                object_id=candidate.object_id,
                source=candidate.source,
                separation_arcsec=candidate.separation_arcsec,
                unlike=candidate.unlike,
            )
        )
    length = float(np.linalg.norm(total))
    if length < SMALLEST_SUM:
        raise ValueError(
            "the seeds cancel out: what to be like minus what to be unlike is zero, so there is "
            "no direction to search in"
        )
    keys = [candidate.key for candidate in candidates if candidate.key >= 0]
    return Aim(
        vector=(total / length).astype(np.float32),
        view=view,
        seeds=tuple(seeds),
        keys=np.array(keys, dtype=np.int64),
    )


def _objects(version: Version, object_ids: Sequence[str], *, unlike: bool) -> list[_Candidate]:
    if not object_ids:
        return []
    keys = version.keys_of(object_ids)
    return [
        _Candidate(_vectors(version, int(key)), object_id, int(key), unlike=unlike)
        for key, object_id in zip(keys, object_ids, strict=True)
    ]


def _vectors(version: Version, key: int) -> dict[str, Vector]:
    """Vectors of an object by view, in the order a view is preferred."""
    one = np.array([key], dtype=np.int64)
    return {
        view: version.vectors(one, view)[0]
        for view in VIEWS
        if view in version.views and version.has_view(one, view)[0]
    }


def _positions(query: Query, version: Version) -> list[_Candidate]:
    candidates = []
    places = []
    if query.position is not None:
        assert not isinstance(query.position, str)  # read when the query was made
        places.append(query.position)
    if query.name is not None:
        places.append(resolve_name(query.name))
    for ra_deg, dec_deg in places:
        key, separation = nearest_object(version, ra_deg, dec_deg, query.radius_arcsec)
        candidates.append(
            _Candidate(
                _vectors(version, key),
                _id_of(version, key),
                key,
                separation_arcsec=separation,
            )
        )
    return candidates


def _id_of(version: Version, key: int) -> str:
    return str(version.objects(np.array([key]), ["object_id"])["object_id"][0].as_py())


def nearest_object(
    version: Version, ra_deg: float, dec_deg: float, radius_arcsec: float
) -> tuple[int, float]:
    """Key of the object nearest to a position, and its separation in arcsec.

    Raises:
        OutsideFootprint: nothing within the radius, and the position is outside the footprint.
        NoObjectNear: nothing within the radius, but the position is inside the footprint.
    """
    keys, separations = version.in_cone(ra_deg, dec_deg, radius_arcsec)
    if len(keys):
        nearest = int(np.argmin(separations))
        return int(keys[nearest]), float(separations[nearest])
    place = f"{ra_deg:.6f} {dec_deg:+.6f}"
    without = without_position(version)
    far = version.nearest(ra_deg, dec_deg)
    if far is None:
        raise OutsideFootprint(f"nothing can be found at {place}: {without}")
    object_id, separation = _id_of(version, far[0]), far[1]
    if in_footprint(version, ra_deg, dec_deg):
        raise NoObjectNear(
            f"no object within {radius_arcsec:g} arcsec of {place}; the nearest is {object_id}, "
            f"{angle_text(separation)} away; {without}"
        )
    raise OutsideFootprint(
        f"{place} is outside the footprint of this sky ({footprint_text(version)}); the nearest "
        f"object is {object_id}, {angle_text(separation)} away; {without}"
    )


def in_footprint(version: Version, ra_deg: float, dec_deg: float) -> bool:
    """Whether a position lies in the area that a version covers."""
    if version.moc is None:
        return False
    return bool(covers(version.moc, np.array([ra_deg]), np.array([dec_deg]))[0])


def footprint_text(version: Version) -> str:
    """How large the footprint is, in words."""
    if version.moc is None or version.moc.empty():
        return "empty"
    square_degrees = version.moc.sky_fraction * (4 * np.pi * u.sr).to_value(u.deg**2)
    return f"{square_degrees:.3g} square degrees"


def without_position(version: Version) -> str:
    """How many objects a search by position cannot reach, in words."""
    if not version.num_without_position:
        return f"all {version.num_objects:,} objects have a position"
    return (
        f"{version.num_without_position:,} of {version.num_objects:,} objects have no position "
        "and were left out"
    )


def angle_text(arcsec: float) -> str:
    """A separation in the unit that suits its size."""
    if arcsec < 120:
        return f"{arcsec:.1f} arcsec"
    return f"{arcsec / 60:.1f} arcmin" if arcsec < 7200 else f"{arcsec / 3600:.2f} deg"


def _own(query: Query, encoder: Encoder | None) -> list[_Candidate]:
    """Observations of one's own: every view that the encoder makes of each."""
    observations = list(query.observations)
    if query.file is not None:
        assert query.survey is not None  # checked when the query was made
        observations.append(read_file(Path(query.file), query.survey))
    if not observations:
        return []
    assert encoder is not None
    candidates = []
    for observation in observations:
        if not encoder.views(observation):
            raise ValueError(
                f"{observation.source}: this sky's encoder reads nothing of what it holds"
            )
        embedded = encoder.embed([observation])
        vectors = {
            view: encoder.search_vectors(embedded.vectors[row : row + 1], view, observation.survey)[
                0
            ]
            for row, view in enumerate(embedded.views)
        }
        candidates.append(_Candidate(vectors, source=observation.source or observation.object_id))
    return candidates


def read_file(file: Path, survey: str) -> Observation:
    """Read a file that holds one object.

    Raises:
        ValueError: the file is missing, unreadable (with the reader's reason), or holds several.
    """
    survey_reader = reader(survey)
    if not file.is_file():
        raise ValueError(f"{file} is not a file: expected one of survey {survey}")
    survey_reader.list_files(file)
    observations: list[Observation] = []
    for batch in survey_reader.read(file):
        for skipped in batch.skipped:
            raise ValueError(f"{skipped.file}: {skipped.reason}")
        observations.extend(batch.observations)
        if len(observations) > 1:
            raise ValueError(
                f"{file} holds several objects: expected one to look like; build a sky of the "
                "file and search by object id"
            )
    if not observations:
        raise ValueError(f"{file} holds no object")
    return observations[0]


def _shared_view(candidates: Sequence[_Candidate]) -> str:
    """The seeds' own view: image if all have one, else spectrum, xp, joint."""
    likes = [candidate for candidate in candidates if not candidate.unlike]
    for view in VIEWS:
        if all(view in candidate.vectors for candidate in likes):
            return view
    views = "; ".join(f"{one.what}: {', '.join(one.vectors)}" for one in likes)
    raise ValueError(f"the seeds have no view in common ({views}): say which view to search in")
