"""Small files in the layouts of the archives, for the tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits

ARMS = {"B": 27, "R": 23, "Z": 29}


def cutout(
    ra_deg: float,
    dec_deg: float,
    *,
    bands: str = "griz",
    size: int = 16,
    value: float | np.ndarray = 1.0,
) -> bytes:
    """A cutout of the Legacy Survey viewer: (band, y, x) in the primary HDU."""
    header = fits.Header()
    header["BANDS"] = bands
    for number, band in enumerate(bands):
        header[f"BAND{number}"] = band
    for axis, centre, ctype, step in ((1, ra_deg, "RA---TAN", -1), (2, dec_deg, "DEC--TAN", 1)):
        header[f"CTYPE{axis}"] = ctype
        header[f"CRVAL{axis}"] = centre
        header[f"CRPIX{axis}"] = size / 2 + 0.5
        header[f"CD{axis}_{axis}"] = step * 0.262 / 3600
    pixels = np.broadcast_to(value, (len(bands), size, size)).astype(np.float32)
    return _bytes(fits.HDUList([fits.PrimaryHDU(pixels, header)]))


def spec_lite(plate: int, mjd: int, fibre: int, *, num_pixels: int = 50) -> bytes:
    """An SDSS spec-lite file."""
    ones = np.ones(num_pixels, np.float32)
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=ones),
            fits.Column("loglam", "E", array=np.linspace(3.58, 3.96, num_pixels)),
            fits.Column("ivar", "E", array=ones),
        ],
        name="COADD",
    )
    row = fits.BinTableHDU.from_columns(
        [
            fits.Column("PLATE", "J", array=[plate]),
            fits.Column("MJD", "J", array=[mjd]),
            fits.Column("FIBERID", "J", array=[fibre]),
        ],
        name="SPECOBJ",
    )
    return _bytes(fits.HDUList([fits.PrimaryHDU(), coadd, row]))


def coadd(targetids: list[int]) -> bytes:
    """A DESI coadd with a compressed mask, as the pipeline writes it."""
    number = len(targetids)
    hdus = fits.HDUList([fits.PrimaryHDU(), _ids(targetids, "FIBERMAP"), _exposures(targetids)])
    for arm, length in ARMS.items():
        flux = np.arange(number * length, dtype=np.float32).reshape(number, length)
        hdus.append(fits.ImageHDU(np.linspace(3600, 9800, length), name=f"{arm}_WAVELENGTH"))
        image = fits.ImageHDU(flux, name=f"{arm}_FLUX")
        image.header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
        hdus.append(image)
        hdus.append(fits.ImageHDU(flux + 1, name=f"{arm}_IVAR"))
        hdus.append(fits.CompImageHDU(flux.astype(np.int32) % 3, name=f"{arm}_MASK"))
        resolution = np.repeat(flux[:, None], 11, axis=1)
        hdus.append(fits.ImageHDU(resolution, name=f"{arm}_RESOLUTION"))
    hdus.append(_ids(targetids, "SCORES"))
    return _bytes(hdus)


def redrock(targetids: list[int]) -> bytes:
    """The redrock file beside it."""
    return _bytes(
        fits.HDUList(
            [
                fits.PrimaryHDU(),
                _ids(targetids, "REDSHIFTS"),
                _ids(targetids, "FIBERMAP"),
                _exposures(targetids),
            ]
        )
    )


def xp_table(source_ids: list[int]) -> bytes:
    """Gaia's XP_CONTINUOUS_RAW: coefficients as arrays of variable length."""
    arrays = np.empty(len(source_ids), object)
    for number in range(len(source_ids)):
        arrays[number] = np.arange(55.0) + number
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("source_id", "K", array=np.array(source_ids, np.int64)),
            fits.Column("bp_coefficients", "PD()", array=arrays),
            fits.Column("rp_coefficients", "PD()", array=arrays),
        ]
    )
    return _bytes(fits.HDUList([fits.PrimaryHDU(), table]))


def zipped(**members: bytes) -> bytes:
    """A ZIP file; a member's name has its dots as __."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, member in members.items():
            bundle.writestr(name.replace("__", "."), member)
    return content.getvalue()


def hdf5(folder: Path, places: list[tuple[float, float]]) -> bytes:
    """A file of the Multimodal Universe."""
    file = folder / "made.hdf5"
    with h5py.File(file, "w") as content:
        content["object_id"] = np.array([str(n).encode() for n in range(len(places))])
        content["ra"] = [place[0] for place in places]
        content["dec"] = [place[1] for place in places]
    return file.read_bytes()


def _ids(targetids: list[int], name: str) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.array(targetids, np.int64)),
            fits.Column("FLUX_R", "E", unit="nanomaggy", array=np.arange(len(targetids)) + 0.5),
        ],
        name=name,
    )


def _exposures(targetids: list[int]) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.repeat(np.array(targetids, np.int64), 2)),
            fits.Column("EXPID", "J", array=np.arange(2 * len(targetids))),
        ],
        name="EXP_FIBERMAP",
    )


def _bytes(hdus: fits.HDUList) -> bytes:
    content = io.BytesIO()
    hdus.writeto(content)
    return content.getvalue()
