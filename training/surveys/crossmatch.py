"""The same object in two surveys: reciprocal nearest neighbours on the sky.

Two rows are one object where each is the nearest of the other's list to it, and both lie within a
radius (1 arcsec, as in AION-1: arXiv 2510.17960). A list with proper motions is moved to the
epoch of each row of the other list first: Gaia's positions are of 2016.0, and a star that moves
by 100 mas a year is an arcsecond from where a survey of 2006 saw it.

`crossmatch` works in memory, a million rows on a side; crossmatch_hats.py gives the same pairs of
HATS catalogues of any size. Matches are kept as a Parquet table (`write_matches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.spatial import cKDTree

RADIUS_ARCSEC = 1.0
MAX_RADIUS_ARCSEC = 3600.0  # far beyond any match; keeps chords and arcs the same to 1e-5
GAIA_DR3_EPOCH_YEAR = 2016.0
MATCH_FIELDS = {
    "left_id": pa.string(),
    "right_id": pa.string(),
    "separation_arcsec": pa.float64(),
}
_ARCSEC = np.pi / 180 / 3600  # radian
_BLOCK_PAIRS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Sources of one survey, one entry each; NaN = not known.

    Raises:
        ValueError: a position is off the sky, or a proper motion is half given.
    """

    ra_deg: Float64[ndarray, " n"]  # ICRS, [0, 360)
    dec_deg: Float64[ndarray, " n"]  # [-90, 90]
    pmra_mas_per_yr: Float64[ndarray, " n"] | None = None  # includes cos dec
    pmdec_mas_per_yr: Float64[ndarray, " n"] | None = None
    epoch_year: float | Float64[ndarray, " n"] | None = None  # Julian year of the positions

    def __post_init__(self) -> None:
        if (self.pmra_mas_per_yr is None) != (self.pmdec_mas_per_yr is None):
            raise ValueError("pmra_mas_per_yr and pmdec_mas_per_yr are given together or not")
        known = ~(np.isnan(self.ra_deg) | np.isnan(self.dec_deg))
        on_sky = (self.ra_deg >= 0) & (self.ra_deg < 360) & (np.abs(self.dec_deg) <= 90)
        off = np.flatnonzero(known & ~on_sky)
        if len(off):
            row = int(off[0])
            raise ValueError(
                "expected ra_deg in [0, 360) and dec_deg in [-90, 90], got "
                f"{self.ra_deg[row]}, {self.dec_deg[row]} in row {row}"
            )

    @property
    def moves(self) -> bool:
        """Whether proper motions are given."""
        return self.pmra_mas_per_yr is not None


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of rows, ordered by the left row, which is in one pair at most."""

    left: Int64[ndarray, " pair"]  # row numbers
    right: Int64[ndarray, " pair"]
    separation_arcsec: Float64[ndarray, " pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchTable:
    """Pairs of sources that are one object, by the ids that their surveys give them."""

    left_survey: str
    right_survey: str
    left_id: tuple[str, ...]
    right_id: tuple[str, ...]
    separation_arcsec: Float64[ndarray, " pair"]


@dataclass(frozen=True, slots=True)
class _Nearest:
    """For each row the nearest one of the other list, -1 where none is within the radius."""

    row: Int64[ndarray, " n"]
    separation_arcsec: Float64[ndarray, " n"]  # infinity where there is none

    @classmethod
    def none(cls, num_rows: int) -> _Nearest:
        return cls(np.full(num_rows, -1, np.int64), np.full(num_rows, np.inf))

    def take(self, rows: ndarray, others: ndarray, separation_arcsec: ndarray) -> None:
        """Take in pairs; of others at one distance the one that came first, or is lowest, stays."""
        order = np.lexsort((others, separation_arcsec, rows))
        rows, others, separation_arcsec = rows[order], others[order], separation_arcsec[order]
        first = np.ones(len(rows), bool)
        first[1:] = rows[1:] != rows[:-1]
        first &= separation_arcsec < self.separation_arcsec[rows]
        self.row[rows[first]] = others[first]
        self.separation_arcsec[rows[first]] = separation_arcsec[first]


def crossmatch(
    left: Positions, right: Positions, *, radius_arcsec: float = RADIUS_ARCSEC
) -> Matches:
    """Reciprocal nearest neighbours within a radius (inclusive): a row is in one pair at most.

    Where one list has proper motions, it is moved to the epoch of each row of the other; where
    both have, the left one is moved. A row without proper motion, or beside one of unknown epoch,
    stays where it is. Of rows at one distance the first is the nearest. A row without position
    matches nothing.

    Raises:
        ValueError: the radius is not in (0, 3600] arcsec, or proper motions are given and an epoch
            is not.
    """
    if right.moves and not left.moves:
        turned = crossmatch(right, left, radius_arcsec=radius_arcsec)
        order = np.argsort(turned.right)
        return Matches(turned.right[order], turned.left[order], turned.separation_arcsec[order])
    of_left, of_right = _nearest(left, right, radius_arcsec=radius_arcsec)
    rows = np.flatnonzero(of_left.row >= 0)
    rows = rows[of_right.row[of_left.row[rows]] == rows]
    return Matches(rows, of_left.row[rows], of_left.separation_arcsec[rows])


def match_table(
    matches: Matches,
    *,
    left_survey: str,
    left_ids: Sequence[str],
    right_survey: str,
    right_ids: Sequence[str],
) -> MatchTable:
    """Matches of rows as matches of source ids."""
    return MatchTable(
        left_survey=left_survey,
        right_survey=right_survey,
        left_id=tuple(left_ids[i] for i in matches.left.tolist()),
        right_id=tuple(right_ids[i] for i in matches.right.tolist()),
        separation_arcsec=matches.separation_arcsec,
    )


def write_matches(file: Path, table: MatchTable) -> None:
    """Write left_id, right_id and separation_arcsec as Parquet, the surveys in its metadata."""
    surveys = {"left_survey": table.left_survey, "right_survey": table.right_survey}
    columns = [table.left_id, table.right_id, table.separation_arcsec]
    schema = pa.schema(MATCH_FIELDS, metadata=surveys)
    pq.write_table(pa.table(columns, schema=schema), file)


def read_matches(file: Path) -> MatchTable:
    """Matches that `write_matches` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no Parquet table of matches.
    """
    try:
        table = pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: {error}") from error
    surveys = table.schema.metadata or {}
    if dict(zip(table.schema.names, table.schema.types, strict=True)) != MATCH_FIELDS or not (
        {b"left_survey", b"right_survey"} <= surveys.keys()
    ):
        raise ValueError(
            f"{file}: expected columns {', '.join(MATCH_FIELDS)} and the names of two surveys, "
            f"got {', '.join(table.schema.names)}"
        )
    return MatchTable(
        left_survey=surveys[b"left_survey"].decode(),
        right_survey=surveys[b"right_survey"].decode(),
        left_id=tuple(table["left_id"].to_pylist()),
        right_id=tuple(table["right_id"].to_pylist()),
        separation_arcsec=table["separation_arcsec"].to_numpy(),
    )


def nearest(left: Positions, right: Positions, *, radius_arcsec: float) -> Matches:
    """Each left row that has one with its nearest right row, which several may share.

    Distances and errors as in `crossmatch`.
    """
    if right.moves and not left.moves:
        _, of_left = _nearest(right, left, radius_arcsec=radius_arcsec)
    else:
        of_left, _ = _nearest(left, right, radius_arcsec=radius_arcsec)
    rows = np.flatnonzero(of_left.row >= 0)
    return Matches(rows, of_left.row[rows], of_left.separation_arcsec[rows])


def _nearest(
    left: Positions, right: Positions, *, radius_arcsec: float
) -> tuple[_Nearest, _Nearest]:
    """The nearest right row of each left row, and the nearest left row of each right row."""
    if not 0 < radius_arcsec <= MAX_RADIUS_ARCSEC:
        raise ValueError(f"expected a radius in (0, {MAX_RADIUS_ARCSEC}], got {radius_arcsec}")
    of_left, of_right = _Nearest.none(len(left.ra_deg)), _Nearest.none(len(right.ra_deg))
    left_rows, right_rows = _known(left), _known(right)
    if not len(left_rows) or not len(right_rows):
        return of_left, of_right
    motion = _Motion.of(left, right, left_rows, right_rows)
    right_vectors = _unit_vectors(right.ra_deg[right_rows], right.dec_deg[right_rows])
    start, reach_arcsec = motion.searched()
    # A little more than the radius: the pairs found are measured again.
    reach = 2 * np.sin((radius_arcsec + reach_arcsec) * _ARCSEC / 2) * (1 + 1e-9) + 1e-15
    tree = cKDTree(right_vectors)
    num_pairs = tree.query_ball_point(start, reach, return_length=True)
    some = np.flatnonzero(num_pairs)
    ends = np.cumsum(num_pairs[some])
    cuts = np.flatnonzero(np.diff(ends // _BLOCK_PAIRS)) + 1
    for block in np.split(some, cuts):
        found = tree.query_ball_point(start[block], reach[block])
        i = np.repeat(block, num_pairs[block])
        j = np.fromiter(chain.from_iterable(found), np.int64, len(i))
        chord = np.linalg.norm(motion.moved(i, j) - right_vectors[j], axis=1)
        separation_arcsec = 2 * np.arcsin(chord / 2) / _ARCSEC
        near = separation_arcsec <= radius_arcsec
        pairs = left_rows[i[near]], right_rows[j[near]], separation_arcsec[near]
        of_left.take(*pairs)
        of_right.take(pairs[1], pairs[0], pairs[2])
    return of_left, of_right


@dataclass(frozen=True, slots=True)
class _Motion:
    """Where the left rows are at the epochs of the right ones."""

    vectors: Float64[ndarray, "left 3"]  # unit vectors at their own epochs
    velocity: Float64[ndarray, "left 3"]  # radian / year along the sky
    left_epoch: Float64[ndarray, " left"]  # NaN = not known: they stay
    right_epoch: Float64[ndarray, " right"]

    @classmethod
    def of(
        cls, left: Positions, right: Positions, left_rows: ndarray, right_rows: ndarray
    ) -> _Motion:
        ra_deg, dec_deg = left.ra_deg[left_rows], left.dec_deg[left_rows]
        velocity = np.zeros((len(left_rows), 3))
        if left.pmra_mas_per_yr is not None and left.pmdec_mas_per_yr is not None:
            if left.epoch_year is None or right.epoch_year is None:
                raise ValueError("proper motions need the epoch_year of both lists")
            ra, dec = np.radians(ra_deg), np.radians(dec_deg)
            east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=1)
            north = np.stack(
                [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=1
            )
            pmra = left.pmra_mas_per_yr[left_rows, None] * _ARCSEC / 1000
            pmdec = left.pmdec_mas_per_yr[left_rows, None] * _ARCSEC / 1000
            velocity = np.nan_to_num(pmra * east + pmdec * north)
        return cls(
            _unit_vectors(ra_deg, dec_deg),
            velocity,
            _epochs(left, left_rows),
            _epochs(right, right_rows),
        )

    def moved(self, left: ndarray, right: ndarray) -> Float64[ndarray, "pair 3"]:
        """Unit vectors of left rows at the epochs of right rows."""
        years = np.nan_to_num(self.right_epoch[right] - self.left_epoch[left])
        return _normalized(self.vectors[left] + years[:, None] * self.velocity[left])

    def searched(self) -> tuple[Float64[ndarray, "left 3"], Float64[ndarray, " left"]]:
        """Left rows at one epoch, and how far from there (arcsec) they are at any other."""
        known = self.right_epoch[~np.isnan(self.right_epoch)]
        speed = np.linalg.norm(self.velocity, axis=1) / _ARCSEC
        if not len(known) or not speed.any():
            return self.vectors, np.zeros(len(self.vectors))
        middle = (known.min() + known.max()) / 2
        years = np.nan_to_num(middle - self.left_epoch)
        longest = np.full(len(years), known.max() - middle)
        if len(known) < len(self.right_epoch):
            longest = np.maximum(longest, np.abs(years))
        return _normalized(self.vectors + years[:, None] * self.velocity), speed * longest


def _known(positions: Positions) -> Int64[ndarray, " n"]:
    return np.flatnonzero(~(np.isnan(positions.ra_deg) | np.isnan(positions.dec_deg)))


def _epochs(positions: Positions, rows: ndarray) -> Float64[ndarray, " n"]:
    if isinstance(positions.epoch_year, ndarray):
        return positions.epoch_year[rows]
    year = np.nan if positions.epoch_year is None else positions.epoch_year
    return np.full(len(rows), year, np.float64)


def _unit_vectors(ra_deg: ndarray, dec_deg: ndarray) -> Float64[ndarray, "n 3"]:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def _normalized(vectors: ndarray) -> Float64[ndarray, "n 3"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
