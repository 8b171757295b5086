"""Files as the HSC archive writes them: cutouts of one band, and the answer to an SQL query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from jaxtyping import Float64
from numpy import ndarray

SCALE_DEG = 4.66666666666396e-05  # 0.168 arcsec
FLUXMAG0 = 63095734448.0194
# Bit of each plane in PDR3; other releases number them otherwise.
PLANES = {
    "BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "DETECTED_NEGATIVE": 6,
    "SUSPECT": 7, "NO_DATA": 8, "BRIGHT_OBJECT": 9, "CROSSTALK": 10, "NOT_DEBLENDED": 11,
    "UNMASKEDNAN": 12, "REJECTED": 13, "CLIPPED": 14, "SENSOR_EDGE": 15, "INEXACT_PSF": 16,
}  # fmt: skip
RA_DEG, DEC_DEG = 150.2479, 2.2314


def counts(size: int = 110, *, total: float = 6309.57, seed: int = 0) -> Float64[ndarray, "y x"]:
    """A Gaussian galaxy of sigma 5 px on noise of 0.03 counts; 6309.57 counts are AB 17.5."""
    offset = np.arange(size) - (size - 1) / 2
    galaxy = np.exp(-(offset[:, None] ** 2 + offset**2) / 50) / (50 * np.pi)
    return total * galaxy + np.random.default_rng(seed).normal(0, 0.03, (size, size))


def exposure(
    image: ndarray,
    *,
    band: str = "HSC-I",
    ra_deg: float = RA_DEG,
    dec_deg: float = DEC_DEG,
    scale_deg: float = SCALE_DEG,
    flags: dict[tuple[int, int], str] | None = None,
    planes: dict[str, int] | None = None,
    primary: dict[str, Any] | None = None,
) -> fits.HDUList:
    """The HDUs of a cutout: primary, IMAGE, MASK, VARIANCE and a table of the archive's own."""
    planes = PLANES if planes is None else planes
    height, width = image.shape
    first = fits.PrimaryHDU()
    first.header.update({"FILTER": band, "FLUXMAG0": FLUXMAG0, "EXPTIME": 1200.0, "AR_HDU": 5})
    for key, value in (primary or {}).items():
        if value is None:
            del first.header[key]
        else:
            first.header[key] = value
    wcs = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
        "CRVAL1": ra_deg, "CRVAL2": dec_deg, "CRPIX1": (width + 1) / 2, "CRPIX2": (height + 1) / 2,
        "CD1_1": -scale_deg, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale_deg, "RADESYS": "ICRS",
        "LTV1": -11700.0, "LTV2": -3900.0, "CTYPE1A": "LINEAR", "CTYPE2A": "LINEAR",
        "CRVAL1A": 11700, "CRVAL2A": 3900, "CRPIX1A": 1.0, "CRPIX2A": 1.0,
    }  # fmt: skip
    mask = np.zeros((height, width), np.int32)
    for (y, x), name in (flags or {}).items():
        mask[y, x] |= 1 << planes[name]
    data = {
        "IMAGE": image.astype(np.float32),
        "MASK": mask,
        "VARIANCE": np.full((height, width), 0.0009, np.float32),
    }
    hdus = fits.HDUList([first])
    for kind, values in data.items():
        hdu = fits.ImageHDU(values, name=kind)
        hdu.header["EXTTYPE"] = kind
        hdu.header.update(wcs)
        if kind == "MASK":
            for name, bit in planes.items():
                hdu.header[f"HIERARCH MP_{name}"] = bit
        hdus.append(hdu)
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("id", "K", array=np.arange(3))]))
    return hdus


def write(hdus: fits.HDUList, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(file)
    return file


def write_group(
    folder: Path, name: str = "{band}-9813-pdr3_wide", *, bands: str = "GRIZY", **settings: Any
) -> dict[str, Path]:
    """One file a band, named as the archive does; the galaxy is as bright in every band."""
    files = {}
    for number, letter in enumerate(bands):
        band = f"HSC-{letter}"
        file = folder / f"{name.format(band=f'cutout-{band}', line=number + 2)}.fits"
        files[letter] = write(exposure(counts(seed=number), band=band, **settings), file)
    return files
