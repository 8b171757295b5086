"""Shards of the simulated survey: HDF5 with the column names of the Multimodal Universe.

One row an object, with all that every instrument saw of it; what was not observed is empty.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from training.observations import (
    IMAGE_SIZE,
    NUM_XP_COEFFICIENTS,
    PIXEL_SCALE_ARCSEC,
    Ellipses,
    Image,
    Observation,
    ObservationBatch,
    Skipped,
    Spectrum,
    XpCoefficients,
)
from training.sky.infrared import WISE_BANDS
from training.sky.starlight import BANDS
from training.surveys.gaia_spectra import GaiaView
from training.surveys.mmu_columns import SOURCE_TYPES
from training.surveys.neighbours import NUM_ELLIPSES
from training.surveys.simulated_catalogue import SURVEY, observation
from training.surveys.simulated_drawing import Seen
from training.surveys.simulated_sources import Sources, field_of
from training.surveys.simulated_spectra import SPECTROGRAPHS, Spectrograph

FORMAT = 3  # of the files and of what is drawn: a change makes old caches stale
_FLUXES = tuple(f"FLUX_{band[-1]}" for band in BANDS)
_WISE_FLUXES = tuple(f"FLUX_{band}" for band in WISE_BANDS)
_IMAGE_SHAPE = (len(BANDS), IMAGE_SIZE, IMAGE_SIZE)
_GAIA = {  # column: field of GaiaView
    "phot_g_mean_flux": "flux_g",
    "phot_bp_mean_flux": "flux_bp",
    "phot_rp_mean_flux": "flux_rp",
    "parallax": "parallax_mas",
    "parallax_error": "parallax_error_mas",
    "pmra": "pmra_mas_per_yr",
    "pmdec": "pmdec_mas_per_yr",
}
_ELLIPSES = {  # column: field of Ellipses
    "catalog_X": "x",
    "catalog_Y": "y",
    "catalog_SHAPE_R": "shape_r_arcsec",
    "catalog_SHAPE_E1": "shape_e1",
    "catalog_SHAPE_E2": "shape_e2",
}
_XP_SHAPE = (2 * NUM_XP_COEFFICIENTS,)  # BP, then RP
_ANY = -1  # as many pixels as the spectrograph has
# Columns: type, shape of one row, what an empty row holds.
_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "object_id": ("S24", (), None),
    "ra": (np.float64, (), 0),
    "dec": (np.float64, (), 0),
    "type": ("S6", (), None),  # GALAXY, QSO or STAR where there is a spectrum
    **{name: (np.float32, (), np.nan) for name in _FLUXES},
    **{name: (np.float32, (), np.nan) for name in _WISE_FLUXES},
    "EBV": (np.float32, (), 0),
    "SHAPE_R": (np.float32, (), 0),
    "SHAPE_E1": (np.float32, (), 0),
    "SHAPE_E2": (np.float32, (), 0),
    "Z": (np.float32, (), np.nan),
    "image_band": ("S8", (len(BANDS),), None),  # "" = not observed
    "image_scale": (np.float32, (len(BANDS),), PIXEL_SCALE_ARCSEC),
    "image_psf_fwhm": (np.float32, (len(BANDS),), np.nan),
    "image_array": (np.float32, _IMAGE_SHAPE, 0),
    "image_ivar": (np.float32, _IMAGE_SHAPE, 0),
    "image_mask": (bool, _IMAGE_SHAPE, True),
    "object_mask": (np.uint8, _IMAGE_SHAPE[1:], 0),
    "catalog_TYPE": (np.float32, (NUM_ELLIPSES,), 0),  # 0 = no more sources
    **{name: (np.float32, (NUM_ELLIPSES,), 0) for name in _ELLIPSES},
    "spectrum_flux": (np.float32, (_ANY,), 0),
    "spectrum_ivar": (np.float32, (_ANY,), 0),
    "spectrum_lsf_sigma": (np.float32, (_ANY,), 0),  # Angstrom
    "spectrum_mask": (bool, (_ANY,), True),
    "spectrum_lambda": (np.float32, (_ANY,), 0),
    "coeff": (np.float32, _XP_SHAPE, np.nan),
    "coeff_error": (np.float32, _XP_SHAPE, np.nan),
    **{name: (np.float32, (), np.nan) for name in _GAIA},
}


def create(file: Path, *, num_rows: int, seed: int, spectrograph: Spectrograph) -> Any:
    """A new shard with empty rows, open for writing."""
    shard = h5py.File(file, "w")
    shard.attrs["survey"] = SURVEY
    shard.attrs["seed"] = seed
    for name, (dtype, shape, fill) in _COLUMNS.items():
        row = tuple(spectrograph.num_pixels if size == _ANY else size for size in shape)
        # one object a chunk, so that one can be read alone
        packing = {"chunks": (1, *row), "compression": "lzf", "shuffle": True}
        large = np.prod(row) > 100
        shard.create_dataset(
            name, (num_rows, *row), dtype, fillvalue=fill, **(packing if large else {})
        )
    return shard


def write_row(
    shard: Any, row: int, seen: Seen, observed: Observation, spectrograph: Spectrograph
) -> None:
    """Write what was seen of one object, and the observation made of it."""
    image, spectrum = seen.image, observed.spectrum
    values: dict[str, Any] = {
        "object_id": observed.object_id.encode(),
        "ra": observed.ra_deg,
        "dec": observed.dec_deg,
        "EBV": observed.scalars["tok_ebv"],
        **{
            f"SHAPE_{name.upper()}": observed.scalars.get(f"tok_shape_{name}", 0.0)
            for name in ("r", "e1", "e2")
        },
        **{f"FLUX_{band}": flux for band, flux in seen.wise_nmgy.items()},
        "object_mask": seen.sources.mask,
        **catalogue_of(seen.sources),
        "image_band": [b.encode() if b in image.bands else b"" for b in BANDS],
        "image_psf_fwhm": [seen.psf_fwhm_arcsec.get(band, math.nan) for band in BANDS],
    }
    for band, name in zip(BANDS, _FLUXES, strict=True):
        if band in image.bands:
            values[name] = observed.scalars[f"tok_flux_{band[-1].lower()}"]
    planes = [BANDS.index(band) for band in image.bands]
    for name, pixels in (
        ("image_array", image.flux),
        ("image_ivar", image.ivar),
        ("image_mask", image.mask),
    ):
        full = np.full(_IMAGE_SHAPE, _COLUMNS[name][2], dtype=pixels.dtype)
        full[planes] = pixels
        values[name] = full
    if spectrum is not None:
        values |= {
            "Z": observed.scalars["tok_z"],
            "type": str(observed.catalogue["spectrum_class"]).encode(),
            "spectrum_flux": spectrum.flux,
            "spectrum_ivar": spectrum.ivar,
            "spectrum_lsf_sigma": np.full(len(spectrum.flux), spectrograph.line_spread_angstrom),
            "spectrum_mask": spectrum.mask,
            "spectrum_lambda": spectrum.wavelength_angstrom,
        }
    if seen.gaia is not None:
        xp = seen.gaia.xp
        values |= {
            "coeff": np.concatenate([xp.bp, xp.rp]),
            "coeff_error": np.concatenate([xp.bp_error, xp.rp_error]),
            **{name: getattr(seen.gaia, field) for name, field in _GAIA.items()},
        }
    for name, value in values.items():
        shard[name][row] = value


def catalogue_of(sources: Sources) -> dict[str, Float32[ndarray, " source"]]:
    """Columns catalog_* of one row, filled up with zeros."""
    columns = {"catalog_TYPE": sources.types} | {
        name: getattr(sources.ellipses, field) for name, field in _ELLIPSES.items()
    }
    filled = {name: np.zeros(NUM_ELLIPSES, np.float32) for name in columns}
    for name, values in columns.items():
        filled[name][: len(values)] = values
    return filled


def check_columns(shard: Any) -> int:
    """How many objects there are; ValueError if it is not one of our files."""
    num = None
    sizes = {_ANY: tuple(each.num_pixels for each in SPECTROGRAPHS.values())}
    for name, (_, shape, _) in _COLUMNS.items():
        column = shard.get(name)
        if not isinstance(column, h5py.Dataset) or not (
            len(column.shape) == len(shape) + 1
            and all(
                have in sizes.get(want, (want,))
                for have, want in zip(column.shape[1:], shape, strict=True)
            )
        ):
            raise ValueError(f"expected a column {name!r} with rows of shape {shape}")
        if num is not None and len(column) != num:
            raise ValueError(f"column {name!r} has {len(column)} rows, the first one has {num}")
        num = len(column)
    if "seed" not in shard.attrs:
        raise ValueError("expected an attribute 'seed'")
    return int(num or 0)


def read_rows(shard: Any, file: Path, start: int, stop: int) -> ObservationBatch:
    """Some rows of a shard; a bad one is skipped with its reason."""
    observations, skipped = [], []
    columns = _columns_of(shard, start, stop)
    for row in range(stop - start):
        try:
            observations.append(_observation_at(columns, file, row))
        except ValueError as error:
            skipped.append(Skipped(str(file), f"row {start + row}: {error}"))
    return ObservationBatch(tuple(observations), tuple(skipped))


def read_row(shard: Any, file: Path, row: int) -> Observation:
    """One row of a shard.

    Raises:
        ValueError: the row is bad.
    """
    return _observation_at(_columns_of(shard, row, row + 1), file, 0)


def _columns_of(shard: Any, start: int, stop: int) -> dict[str, Any]:
    columns = {name: shard[name][start:stop] for name in _COLUMNS}
    columns["seed"] = int(shard.attrs["seed"])
    return columns


def _spectrograph_with(num_pixels: int) -> str:
    """The one whose spectra have so many pixels; the columns were checked to fit one."""
    return next(each.name for each in SPECTROGRAPHS.values() if each.num_pixels == num_pixels)


def _observation_at(columns: dict[str, Any], file: Path, row: int) -> Observation:
    names = [name.decode() for name in columns["image_band"][row]]
    planes = [plane for plane, name in enumerate(names) if name]
    image = Image(
        flux=columns["image_array"][row][planes],
        ivar=columns["image_ivar"][row][planes],
        mask=columns["image_mask"][row][planes],
        bands=tuple(names[plane] for plane in planes),
    )
    redshift = float(columns["Z"][row])
    spectrum = None
    if math.isfinite(redshift):
        spectrum = Spectrum(
            flux=columns["spectrum_flux"][row].copy(),  # not a view that keeps the batch alive
            ivar=columns["spectrum_ivar"][row].copy(),
            mask=columns["spectrum_mask"][row].copy(),
            wavelength_angstrom=columns["spectrum_lambda"][row].astype(np.float64),
            survey=_spectrograph_with(columns["spectrum_lambda"].shape[1]),
        )
    return observation(
        object_id=columns["object_id"][row].decode(),
        seed=columns["seed"],
        ra_deg=float(columns["ra"][row]),
        dec_deg=float(columns["dec"][row]),
        image=image,
        flux_nmgy={band: float(columns[f"FLUX_{band[-1]}"][row]) for band in image.bands},
        wise_nmgy={band: float(columns[f"FLUX_{band}"][row]) for band in WISE_BANDS},
        ebv_mag=float(columns["EBV"][row]),
        radius_arcsec=float(columns["SHAPE_R"][row]),
        ellipticity=(float(columns["SHAPE_E1"][row]), float(columns["SHAPE_E2"][row])),
        object_mask=field_of(_types_at(columns, row)),
        ellipses=_ellipses_at(columns, row),
        spectrum=spectrum,
        redshift=redshift if spectrum is not None else None,
        spectrum_class=columns["type"][row].decode(),
        gaia=_gaia_at(columns, row),
        source=str(file.resolve()),
    )


def _types_at(columns: dict[str, Any], row: int) -> UInt8[ndarray, "y x"]:
    types: UInt8[ndarray, "y x"] = columns["object_mask"][row]
    if types.max() >= len(SOURCE_TYPES):
        raise ValueError(
            f"object_mask: expected types up to {len(SOURCE_TYPES) - 1}, got {types.max()}"
        )
    return types


def _ellipses_at(columns: dict[str, Any], row: int) -> Ellipses:
    there = columns["catalog_TYPE"][row] > 0
    return Ellipses(**{field: columns[name][row][there] for name, field in _ELLIPSES.items()})


def _gaia_at(columns: dict[str, Any], row: int) -> GaiaView | None:
    values, errors = columns["coeff"][row].copy(), columns["coeff_error"][row].copy()
    if np.isnan(values).all():
        return None
    num = NUM_XP_COEFFICIENTS
    return GaiaView(
        xp=XpCoefficients(
            bp=values[:num], rp=values[num:], bp_error=errors[:num], rp_error=errors[num:]
        ),
        **{field: float(columns[name][row]) for name, field in _GAIA.items()},
    )
