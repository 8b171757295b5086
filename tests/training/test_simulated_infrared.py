"""Infrared fluxes and the Milky Way's dust, against published colours and curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from training.sky.infrared import AB_MINUS_VEGA, wise_colours, wise_flux_nmgy
from training.sky.milky_way import BAND_COEFFICIENTS, transmission
from training.sky.starlight import Light, QuasarGlow, Starlight, StarSurface

PASSIVE = Starlight(old=0.95, middle=0.05, young=0.0, dust_mag=0.02)


def forming(dust_mag: float) -> Starlight:
    return Starlight(old=0.4, middle=0.35, young=0.25, dust_mag=dust_mag)


def vega(light: Light, redshift: float) -> np.ndarray:
    """W1 - W2, W2 - W3 and W3 - W4, Vega magnitudes."""
    mags = -2.5 * np.log10(wise_colours(light, redshift)) - np.array(AB_MINUS_VEGA)
    return np.asarray(-np.diff(mags))


# Wright et al. 2010, AJ 140, 1868, Fig. 12; Stern et al. 2012, ApJ 753, 30 (quasars: 0.8 and more)
@pytest.mark.parametrize(
    ("light", "redshift", "w1_w2", "w2_w3"),
    [
        (PASSIVE, 0.02, (-0.1, 0.1), (0.0, 1.5)),
        (PASSIVE, 0.1, (-0.1, 0.2), (0.0, 1.5)),
        (forming(0.3), 0.03, (0.0, 0.35), (2.0, 4.2)),
        (forming(0.6), 0.1, (0.0, 0.35), (2.0, 4.2)),
        (QuasarGlow(slope=-1.55), 0.3, (0.8, 1.5), (2.2, 4.0)),
        (QuasarGlow(slope=-1.55), 1.5, (0.8, 1.5), (2.2, 4.0)),
        (StarSurface(temperature_k=5800.0), 0.0, (-0.1, 0.15), (-0.2, 0.3)),
        (StarSurface(temperature_k=15000.0), 0.0, (-0.1, 0.1), (-0.2, 0.2)),
    ],
)
def test_wise_colours_are_those_of_their_kind(
    light: Light, redshift: float, w1_w2: tuple[float, float], w2_w3: tuple[float, float]
) -> None:
    first, second, _ = vega(light, redshift)

    assert w1_w2[0] < first < w1_w2[1]
    assert w2_w3[0] < second < w2_w3[1]


def test_the_sun_has_its_colour_from_r_to_w1() -> None:
    # AB, Willmer 2018, ApJS 236, 47: DES r 4.61, W1 5.91
    in_w1 = float(wise_colours(StarSurface(temperature_k=5772.0), 0.0)[0])

    assert -2.5 * np.log10(in_w1) == pytest.approx(5.91 - 4.61, abs=0.15)


def test_far_red_galaxies_are_bright_in_w1() -> None:
    # luminous red galaxies of DESI (Zhou et al. 2023, AJ 165, 58, Fig. 2): r - W1 grows to 2 to 4
    in_w1 = [2.5 * np.log10(wise_colours(PASSIVE, z)[0]) for z in (0.1, 0.3, 0.5, 0.8)]

    assert (np.diff(in_w1) > 0.4).all()
    assert 1.5 < in_w1[2] < 2.6
    assert 2.5 < in_w1[3] < 4.2


def test_what_dust_takes_comes_back_in_the_far_bands() -> None:
    bare, dusty = (wise_flux_nmgy([(forming(d), 0.03, 100.0)]) for d in (0.05, 0.8))

    assert dusty[2] > 1.3 * bare[2]
    np.testing.assert_allclose(
        wise_flux_nmgy([(PASSIVE, 0.1, 30.0), (PASSIVE, 0.1, 70.0)]),
        wise_flux_nmgy([(PASSIVE, 0.1, 100.0)]),
    )


def test_extinction_follows_the_published_curve_and_the_bands() -> None:
    # Fitzpatrick 1999, Table 4, by the spline in inverse wavelength that the paper asks for
    wave = np.array([26500, 12200, 6000, 5470, 4670, 4110, 2700, 2600.0])
    spline = CubicSpline(
        [0, *(1e4 / wave)], [0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591]
    )
    seen = np.linspace(3600, 10400, 200)
    found = -2.5 * np.log10(transmission(seen, 0.1)) / 0.1

    np.testing.assert_allclose(found, 0.86 * spline(1e4 / seen), rtol=0.03)
    at_bands = -2.5 * np.log10(transmission(np.array([4730.0, 6420, 7840, 9260]), 1.0))
    np.testing.assert_allclose(at_bands, BAND_COEFFICIENTS, rtol=0.08)
    np.testing.assert_array_equal(transmission(seen, 0.0), 1.0)
