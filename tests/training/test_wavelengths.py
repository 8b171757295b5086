"""Wavelengths of any unit and medium become vacuum Angstrom, and contradictions are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.surveys.flux_density import check_inverse_variance, to_unit
from training.surveys.wavelengths import (
    air_to_vacuum,
    medium_of,
    refractive_index,
    vacuum_angstrom,
    vacuum_from_log10,
)

# Lines in standard air and vacuum, Angstrom, as SDSS publishes them
# (classic.sdss.org/dr7/products/spectra/vacwavelength.html), and the krypton line that the IDL
# Astronomy Library documents for its AIRTOVAC: 6056.125 is 6057.8019.
PUBLISHED = {
    "H beta": (4861.325, 4862.683, 0.01),
    "[O III] 4959": (4958.911, 4960.295, 0.002),
    "[O III] 5007": (5006.843, 5008.240, 0.002),
    "[N II] 6548": (6548.05, 6549.86, 0.006),
    "[N II] 6583": (6583.45, 6585.27, 0.006),
    "[S II] 6716": (6716.44, 6718.29, 0.006),
    "[S II] 6731": (6730.82, 6732.68, 0.006),
    "Kr I": (6056.125, 6057.8019, 0.0001),
}


def morton_1991(vacuum: np.ndarray) -> np.ndarray:
    """Refractive index of air after Morton 1991, ApJS 77, 119 (IAU standard, from Edlen 1953)."""
    wavenumber2 = (1e4 / vacuum) ** 2
    return 1 + 6.4328e-5 + 2.94981e-2 / (146 - wavenumber2) + 2.5540e-4 / (41 - wavenumber2)


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_lines_are_where_they_are_published(line: str) -> None:
    air, vacuum, tolerance = PUBLISHED[line]

    assert air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=tolerance)


def test_the_index_agrees_with_the_older_standard_of_morton() -> None:
    vacuum = np.linspace(3000, 11000, 500)

    # The two standards differ by 1.6e-8 at most here, 0.00018 Angstrom at 11000.
    np.testing.assert_allclose(refractive_index(vacuum), morton_1991(vacuum), rtol=0, atol=2e-8)


@given(st.floats(2001, 30000))
def test_the_iteration_finds_the_vacuum_wavelength_of_the_air_wavelength(wavelength: float) -> None:
    vacuum = air_to_vacuum(np.array([wavelength]))

    assert vacuum[0] > wavelength
    assert (vacuum / refractive_index(vacuum))[0] == pytest.approx(wavelength, abs=1e-8)


def test_below_2000_angstrom_nothing_changes() -> None:
    short = np.array([912.0, 1215.67, 1999.9])

    np.testing.assert_array_equal(air_to_vacuum(short), short)


@pytest.mark.parametrize(
    ("unit", "factor"), [("Angstrom", 1), ("nm", 10), ("", 1), ("um", 1e4), ("m", 1e10), ("AA", 1)]
)
def test_units_of_length_are_converted(unit: str, factor: float) -> None:
    angstrom = np.array([3600.0, 3600.8, 9824.0])

    np.testing.assert_allclose(vacuum_angstrom(angstrom / factor, unit=unit), angstrom, rtol=1e-14)


def test_nanometres_in_air_are_both_converted() -> None:
    found = vacuum_angstrom(np.array([486.1325, 500.6843]), unit="nm", medium="air")

    np.testing.assert_allclose(found, [4862.683, 5008.240], atol=0.01)


@pytest.mark.parametrize("unit", ["", "Angstrom", "log10(Angstrom)", "dex(Angstrom)"])
def test_logarithms_of_angstrom_are_undone(unit: str) -> None:
    loglam = np.array([3.55, 3.6, 4.0])

    np.testing.assert_allclose(vacuum_from_log10(loglam, unit=unit), 10**loglam, rtol=1e-14)


def test_logarithms_of_nanometres_are_undone() -> None:
    found = vacuum_from_log10(np.array([2.6, 2.7]), unit="log10(nm)")

    np.testing.assert_allclose(found, 10 ** np.array([3.6, 3.7]), rtol=1e-14)


@pytest.mark.parametrize(
    ("values", "unit", "reason"),
    [
        ([4000.0, 3999.0], "Angstrom", "not ascending"),
        ([4000.0, 4000.0], "Angstrom", "not ascending"),
        ([4000.0, np.nan], "Angstrom", "NaN or infinity"),
        ([4000.0, np.inf], "Angstrom", "NaN or infinity"),
        ([-1.0, 4000.0], "Angstrom", "between 100 and 1e"),
        ([3.6, 3.7], "Angstrom", "between 100 and 1e"),
        ([4000.0, 5000.0], "parsec", "unknown wavelength unit 'parsec'"),
        ([4000.0, 5000.0], "Hz", "unknown wavelength unit 'Hz'"),
    ],
)
def test_what_is_no_list_of_wavelengths_is_refused(
    values: list[float], unit: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        vacuum_angstrom(np.array(values), unit=unit)


@pytest.mark.parametrize(
    ("header", "medium"),
    [
        ({}, None),
        ({"VACUUM": "T"}, "vacuum"),
        ({"VACUUM": "F"}, "air"),
        ({"AIRORVAC": "vac"}, "vacuum"),
        ({"AIRORVAC": "air "}, "air"),
        ({"CTYPE1": "AWAV"}, "air"),
        ({"CTYPE1": "WAVE-LOG", "VACUUM": "T"}, "vacuum"),
        ({"CTYPE1": "LINEAR"}, None),
    ],
)
def test_headers_say_air_or_vacuum(header: dict[str, str], medium: str | None) -> None:
    assert medium_of(header) == medium


@pytest.mark.parametrize(
    "headers",
    [
        ({"VACUUM": "T", "AIRORVAC": "air"},),
        ({"VACUUM": "T"}, {"AIRORVAC": "air"}),
        ({"AIRORVAC": "vac", "CTYPE1": "AWAV"},),
    ],
)
def test_headers_that_contradict_each_other_are_refused(headers: tuple[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match="in air and in vacuum at once"):
        medium_of(*headers)


def test_a_medium_that_is_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="expected AIRORVAC 'air' or 'vac', got 'water'"):
        medium_of({"AIRORVAC": "water"})


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("10**-17 erg/(s cm2 Angstrom)", 1),  # DESI
        ("1E-17 erg/cm^2/s/Ang", 1),  # SDSS
        ("1e-17 erg s-1 cm-2 A-1", 1),
        ("1e-16 erg s-1 cm-2 Angstrom-1", 10),
        ("erg/s/cm^2/AA", 1e17),
        ("W / (m2 um)", 1e16),  # 1e7 erg/s over 1e4 cm2 and 1e4 Angstrom
    ],
)
def test_flux_densities_per_wavelength_are_scaled(unit: str, expected: float) -> None:
    np.testing.assert_allclose(to_unit(unit, np.array([4000.0, 8000.0])), expected, rtol=1e-12)


def test_flux_densities_per_frequency_depend_on_the_wavelength() -> None:
    # f_lambda = f_nu c / lambda^2; 1 Jy = 1e-23 erg/s/cm2/Hz, c = 2.99792458e18 Angstrom/s
    wavelength = np.array([4000.0, 8000.0])

    np.testing.assert_allclose(
        to_unit("Jy", wavelength), 1e-23 * 2.99792458e18 / wavelength**2 / 1e-17, rtol=1e-12
    )


@pytest.mark.parametrize("unit", ["mag", "counts", "electron / s", "nmgy", "m", "nonsense", "Jy/x"])
def test_what_is_no_flux_density_is_refused(unit: str) -> None:
    with pytest.raises(ValueError, match="expected a flux density such as 1e-17 erg"):
        to_unit(unit, np.array([4000.0]))


def test_the_unit_of_the_inverse_variance_must_fit() -> None:
    flux = "10**-17 erg/(s cm2 Angstrom)"

    check_inverse_variance("10**+34 (s2 cm4 Angstrom2) / erg2", flux)
    for wrong in ("10**-17 erg/(s cm2 Angstrom)", "10**+32 (s2 cm4 Angstrom2) / erg2", "Jy-2"):
        with pytest.raises(ValueError, match="unit of the inverse variance"):
            check_inverse_variance(wrong, flux)
