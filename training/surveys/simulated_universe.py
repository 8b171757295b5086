"""The simulated sky as data sets of the Multimodal Universe, one a survey.

`<survey>/simulated/healpix=N/001-of-001.hdf5` for legacysurvey, sdss, desi and gaia, cells of
NSIDE 16, nested, with the columns of the builders in
github.com/MultimodalUniverse/MultimodalUniverse, scripts/*/build_parent_sample.py. As there, the
mask of an image is True where a pixel is good, that of a spectrum where it is bad. Images are the
96 px that encoders see in place of 160. What is not simulated (W1 to W4, SPECTROFLUX in u) is NaN,
and there is no Galactic dust (EBV 0). The same object has the same position and simulated_id
everywhere.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix
from jaxtyping import UInt8
from numpy import ndarray

from training.observations import IMAGE_SIZE, NUM_XP_COEFFICIENTS, PIXEL_SCALE_ARCSEC
from training.sky.objects import Galaxy, SkyObject
from training.sky.starlight import BANDS
from training.surveys.simulated_drawing import Seen, draw_seen
from training.surveys.simulated_sky import SkyConfig, object_id, plan
from training.surveys.simulated_spectra import SPECTROGRAPHS
from training.surveys.simulating_processes import in_processes

SURVEYS = ("legacysurvey", "sdss", "desi", "gaia")
_HEALPIX_DEPTH = 4  # NSIDE 16
_NUM_SOURCES = 20  # a row of the catalogue of an image
_TYPES = ("", "PSF", "REX", "EXP", "DEV", "SER")  # numbers in catalog_TYPE and object_mask
_MIN_MASK_PIXELS = 2.0  # radius of a source in object_mask, at least
_LINE_ERROR = 8e-5  # of a redshift, times 1 + z
_LETTERS = tuple(band[-1] for band in BANDS)


def simulate_universe(
    config: SkyConfig,
    folder: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the sky of that config as a Multimodal Universe into a new folder.

    Args:
        config: What to simulate; spectra of both spectrographs are taken.
        folder: Where to; it appears only when complete.
        num_workers: Processes; all cores by default, 1 = this process.
        progress: Called with objects done and objects in all.

    Raises:
        ValueError: the folder exists already.
    """
    folder = folder.resolve()
    if folder.exists():
        raise ValueError(f"expected a new folder for the simulated universe, {folder} exists")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    layout = plan(config)
    cells = lonlat_to_healpix(
        Longitude(layout.ra_deg, unit="deg"), Latitude(layout.dec_deg, unit="deg"), _HEALPIX_DEPTH
    )
    tasks = [
        (config, np.flatnonzero(cells == cell), int(cell), partial) for cell in np.unique(cells)
    ]
    written = 0
    try:
        # closed at once if progress raises, so that no process writes on
        with closing(in_processes(_write_cell, tasks, num_workers=num_workers)) as results:
            for done in results:
                written += len(tasks[done.number][1])
                if progress is not None:
                    progress(written, config.num_objects)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_cell(config: SkyConfig, indices: ndarray, cell: int, folder: Path) -> None:
    layout = plan(config)
    counts = {
        "legacysurvey": len(indices),
        "sdss": int(layout.has_spectrum[indices].sum()),
        "desi": int(layout.has_spectrum[indices].sum()),
        "gaia": int(layout.has_xp[indices].sum()),
    }
    files: dict[str, Any] = {}
    try:
        for survey, count in counts.items():
            if count:
                file = folder / survey / "simulated" / f"healpix={cell}" / "001-of-001.hdf5"
                file.parent.mkdir(parents=True)
                files[survey] = h5py.File(file, "w")
        rows = dict.fromkeys(SURVEYS, 0)
        seen_all = draw_seen(
            config, layout, (int(k) for k in indices), spectrographs=("sdss", "desi")
        )
        for seen in seen_all:
            name = object_id(config, seen.index).encode()
            common = {
                "object_id": name,
                "simulated_id": name,  # the same in all surveys
                "ra": float(layout.ra_deg[seen.index]),
                "dec": float(layout.dec_deg[seen.index]),
                "healpix": cell,
            }
            for survey, columns in _columns_of(seen).items():
                if survey == "desi":  # whose ids are numbers
                    columns["object_id"] = _target_id(config, seen.index)
                _write_row(files[survey], rows[survey], counts[survey], common | columns)
                rows[survey] += 1
    finally:
        for file in files.values():
            file.close()


