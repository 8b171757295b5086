"""The arms of a DESI file: where their pixels are, in which units, on which common grid.

An arm is the HDUs X_WAVELENGTH, X_FLUX, X_IVAR and perhaps X_MASK, X being B, R and Z, or BRZ where
the arms were coadded before. A file that lacks an arm is read with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from training.surveys.coaddition import common_grid, first_pixel
from training.surveys.flux_density import check_inverse_variance, to_unit
from training.surveys.lazy_fits import Hdu, ImageRows, LazyFits
from training.surveys.wavelengths import medium_of, vacuum_angstrom

NAMES = ("B", "R", "Z")
RANGE_ANGSTROM = (3500.0, 10000.0)  # what the spectrographs see, and a little more
NO_UNIT = "no unit of flux given: taken as 1e-17 erg/s/cm2/Angstrom"


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of an open file."""

    first: int  # pixel of the grid that its first pixel is
    flux: ImageRows
    ivar: ImageRows
    mask: ImageRows | None
    flux_factor: Float64[ndarray, " pixel"]  # to 1e-17 erg/s/cm2/Angstrom


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms of an open file and the grid they are coadded on."""

    arms: tuple[Arm, ...]
    grid: Float64[ndarray, " wavelength"]  # vacuum Angstrom
    calibration: str  # arms, units and medium as they were written
    notes: tuple[str, ...]


def read_arms(opened: LazyFits, hdus: Mapping[str, Hdu], *, num_rows: int) -> Arms:
    """The arms of a file whose FIBERMAP has num_rows rows.

    Args:
        opened: The file.
        hdus: Its HDUs by name, PRIMARY among them.
        num_rows: Rows that each flux, ivar and mask must have.

    Raises:
        ValueError: there is no arm, one is incomplete or truncated, its shape or units are wrong,
            or the arms have no common grid.
    """
    names = [name.removesuffix("_WAVELENGTH") for name in hdus if name.endswith("_WAVELENGTH")]
    if not names:
        raise ValueError("no usable HDU: expected B_WAVELENGTH, R_WAVELENGTH or Z_WAVELENGTH")
    orphans = [name for name in hdus if name.endswith("_FLUX") and name[:-5] not in names]
    if orphans:
        raise ValueError(f"{orphans[0]} without the wavelengths of its arm")
    masked = [name for name in names if f"{name}_MASK" in hdus]
    if masked and masked != names:
        raise ValueError(f"only {' and '.join(masked)} of {' and '.join(names)} have a mask")
    wavelengths = {name: _wavelengths(opened, hdus, name) for name in names}
    grid = common_grid([vacuum for vacuum, _ in wavelengths.values()])
    arms = [
        _arm(opened, hdus, name, grid=grid, wavelength_angstrom=vacuum, num_rows=num_rows)
        for name, (vacuum, _) in wavelengths.items()
    ]
    units = [arm.flux.header.get("BUNIT", "").strip() for arm in arms]
    written = [as_written for _, as_written in wavelengths.values()]
    notes = []
    missing = [name for name in NAMES if name not in names]
    if missing and set(names) <= set(NAMES):
        notes.append(f"no arm {' and '.join(missing)} in the file")
    if any(as_written.endswith("air") for as_written in written):
        notes.append("wavelengths converted from air to vacuum")
    if not all(units):
        notes.append(NO_UNIT)
    return Arms(tuple(arms), grid, " | ".join((*names, *written, *units)), tuple(notes))


def weighted(
    arm: Arm, flux: ndarray, ivar: ndarray, mask: ndarray | None
) -> tuple[int, ndarray, ndarray]:
    """First pixel on the grid, flux and ivar of a row, in the unit of `Spectrum`.

    The ivar is 0 where the mask is not 0, or a value is not finite.
    """
    good = np.isfinite(flux) & np.isfinite(ivar)
    if mask is not None:
        good &= mask == 0
    scaled = np.where(good, flux, 0) * arm.flux_factor
    return arm.first, scaled, np.where(good, ivar, 0) / arm.flux_factor**2


def _arm(
    opened: LazyFits,
    hdus: Mapping[str, Hdu],
    name: str,
    *,
    grid: Float64[ndarray, " wavelength"],
    wavelength_angstrom: Float64[ndarray, " pixel"],
    num_rows: int,
) -> Arm:
    shape = (num_rows, len(wavelength_angstrom))
    flux = _rows(opened, hdus, f"{name}_FLUX", shape=shape)
    ivar = _rows(opened, hdus, f"{name}_IVAR", shape=shape)
    has_mask = f"{name}_MASK" in hdus
    unit, ivar_unit = (image.header.get("BUNIT", "").strip() for image in (flux, ivar))
    try:
        factor = to_unit(unit, wavelength_angstrom) if unit else np.ones(shape[1])
        if unit and ivar_unit:
            check_inverse_variance(ivar_unit, unit)
    except ValueError as error:
        raise ValueError(f"{flux.name}: {error}") from error
    return Arm(
        first=first_pixel(grid, wavelength_angstrom),
        flux=flux,
        ivar=ivar,
        mask=_rows(opened, hdus, f"{name}_MASK", shape=shape) if has_mask else None,
        flux_factor=factor,
    )


def _wavelengths(
    opened: LazyFits, hdus: Mapping[str, Hdu], arm: str
) -> tuple[Float64[ndarray, " pixel"], str]:
    """Vacuum Angstrom of an arm, and its unit and medium as they were written."""
    hdu = hdus[f"{arm}_WAVELENGTH"]
    image = opened.image(hdu)
    if image.num_rows != 1:
        raise ValueError(f"{image.name}: expected one axis, got {image.num_rows} rows")
    unit = hdu.header.get("BUNIT", "").strip()
    low, high = RANGE_ANGSTROM
    try:
        medium = medium_of(hdus["PRIMARY"].header, hdu.header)
        vacuum = vacuum_angstrom(
            image.take([0])[0].astype(np.float64), unit=unit, medium=medium or "vacuum"
        )
        if not (low <= vacuum[0] and vacuum[-1] <= high):
            raise ValueError(
                f"expected wavelengths between {low:g} and {high:g} Angstrom, got "
                f"{vacuum[0]:g} to {vacuum[-1]:g} (unit {unit or 'not given'})"
            )
    except ValueError as error:
        raise ValueError(f"{image.name}: {error}") from error
    return vacuum, f"{unit} {medium}"


def _rows(
    opened: LazyFits, hdus: Mapping[str, Hdu], name: str, *, shape: tuple[int, int]
) -> ImageRows:
    if name not in hdus:
        raise ValueError(f"no HDU {name}, though the wavelengths of its arm are there")
    image = opened.image(hdus[name])
    if (image.num_rows, image.num_pixels) != shape:
        swapped = (image.num_pixels, image.num_rows) == shape
        raise ValueError(
            f"{image.name}: expected {shape[0]} rows, as in FIBERMAP, of {shape[1]} pixels, as in "
            f"the wavelengths, got {image.num_rows} of {image.num_pixels}"
            f"{' (are the axes swapped?)' if swapped else ''}"
        )
    return image
