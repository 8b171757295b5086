"""Gaia BP and RP mean spectra: coefficients of a row of the archive, and the flux they stand for.

The coefficients belong to the two sets of basis functions of DR3, 56 for BP and 57 for RP; those
of another set are other quantities and are refused. An arm that the archive lacks is None.

Source: De Angeli et al. 2023, A&A 674, A2; Montegriffo et al. 2023, A&A 674, A3.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from training.observations import NUM_XP_COEFFICIENTS, Spectrum, XpCoefficients
from training.surveys.gaia_table import Row, read_header, read_rows

BASIS = {"bp": 56, "rp": 57}  # bp_basis_function_id and rp_basis_function_id of DR3
FLUX_UNIT = 1e19  # W / m^2 / nm in 1e-17 erg / s / cm^2 / Angstrom
_NUM_CORRELATIONS = NUM_XP_COEFFICIENTS * (NUM_XP_COEFFICIENTS - 1) // 2
COEFFICIENT_COLUMNS = frozenset(
    f"{arm}_{name}"
    for arm in BASIS
    for name in ("basis_function_id", "n_parameters", "coefficients", "coefficient_errors")
)
_CALIBRATION_COLUMNS = COEFFICIENT_COLUMNS | {
    f"{arm}_{name}" for arm in BASIS for name in ("coefficient_correlations", "standard_deviation")
}


def coefficients(row: Row) -> XpCoefficients:
    """The coefficients of a row of xp_continuous_mean_spectrum.

    Raises:
        ValueError: neither arm is there, the number of coefficients is not 55, they belong to
            other basis functions, or a value is NaN or an error not positive.
    """
    values = {arm: _arm(row, arm) for arm in BASIS}
    errors = {arm: _errors(row, arm) if values[arm] is not None else None for arm in BASIS}
    return XpCoefficients(
        bp=values["bp"], rp=values["rp"], bp_error=errors["bp"], rp_error=errors["rp"]
    )


def calibrated_spectrum(source: Path, source_part: str) -> Spectrum:
    """Flux of a source of an XP file from 336 to 1020 nm, every 2 nm, as GaiaXPy calibrates it.

    Wavelengths are in vacuum. A pixel is bad where neither arm reaches. Reads nothing but the
    file, writes and prints nothing.

    Args:
        source: File with XP coefficients, their errors and correlations.
        source_part: The source_id.

    Raises:
        ValueError: the file or that source cannot be used.
        ImportError: GaiaXPy is not installed.
    """
    source = source.absolute()
    try:
        header = read_header(source)
        row = next(read_rows(source, header, wanted=_CALIBRATION_COLUMNS, only=source_part), None)
        if row is None:
            raise ValueError(f"holds no source {source_part!r}")
        if row.fault:
            raise ValueError(row.fault)
        columns = _gaiaxpy_columns(row, coefficients(row))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    return _calibrate(columns)


def _arm(row: Row, arm: str) -> Float32[ndarray, " n"] | None:
    values = row.array_of(f"{arm}_coefficients")
    if values is None:
        return None
    if len(values) != NUM_XP_COEFFICIENTS:
        raise ValueError(f"expected {NUM_XP_COEFFICIENTS} {arm}_coefficients, got {len(values)}")
    for name, expected in (("basis_function_id", BASIS[arm]), ("n_parameters", len(values))):
        given = row.number_of(f"{arm}_{name}")
        if given is not None and given != expected:
            raise ValueError(f"expected {arm}_{name} {expected}, got {given:g}")
    return _single(values)


def _errors(row: Row, arm: str) -> Float32[ndarray, " n"] | None:
    errors = row.array_of(f"{arm}_coefficient_errors")
    if errors is None:
        return None
    if len(errors) != NUM_XP_COEFFICIENTS:
        raise ValueError(
            f"expected {NUM_XP_COEFFICIENTS} {arm}_coefficient_errors, got {len(errors)}"
        )
    if not np.isfinite(errors).all():
        raise ValueError(f"{arm}_coefficient_errors hold NaN or infinity")
    return _single(errors)


def _single(values: ndarray) -> Float32[ndarray, " n"]:
    with np.errstate(over="ignore"):  # infinity is refused with a reason of its own
        return values.astype(np.float32)


def _gaiaxpy_columns(row: Row, checked: XpCoefficients) -> dict[str, Any]:
    """A row as GaiaXPy takes it, NaN for an arm that is missing."""
    columns: dict[str, Any] = {"source_id": int(row.source_id())}
    for arm in BASIS:
        there = getattr(checked, arm) is not None
        names = ("coefficients", "coefficient_errors", "coefficient_correlations")
        for name in names:
            values = row.array_of(f"{arm}_{name}") if there else None
            expected = _NUM_CORRELATIONS if name == names[2] else NUM_XP_COEFFICIENTS
            if there and (values is None or len(values) != expected):
                num_values = 0 if values is None else len(values)
                raise ValueError(f"{arm}_{name}: expected {expected} values, got {num_values}")
            columns[f"{arm}_{name}"] = values if there else np.nan
        deviation = row.number_of(f"{arm}_standard_deviation") if there else None
        if there and not (deviation is not None and deviation > 0):
            raise ValueError(f"{arm}_standard_deviation must be positive, got {deviation}")
        columns[f"{arm}_standard_deviation"] = np.nan if deviation is None else deviation
        columns[f"{arm}_n_parameters"] = NUM_XP_COEFFICIENTS if there else np.nan
    return columns


def _calibrate(columns: dict[str, Any]) -> Spectrum:
    import pandas as pd

    table = pd.DataFrame({name: pd.Series([value]) for name, value in columns.items()})
    with warnings.catch_warnings():
        # GaiaXPy 2.1.5 leaves files to the garbage collector and sets an option of pandas < 3.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            # gaiaxpy.calibrate draws a progress bar on stdout; the function below it need not.
            from gaiaxpy.calibrator.calibrator import _calibrate as calibrate
        except ImportError as error:
            raise ImportError(
                'calibrated XP spectra need GaiaXPy: pip install "skykin[surveys]"'
            ) from error
        spectra, wavelength_nm = calibrate(table, save_file=False, disable_info=True)
    flux = np.asarray(spectra["flux"].iloc[0], np.float64) * FLUX_UNIT
    sigma = np.asarray(spectra["flux_error"].iloc[0], np.float64) * FLUX_UNIT
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ivar = (1 / sigma**2).astype(np.float32)
    mask = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    return Spectrum(
        flux=np.where(mask, 0, flux).astype(np.float32),
        ivar=np.where(mask, 0, ivar).astype(np.float32),
        mask=mask,
        wavelength_angstrom=np.asarray(wavelength_nm, np.float64) * 10,
    )
