"""Spectra of Multimodal Universe files, and XP coefficients of its Gaia data set."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from training.observations import NUM_XP_COEFFICIENTS, Spectrum, XpCoefficients
from training.surveys import mmu_columns as columns
from training.surveys.coaddition import DESI_GRID_ANGSTROM
from training.surveys.mmu_columns import Dataset
from training.surveys.mmu_rows import Row, array

SPECTRUM_RANGE_ANGSTROM = (2500.0, 12500.0)  # all spectrographs; nm and micrometre lie outside
FLOAT32_ANGSTROM = 1e-3  # wavelengths are rounded by up to this
FAINTEST_PEAK = 1e-9  # of a spectrum, in 1e-17 erg/s/cm2/Angstrom: below it the unit is another


def spectrum(dataset: Dataset, row: Row) -> Spectrum:
    """The spectrum without its padding.

    Raises:
        ValueError: lengths differ, a unit is another, or no pixel is usable.
    """
    flux, ivar, mask, wavelength = (
        array(row, columns.SPECTRUM[key], 1, "a value a pixel")
        for key in ("flux", "ivar", "mask", "wavelength")
    )
    if len({len(each) for each in (flux, ivar, mask, wavelength)}) != 1:
        raise ValueError("spectrum: flux, ivar, mask and lambda differ in length")
    kept = np.isfinite(wavelength) & (wavelength > 0)
    angstrom = wavelength[kept].astype(np.float64)
    low, high = SPECTRUM_RANGE_ANGSTROM
    if not len(angstrom) or not (low <= angstrom.min() and angstrom.max() <= high):
        span = f"{angstrom.min():g} to {angstrom.max():g}" if len(angstrom) else "none"
        raise ValueError(f"expected wavelengths of {low:g} to {high:g} Angstrom, got {span}")
    if (
        dataset.name == "desi"
        and len(angstrom) == len(DESI_GRID_ANGSTROM)
        and np.abs(angstrom - DESI_GRID_ANGSTROM).max() < FLOAT32_ANGSTROM
    ):
        angstrom = DESI_GRID_ANGSTROM.copy()
    with np.errstate(over="ignore"):
        flux, ivar = flux[kept].astype(np.float32), ivar[kept].astype(np.float32)
    bad = mask[kept].astype(bool) | ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    if bad.all():
        raise ValueError("no usable pixel: every one is masked, NaN, or its ivar is not positive")
    peak = float(np.abs(flux[~bad]).max())
    if 0 < peak < FAINTEST_PEAK:
        raise ValueError(
            f"expected flux in 1e-17 erg/s/cm2/Angstrom, got {peak:.1e} at most: another unit"
        )
    return Spectrum(
        flux=np.where(bad, np.float32(0), flux),
        ivar=np.where(bad, np.float32(0), ivar),
        mask=bad,
        wavelength_angstrom=angstrom,
    )


def coefficients(row: Row, notes: list[str]) -> XpCoefficients:
    """55 coefficients of BP and 55 of RP; an arm of nothing but zeros or NaN is not there."""
    values = array(row, columns.XP["coefficients"], 1, "110 coefficients").astype(np.float32)
    if len(values) != 2 * NUM_XP_COEFFICIENTS:
        raise ValueError(f"expected 55 coefficients of BP and 55 of RP, got {len(values)}")
    errors = row.get(columns.XP["errors"])
    if errors is not None:
        errors = np.asarray(errors).astype(np.float32)
        if errors.shape != values.shape:
            raise ValueError(f"expected as many errors as coefficients, got {errors.shape}")
    arms: dict[str, ndarray | None] = {}
    for number, arm in enumerate(("bp", "rp")):
        part = slice(number * NUM_XP_COEFFICIENTS, (number + 1) * NUM_XP_COEFFICIENTS)
        there = not (np.isnan(values[part]).all() or (values[part] == 0).all())
        arms[arm] = values[part].copy() if there else None
        arms[f"{arm}_error"] = None
        if not there:
            notes.append(f"no {arm.upper()} spectrum")
        elif errors is not None and np.isfinite(errors[part]).all() and (errors[part] > 0).all():
            arms[f"{arm}_error"] = errors[part].copy()
        else:
            notes.append(f"{arm.upper()} errors are not all positive: left out")
    return XpCoefficients(**arms)
