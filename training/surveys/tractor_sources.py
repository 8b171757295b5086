"""What the rows of a Tractor or sweep table say: release, type, shape, fluxes.

Releases before DR9 give SHAPEEXP_* and SHAPEDEV_* instead of SHAPE_*: DEV has the latter's shape,
EXP, REX and SIMP the former's (SIMP that has none, 0.45 arcsec round), and COMP the mean of both
weighted by FRACDEV, which is an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from training.surveys import bricks
from training.surveys.neighbours import Shapes
from training.surveys.tractor_table import FLUX_BANDS, SHAPE_COLUMNS, WANTED, Columns, Table

NEIGHBOUR_COLUMNS = frozenset(("type", "ra", "dec", "brick_primary", "fracdev", *SHAPE_COLUMNS))
SIMP_RADIUS_ARCSEC = 0.45
_PARTS = ("r", "e1", "e2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Some rows of a table, decoded."""

    row: Int64[ndarray, " source"]  # in the table, from 0
    columns: Columns
    shapes: Shapes
    primary: Bool[ndarray, " source"]

    def kept(self) -> Int64[ndarray, " n"]:
        """Which of these become objects."""
        return np.flatnonzero(self.primary & (self.shapes.kind != "DUP"))


def decode(table: Table, rows: Int64[ndarray, " row"], wanted: frozenset[str] = WANTED) -> Sources:
    """Some rows of a table."""
    columns = table.columns(rows, wanted)
    # An undefined logical (DR6 and before have some) is not a reason to lose an object.
    primary = columns.get("brick_primary")
    return Sources(
        row=rows,
        columns=columns,
        shapes=_shapes(columns),
        primary=np.ones(len(rows), bool) if primary is None else primary != "F",
    )


def fluxes(columns: Mapping[str, Any]) -> dict[str, float]:
    """Flux in nanomaggies of each band that was observed."""
    found = {}
    for band in FLUX_BANDS:
        flux = float(columns.get(f"flux_{band}", np.nan))
        ivar = float(columns.get(f"flux_ivar_{band}", np.inf))
        if np.isfinite(flux) and ivar > 0:
            found[band] = flux
    return found


def release_name(release: int) -> str:
    """RELEASE as a name: dr8 south, dr10; source: legacysurvey.org/release.

    Raises:
        ValueError: it is of no data release of the survey.
    """
    number = 10 if release == 9999 else release // 1000
    if not 1 <= number < 30:
        raise ValueError(f"unknown RELEASE {release}: expected 1000 to 29999")
    if number not in (8, 9):
        return f"dr{number}"
    return f"dr{number} {bricks.region(release)}"


def _shapes(columns: Columns) -> Shapes:
    kind = columns["type"]
    none = np.full(len(kind), np.nan)
    values = {
        model: [columns.get(f"{model}_{part}", none).astype(np.float64) for part in _PARTS]
        for model in ("shape", "shapedev", "shapeexp")
    }
    if "shape_r" in columns:
        shape = values["shape"]
    else:
        weight = np.where(kind == "COMP", columns.get("fracdev", none), kind == "DEV")
        shape = [
            np.where(
                weight == 1, dev, np.where(weight == 0, exp, weight * dev + (1 - weight) * exp)
            )
            for dev, exp in zip(values["shapedev"], values["shapeexp"], strict=True)
        ]
        simple = (kind == "SIMP") & ~(shape[0] > 0)
        shape[0] = np.where(simple, SIMP_RADIUS_ARCSEC, shape[0])
    points = (kind == "PSF") | (kind == "DUP")
    radius, e1, e2 = (np.where(points, 0.0, part) for part in shape)
    return Shapes(kind=kind, radius_arcsec=radius, e1=e1, e2=e2)
