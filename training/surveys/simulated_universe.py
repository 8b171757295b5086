"""The simulated sky as data sets of the Multimodal Universe, one a survey.

`<survey>/simulated/healpix=N/001-of-001.hdf5` for legacysurvey, sdss, desi and gaia, cells of
NSIDE 16, nested, with the columns of the builders in
github.com/MultimodalUniverse/MultimodalUniverse, scripts/*/build_parent_sample.py. As there, the
mask of an image is True where a pixel is good, that of a spectrum where it is bad. Images are the
96 px that encoders see in place of 160, and the object mask shows ellipses in place of discs. What
is not simulated (SPECTROFLUX in u) is NaN. The same object has the same position and simulated_id
everywhere.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix
from numpy import ndarray

from training.observations import IMAGE_SIZE, NUM_XP_COEFFICIENTS, PIXEL_SCALE_ARCSEC
from training.sky.starlight import BANDS
from training.surveys.simulated_drawing import Seen, draw_seen
from training.surveys.simulated_files import catalogue_of
from training.surveys.simulated_sky import SkyConfig, object_id, plan
from training.surveys.simulated_spectra import SPECTROGRAPHS
from training.surveys.simulating_processes import in_processes

SURVEYS = ("legacysurvey", "sdss", "desi", "gaia")
_HEALPIX_DEPTH = 4  # NSIDE 16
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
            "parallax_error": seen.gaia.parallax_error_mas,
            "pmra": seen.gaia.pmra_mas_per_yr,
            "pmdec": seen.gaia.pmdec_mas_per_yr,
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
    sources = seen.sources
    catalogue = catalogue_of(sources)
    return {
        "image_array": flux,
        "image_ivar": ivar,
        "image_mask": good,
        "image_band": [band.encode() for band in BANDS],
        "image_psf_fwhm": [seen.psf_fwhm_arcsec.get(band, math.nan) for band in BANDS],
        "image_scale": [PIXEL_SCALE_ARCSEC] * len(BANDS),
        "object_mask": sources.mask,
        **{
            name: values.astype(np.int16) if name in ("catalog_X", "catalog_Y") else values
            for name, values in catalogue.items()
        },
        "TYPE": sources.main.kind.encode(),
        "EBV": seen.ebv_mag,
        "SHAPE_R": seen.radius_arcsec,
        "SHAPE_E1": sources.main.e1,
        "SHAPE_E2": sources.main.e2,
        **{f"FLUX_{letter}": flux for letter, flux in _fluxes(seen).items()},
        **{f"FLUX_{band}": flux for band, flux in seen.wise_nmgy.items()},
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
            "EBV": seen.ebv_mag,
            **{f"FLUX_{letter}": fluxes[letter] for letter in "GRZ"},
            **{f"FLUX_{band}": seen.wise_nmgy[band] for band in ("W1", "W2")},
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
