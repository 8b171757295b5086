"""Small Tractor tables and brick coadds as the Legacy Survey writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Float32
from numpy import ndarray

BRICK = "1234p056"
BRICKID = 345678
SIZE = 420  # pixels a side: two blocks and a bit
CENTRE = (123.4, 5.6)  # RA, Dec in degrees

SOURCE: dict[str, tuple[str, Any]] = {  # DR9 and later
    "RELEASE": ("I", 9010),
    "BRICKID": ("J", BRICKID),
    "BRICKNAME": ("8A", BRICK),
    "OBJID": ("J", 0),
    "BRICK_PRIMARY": ("L", True),
    "MASKBITS": ("J", 0),
    "TYPE": ("3A", "EXP"),
    "RA": ("D", CENTRE[0]),
    "DEC": ("D", CENTRE[1]),
    "EBV": ("E", 0.05),
    **{f"FLUX_{band}": ("E", 10.0) for band in ("G", "R", "Z", "W1", "W2", "W3", "W4")},
    **{f"FLUX_IVAR_{band}": ("E", 4.0) for band in ("G", "R", "Z", "W1", "W2", "W3", "W4")},
    "APFLUX_G": ("8E", np.zeros(8)),
    "SHAPE_R": ("E", 1.5),
    "SHAPE_E1": ("E", 0.2),
    "SHAPE_E2": ("E", -0.1),
}
Row = dict[str, Any]


def write_table(
    file: Path,
    rows: list[Row],
    *,
    columns: dict[str, tuple[str, Any]] | None = None,
    units: dict[str, str] | None = None,
    lower: bool = False,
) -> Path:
    """A table of sources: each row gives what differs from the defaults."""
    made = []
    for name, (form, default) in (SOURCE if columns is None else columns).items():
        values = np.array([row.get(name, default) for row in rows])
        if len(rows) == 0:
            values = np.array([default])[:0]
        unit = (units or {}).get(name)
        made.append(fits.Column(name.lower() if lower else name, form, unit, array=values))
    file.parent.mkdir(parents=True, exist_ok=True)
    table = fits.BinTableHDU.from_columns(made)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(file, overwrite=True)
    return file


def brick_wcs(*, size: int = SIZE, scale_arcsec: float = 0.262) -> WCS:
    """The tangent plane of a brick; its pixels run north and west."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = CENTRE
    wcs.wcs.crpix = [(size + 1) / 2, (size + 1) / 2]
    wcs.wcs.cd = np.diag([-scale_arcsec, scale_arcsec]) / 3600
    return wcs


def positions(pixels: ndarray, *, wcs: WCS | None = None) -> list[Row]:
    """Rows of a table at pixels (x, y) of the brick, OBJID in their order."""
    sky = (wcs or brick_wcs()).wcs_pix2world(np.asarray(pixels, float), 0)
    return [{"OBJID": i, "RA": ra, "DEC": dec} for i, (ra, dec) in enumerate(sky.tolist())]


def sky_pixels(seed: int, *, size: int = SIZE) -> Float32[ndarray, "y x"]:
    """Noise of a coadd."""
    rng = np.random.default_rng(seed)
    return rng.normal(scale=0.01, size=(size, size)).astype(np.float32)


def write_coadd(
    folder: Path,
    kind: str,
    pixels: ndarray,
    *,
    brick: str = BRICK,
    suffix: str = ".fits.fz",
    cards: dict[str, Any] | None = None,
    wcs: WCS | None = None,
) -> Path:
    """One coadd: kind image-g, invvar-r, maskbits..; a card of value None is left out."""
    header = (wcs or brick_wcs(size=pixels.shape[0])).to_header()
    header["BRICKNAM"] = brick
    if kind.startswith("image"):
        header.update(IMTYPE="image", BUNIT="nanomaggy", MAGZERO=22.5, FILTER=kind[-1])
    if kind.startswith("invvar"):
        header.update(IMTYPE="invvar", BUNIT="1/nanomaggy^2", FILTER=kind[-1])
    for key, value in (cards or {}).items():
        if value is None:
            header.remove(key, ignore_missing=True)
        else:
            header[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"legacysurvey-{brick}-{kind}{suffix}"
    if suffix.endswith(".fz"):
        compressed = fits.CompImageHDU(
            pixels, header, compression_type="RICE_1", tile_shape=(100, 100)
        )
        fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(file, overwrite=True)
    else:
        fits.PrimaryHDU(pixels, header).writeto(file, overwrite=True)
    return file


def write_coadds(
    folder: Path, *, bands: str = "grz", maskbits: ndarray | None = None, suffix: str = ".fits.fz"
) -> dict[str, Path]:
    """Image and invvar of some bands, and MASKBITS; by kind."""
    files = {}
    for number, band in enumerate(bands):
        flux = sky_pixels(number)
        ivar = np.full_like(flux, 1e4) + 100 * sky_pixels(100 + number)
        for kind, pixels in ((f"image-{band}", flux), (f"invvar-{band}", ivar)):
            files[kind] = write_coadd(folder, kind, pixels, suffix=suffix)
    bits = np.zeros((SIZE, SIZE), np.int32) if maskbits is None else maskbits
    files["maskbits"] = write_coadd(folder, "maskbits", bits, suffix=suffix)
    return files
