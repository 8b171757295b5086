"""The same object in two HATS catalogues of any size, by LSDB, one cell of the sky after another.

The pairs are those of `crossmatch`. Only these are in memory at once, some 200 bytes each; the
catalogues are not. Each needs a margin (the rows just outside of a cell) at least as wide as the
radius and the way that its neighbours' stars go between the epochs.

Needs the extra `surveys`. Runs on the Dask scheduler that is set, threads where none is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from training.surveys.crossmatch import RADIUS_ARCSEC, MatchTable, Positions, nearest

_SEPARATION = "separation_arcsec"


@dataclass(frozen=True, slots=True, kw_only=True)
class HatsCatalogue:
    """A HATS catalogue, or collection with a margin, and what its columns are called."""

    folder: Path
    survey: str
    id_column: str
    pmra_column: str | None = None  # mas / year, includes cos dec
    pmdec_column: str | None = None
    epoch_year: float | str | None = None  # of all positions, or the column that tells it

    @property
    def moves(self) -> bool:
        """Whether proper motions are given."""
        return self.pmra_column is not None

    def columns(self) -> list[str]:
        """Columns that are read beside the position."""
        named = (self.id_column, self.pmra_column, self.pmdec_column, self.epoch_year)
        return [name for name in named if isinstance(name, str)]

    def positions(self, table: pd.DataFrame, *, ra_column: str, dec_column: str) -> Positions:
        """Rows of the catalogue as `crossmatch` takes them."""

        def floats(name: str) -> Any:
            return table[name].to_numpy(dtype=np.float64, na_value=np.nan)

        epoch = self.epoch_year
        return Positions(
            ra_deg=floats(ra_column),
            dec_deg=floats(dec_column),
            pmra_mas_per_yr=None if self.pmra_column is None else floats(self.pmra_column),
            pmdec_mas_per_yr=None if self.pmdec_column is None else floats(self.pmdec_column),
            epoch_year=floats(epoch) if isinstance(epoch, str) else epoch,
        )


def crossmatch_hats(
    left: HatsCatalogue, right: HatsCatalogue, *, radius_arcsec: float = RADIUS_ARCSEC
) -> MatchTable:
    """Reciprocal nearest neighbours of two HATS catalogues, ordered by left_id.

    Raises:
        ValueError: a catalogue has no margin, or too narrow a one; a column is missing; and as
            `crossmatch`.
        ImportError: LSDB is not installed.
    """
    with _third_party_warnings():
        left_opened, right_opened = _open(left), _open(right)
        there = _one_way(left, left_opened, right, right_opened, radius_arcsec=radius_arcsec)
        back = _one_way(right, right_opened, left, left_opened, radius_arcsec=radius_arcsec)
    back = back.rename(columns={"one": "other", "other": "one"})[["one", "other"]]
    both = there.merge(back, on=["one", "other"]).sort_values("one", kind="stable")
    return MatchTable(
        left_survey=left.survey,
        right_survey=right.survey,
        left_id=tuple(both["one"]),
        right_id=tuple(both["other"]),
        separation_arcsec=both[_SEPARATION].to_numpy(np.float64),
    )


@contextmanager
def _third_party_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # LSDB 0.11 and nested-pandas 0.7 use what pandas 3 calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _open(catalogue: HatsCatalogue) -> Any:
    try:
        import lsdb
    except ImportError as error:
        raise ImportError(
            'matching HATS catalogues needs LSDB: pip install "skykin[surveys]"'
        ) from error
    info = lsdb.open_catalog(catalogue.folder).hc_structure.catalog_info
    columns = dict.fromkeys([info.ra_column, info.dec_column, *catalogue.columns()])
    opened = lsdb.open_catalog(catalogue.folder, columns=list(columns))
    if opened.margin is None:
        raise ValueError(f"{catalogue.folder}: expected a HATS collection with a margin")
    return opened


def _one_way(
    one: HatsCatalogue, one_opened: Any, other: HatsCatalogue, other_opened: Any, **kwargs: float
) -> pd.DataFrame:
    """Columns one and other (ids) and separation_arcsec: the nearest other of each one."""
    found = one_opened.crossmatch(
        other_opened,
        algorithm=_algorithm(one, other, **kwargs),
        suffixes=("_one", "_other"),
        suffix_method="all_columns",
        require_right_margin=True,
        log_changes=False,
    )[[f"{one.id_column}_one", f"{other.id_column}_other", _SEPARATION]].compute(progress_bar=False)
    return pd.DataFrame(
        {
            "one": found[f"{one.id_column}_one"].astype(str).to_numpy(object),
            "other": found[f"{other.id_column}_other"].astype(str).to_numpy(object),
            _SEPARATION: found[_SEPARATION].to_numpy(np.float64),
        }
    )


def _algorithm(one: HatsCatalogue, other: HatsCatalogue, *, radius_arcsec: float) -> Any:
    from lsdb.core.crossmatch.abstract_crossmatch_algorithm import AbstractCrossmatchAlgorithm

    class Nearest(AbstractCrossmatchAlgorithm):  # type: ignore[misc]
        """The nearest other row of each row of a cell, the margin of the cell included."""

        extra_columns = pd.DataFrame({_SEPARATION: pd.Series(dtype=pd.ArrowDtype(pa.float64()))})

        def __dask_tokenize__(self) -> tuple[str, ...]:
            return (__name__, repr(one), repr(other), repr(radius_arcsec))

        def perform_crossmatch(self, crossmatch_args: Any) -> tuple[Any, Any, pd.DataFrame]:
            infos = (crossmatch_args.left_catalog_info, crossmatch_args.right_catalog_info)
            tables = (crossmatch_args.left_df, crossmatch_args.right_df)
            here, there = (
                catalogue.positions(table, ra_column=info.ra_column, dec_column=info.dec_column)
                for catalogue, table, info in zip((one, other), tables, infos, strict=True)
            )
            margin_arcsec = crossmatch_args.right_margin_catalog_info.margin_threshold
            _check_margin(here, there, radius_arcsec=radius_arcsec, margin_arcsec=margin_arcsec)
            found = nearest(here, there, radius_arcsec=radius_arcsec)
            separation = pd.Series(found.separation_arcsec, dtype=pd.ArrowDtype(pa.float64()))
            return found.left, found.right, pd.DataFrame({_SEPARATION: separation})

    return Nearest()


def _check_margin(
    here: Positions, there: Positions, *, radius_arcsec: float, margin_arcsec: float
) -> None:
    """Raise ValueError where a star may have come, or gone, from farther than the margin holds."""
    moving, still = (there, here) if there.moves and not here.moves else (here, there)
    way_arcsec = 0.0
    if moving.pmra_mas_per_yr is not None and moving.pmdec_mas_per_yr is not None:
        speed = np.hypot(moving.pmra_mas_per_yr, moving.pmdec_mas_per_yr) / 1000
        start, end = (
            np.atleast_1d(np.asarray(np.nan if year is None else year, np.float64))
            for year in (moving.epoch_year, still.epoch_year)
        )
        end = end[~np.isnan(end)]
        if len(end):
            years = np.maximum(np.abs(start - end.min()), np.abs(start - end.max()))
            way_arcsec = float(np.nan_to_num(speed * years).max(initial=0.0))
    if radius_arcsec + way_arcsec > margin_arcsec:
        raise ValueError(
            f"expected a margin of {radius_arcsec + way_arcsec:.1f} arcsec or more (radius and "
            f"proper motion), the catalogue has {margin_arcsec}"
        )
