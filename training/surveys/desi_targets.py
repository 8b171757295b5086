"""What the FIBERMAP of DESI says of a target: whether it is one, its ids, position and photometry.

A TARGETID packs, from the lowest bit: OBJID (22 bits), BRICKID (20), RELEASE (16), MOCK (1), SKY
(1) and GAIADR (4). Where RELEASE is one of the Legacy Surveys, a target is their object of that
brick, and has the same object_id as there: RELEASE-BRICKID-OBJID. Secondary targets (RELEASE 8888),
targets of opportunity (9999) and backup targets from Gaia are numbered otherwise and stand for
themselves. A negative TARGETID belongs to a fibre that was never put on a target.

Photometry is that of the Legacy Surveys (nanomaggies, model fluxes, not corrected for extinction).
A column that is 0 was not measured.

Source: desitarget.targets.encode_targetid; desidatamodel, "Bit Masks in DESI"; Myers et al. 2023,
AJ 165, 50, section 2.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.observations import CatalogueValue, sky_position
from training.surveys.redrock import ZWARN_BITS, Redshift, bit_names

OBJID_BITS, BRICKID_BITS, RELEASE_BITS = 22, 20, 16
SKY_BIT = 59
NUM_BRICKS = 662_174
FLUX_BANDS = ("g", "r", "z", "w1", "w2")
NO_TARGETS = ("SKY", "BAD")  # OBJTYPE
WHOLE = ("targetid", "coadd_fiberstatus", "fiberstatus", "expid", "fiber", "tileid")
NUMBERS = (
    *("target_ra", "target_dec", "ebv", "shape_r", "shape_e1", "shape_e2"),
    *(f"flux_{band}" for band in FLUX_BANDS),
)
COLUMNS_WANTED = frozenset((*WHOLE, *NUMBERS, "objtype"))
# Of what a row is made from, the columns that say where it was made rather than what it is.
PLACES = frozenset(("expid", "fiber", "tileid"))
FIBERSTATUS_BITS = {
    0: "UNASSIGNED", 1: "STUCKPOSITIONER", 2: "BROKENFIBER", 3: "RESTRICTED",
    8: "MISSINGPOSITION", 9: "BADPOSITION", 10: "POORPOSITION", 12: "LOWTRANSMISSION",
    15: "LOWEFFTIME", 16: "BADFIBER", 17: "BADTRACE", 18: "BADFLAT", 19: "BADARC",
    20: "MANYBADCOL", 21: "MANYREJECTED", 22: "BADAMPB", 23: "BADAMPR", 24: "BADAMPZ",
    25: "BADPETALPOS", 26: "BADPETALSKY", 27: "BADPETALSTDSTAR", 28: "BADPETALFLUXCAL",
    29: "BADPETALSNR", 30: "BADREADNOISE",
}  # fmt: skip

Row = dict[str, Any]  # FIBERMAP column in lower case -> value


def object_id(target: int) -> str:
    """RELEASE-BRICKID-OBJID where the TARGETID names an object of the Legacy Surveys, else itself.

    The releases of data release n are n000 to n099, from DR3 to DR10 so far.
    """
    objid = target & (1 << OBJID_BITS) - 1
    brickid = target >> OBJID_BITS & (1 << BRICKID_BITS) - 1
    release = target >> OBJID_BITS + BRICKID_BITS & (1 << RELEASE_BITS) - 1
    flags = target >> OBJID_BITS + BRICKID_BITS + RELEASE_BITS  # MOCK, SKY, GAIADR
    is_legacy = 3 <= release // 1000 <= 10 and release % 1000 < 100
    if flags != 0 or not is_legacy or not 1 <= brickid <= NUM_BRICKS:
        return str(target)
    return f"{release}-{brickid}-{objid}"


def refuse_no_target(row: Row) -> None:
    """Raise ValueError where a row is no target, or its fibre was bad: COADD_FIBERSTATUS not 0."""
    target = row["targetid"]
    if target <= 0:
        raise ValueError("the TARGETID is not positive: the fibre was on no target")
    kind = str(row.get("objtype", "")).strip().upper()
    if kind in NO_TARGETS or target >> SKY_BIT & 1:
        raise ValueError(f"no target: OBJTYPE {kind or 'SKY, by its TARGETID'}")
    check_status(row.get("coadd_fiberstatus", 0), name="COADD_FIBERSTATUS")


def check_status(status: int, *, name: str) -> None:
    """Raise ValueError naming the bits unless a fibre status is 0."""
    if status != 0:
        bits = int(status) & 0xFFFFFFFF
        raise ValueError(f"{name} {bits}: {bit_names(bits, FIBERSTATUS_BITS)}")


def position(row: Row) -> tuple[float, float] | None:
    """TARGET_RA and TARGET_DEC in degrees, by `sky_position`."""
    return sky_position(row.get("target_ra"), row.get("target_dec"))


def photometry(row: Row) -> tuple[dict[str, float], dict[str, CatalogueValue]]:
    """Token scalars, and columns of the object table, of one row."""
    scalars: dict[str, float] = {}
    catalogue: dict[str, CatalogueValue] = {}
    for band in FLUX_BANDS:
        flux = float(row.get(f"flux_{band}", 0))
        if not np.isfinite(flux) or flux == 0:
            continue
        catalogue[f"flux_{band}_nmgy"] = flux
        if flux > 0:
            catalogue[f"mag_{band}"] = float(22.5 - 2.5 * np.log10(flux))
            scalars[f"tok_flux_{band}"] = flux
    radius, ebv = float(row.get("shape_r", 0)), float(row.get("ebv", 0))
    if np.isfinite(radius) and radius > 0:
        catalogue["radius_arcsec"] = scalars["tok_shape_r"] = radius
        for name in ("shape_e1", "shape_e2"):
            if np.isfinite(row.get(name, np.nan)):
                scalars[f"tok_{name}"] = float(row[name])
    if np.isfinite(ebv) and ebv > 0:
        scalars["tok_ebv"] = ebv
    return scalars, catalogue


def redshift(
    found: Redshift | None,
) -> tuple[dict[str, float], dict[str, CatalogueValue], tuple[str, ...]]:
    """Token scalars, columns of the object table, and notes; nothing but a note where ZWARN is set.

    None stands for a TARGETID that the redshift table lacks.
    """
    if found is None:
        return {}, {}, ("not in the redshift table: redshift and class left out",)
    if found.zwarn != 0:
        bits = bit_names(found.zwarn, ZWARN_BITS)
        return {}, {}, (f"ZWARN {found.zwarn} ({bits}): redshift and class left out",)
    if not np.isfinite(found.z):
        return {}, {}, ("Z is not a number: redshift and class left out",)
    catalogue: dict[str, CatalogueValue] = {
        "redshift": found.z,
        "redshift_source": "desi",
        "spectrum_class": found.spectral_class,
    }
    if np.isfinite(found.z_error) and found.z_error > 0:
        catalogue["redshift_error"] = found.z_error
    return {"tok_z": found.z}, catalogue, ()