def _target_id(config: SkyConfig, index: int) -> int:
    return config.seed % 1_000_000 * 1_000_000_000 + index + 1


def _write_row(file: Any, row: int, num_rows: int, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        cell = np.asarray(value)
        if row == 0:
            dtype: Any = cell.dtype
            if cell.dtype.kind == "S":
                dtype = "S24"
            elif cell.dtype == np.float64 and name not in ("ra", "dec"):
                dtype = np.float32
            packing: dict[str, Any] = {}
            if cell.size > 100:
                packing = {"chunks": (1, *cell.shape), "compression": "lzf", "shuffle": True}
            file.create_dataset(name, (num_rows, *cell.shape), dtype, **packing)
        file[name][row] = cell


def _columns_of(seen: Seen) -> dict[str, dict[str, Any]]:
    """What each survey writes of an object it saw, by the name of the survey."""
    found = {"legacysurvey": _image_columns(seen)}
    for name in seen.spectra:
        found[name] = _spectrum_columns(seen, name)
    if seen.gaia is not None:
        xp = seen.gaia.xp
        found["gaia"] = {
            "coeff": np.concatenate([xp.bp, xp.rp]),
            "coeff_error": np.concatenate([xp.bp_error, xp.rp_error]),
            "phot_g_mean_flux": seen.gaia.flux_g,
            "phot_bp_mean_flux": seen.gaia.flux_bp,
            "phot_rp_mean_flux": seen.gaia.flux_rp,
            "parallax": seen.gaia.parallax_mas,
            "pmra": math.nan,
            "pmdec": math.nan,
            "ruwe": 1.0,
        }
        assert len(found["gaia"]["coeff"]) == 2 * NUM_XP_COEFFICIENTS
    return found


def _fluxes(seen: Seen) -> dict[str, float]:
    """Measured fluxes by letter, NaN where the band was not observed."""
    return {
        letter: float(flux) if band in seen.image.bands else math.nan
        for band, letter, flux in zip(BANDS, _LETTERS, seen.flux_nmgy, strict=True)
    }


def _image_columns(seen: Seen) -> dict[str, Any]:
    image = seen.image
    shape = (len(BANDS), IMAGE_SIZE, IMAGE_SIZE)
    flux, ivar = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    good = np.zeros(shape, bool)
    planes = [BANDS.index(band) for band in image.bands]
    flux[planes], ivar[planes], good[planes] = image.flux, image.ivar, ~image.mask
    sources = _sources(seen.thing)
    catalogue = np.zeros((6, _NUM_SOURCES), np.float32)  # X, Y, type, radius, e1, e2
    catalogue[:, : len(sources)] = np.array(sources, np.float32).T
    main = _shape(seen.thing)
    return {
        "image_array": flux,
        "image_ivar": ivar,
        "image_mask": good,
        "image_band": [band.encode() for band in BANDS],
        "image_psf_fwhm": [seen.psf_fwhm_arcsec.get(band, math.nan) for band in BANDS],
        "image_scale": [PIXEL_SCALE_ARCSEC] * len(BANDS),
        "object_mask": _object_mask(sources),
        "catalog_X": catalogue[0].astype(np.int16),
        "catalog_Y": catalogue[1].astype(np.int16),
        "catalog_TYPE": catalogue[2],
        "catalog_SHAPE_R": catalogue[3],
        "catalog_SHAPE_E1": catalogue[4],
        "catalog_SHAPE_E2": catalogue[5],
        "TYPE": main.kind.encode(),
        "EBV": 0.0,
        "SHAPE_R": seen.radius_arcsec,
        "SHAPE_E1": main.e1,
        "SHAPE_E2": main.e2,
        **{f"FLUX_{letter}": flux for letter, flux in _fluxes(seen).items()},
        **{f"FLUX_W{n}": math.nan for n in range(1, 5)},
    }


def _spectrum_columns(seen: Seen, name: str) -> dict[str, Any]:
    spectrum = seen.spectra[name]
    fluxes, redshift = _fluxes(seen), seen.thing.redshift
    error = _LINE_ERROR * (1 + redshift)
    kind = {"star": "STAR", "quasar": "QSO"}.get(seen.thing.kind, "GALAXY").encode()
    columns: dict[str, Any] = {
        "spectrum_flux": spectrum.flux,
        "spectrum_ivar": spectrum.ivar,
        "spectrum_lsf_sigma": np.full(
            len(spectrum.flux), SPECTROGRAPHS[name].line_spread_angstrom, np.float32
        ),
        "spectrum_lambda": spectrum.wavelength_angstrom.astype(np.float32),
        "spectrum_mask": spectrum.mask,
        "Z": redshift,
    }
    if name == "desi":
        return columns | {
            "ZERR": error,
            "ZWARN": 0,
            "SPECTYPE": kind,
            "EBV": 0.0,
            **{f"FLUX_{letter}": fluxes[letter] for letter in "GRZ"},
        }
    five = [math.nan, *fluxes.values()]  # u, then griz
    return columns | {
        "Z_ERR": error,
        "ZWARNING": 0,
        "CLASS": kind,
        "VDISP": math.nan,
        "VDISP_ERR": math.nan,
        "SPECTROFLUX": five,
        "SPECTROSYNFLUX": five,
    }


@dataclass(frozen=True, slots=True)
class _Shape:
    """Tractor's type, half-light radius along the major axis, and ellipticity."""

    kind: str
    radius_arcsec: float
    e1: float = 0.0
    e2: float = 0.0


def _ellipse(kind: str, radius_arcsec: float, ratio: float, angle_deg: float) -> _Shape:
    # position angles run from north to east, and east is to the left
    strength, twice = (1 - ratio) / (1 + ratio), 2 * math.radians(angle_deg - 90)
    return _Shape(kind, radius_arcsec, strength * math.cos(twice), strength * math.sin(twice))


def _galaxy_shape(galaxy: Galaxy) -> _Shape:
    if galaxy.thickness > 0:
        return _ellipse("EXP", galaxy.radius_arcsec, max(galaxy.thickness, 0.1), galaxy.angle_deg)
    if galaxy.bulge_share == 1:
        major = galaxy.radius_arcsec / math.sqrt(galaxy.axis_ratio)
        return _ellipse("SER", major, galaxy.axis_ratio, galaxy.angle_deg)
    kind = "EXP" if galaxy.bulge_share < 0.2 else "SER"
    return _ellipse(kind, galaxy.radius_arcsec, galaxy.axis_ratio, galaxy.angle_deg)


def _shape(thing: SkyObject) -> _Shape:
    if thing.point is not None or not thing.galaxies:
        return _Shape("PSF", 0.0)
    return _galaxy_shape(thing.galaxies[0])


def _sources(thing: SkyObject) -> list[tuple[float, ...]]:
    """Column, row, number of the type, radius, e1, e2 of sources in the frame, nearest first."""
    found = [(0.0, 0.0, _shape(thing))] if thing.point is not None else []
    found += [(g.x_arcsec, g.y_arcsec, _galaxy_shape(g)) for g in thing.galaxies]
    for other in thing.neighbours:
        kind = "EXP" if other.radius_arcsec else "PSF"
        ratio = other.axis_ratio if other.radius_arcsec else 1.0
        shape = _ellipse(kind, other.radius_arcsec, ratio, other.angle_deg)
        found.append((other.x_arcsec, other.y_arcsec, shape))
    middle = (IMAGE_SIZE - 1) / 2
    rows: list[tuple[float, ...]] = [
        (
            float(round(x / PIXEL_SCALE_ARCSEC + middle)),
            float(round(y / PIXEL_SCALE_ARCSEC + middle)),
            float(_TYPES.index(shape.kind)),
            shape.radius_arcsec,
            shape.e1,
            shape.e2,
        )
        for x, y, shape in found
    ]
    inside = [row for row in rows if min(row[:2]) >= 0 and max(row[:2]) < IMAGE_SIZE]
    return sorted(inside, key=lambda row: math.hypot(row[0] - middle, row[1] - middle))[
        :_NUM_SOURCES
    ]


def _object_mask(sources: list[tuple[float, ...]]) -> UInt8[ndarray, "y x"]:
    """The number of its type on the disc of each source, as the builders paint it."""
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    steps = np.arange(IMAGE_SIZE)
    for x, y, kind, radius_arcsec, *_ in reversed(sources):
        reach = max(radius_arcsec / PIXEL_SCALE_ARCSEC, _MIN_MASK_PIXELS)
        mask[np.hypot(steps[None, :] - x, steps[:, None] - y) < reach] = int(kind)
    return mask
