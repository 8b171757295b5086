"""Simulated spectra: lines where the redshift puts them, colours that agree, honest noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from training.sky.starlight import (
    EMISSION_LINES,
    LIGHT_SPEED_KM_S,
    QUASAR_LINES,
    QuasarGlow,
    Starlight,
    StarSurface,
    colours,
    rest_curve,
    rest_wavelength_angstrom,
)
from training.sky.starlight import observed_flux as flux_at
from training.surveys.simulated_spectra import DESI, SDSS, observe, wavelength_angstrom

OLD = Starlight(old=1.0, middle=0.0, young=0.0)
YOUNG = Starlight(old=0.0, middle=0.0, young=1.0, metal_poor=0.5)
WAVE = wavelength_angstrom(SDSS)


def observed_flux(
    light: Starlight | StarSurface | QuasarGlow, *, redshift: float, flux_r_nmgy: float
) -> np.ndarray:
    return flux_at(light, redshift=redshift, flux_r_nmgy=flux_r_nmgy, wavelength_angstrom=WAVE)


def between(flux: np.ndarray, low: float, high: float) -> float:
    return float(flux[(low < WAVE) & (high > WAVE)].mean())


def test_the_grid_is_that_of_sdss() -> None:
    assert len(WAVE) == 3840
    assert WAVE[0] == pytest.approx(3801.9, abs=0.1)
    np.testing.assert_allclose(np.diff(np.log10(WAVE)), 1e-4, rtol=0.01)


@pytest.mark.parametrize("redshift", [0.0, 0.03, 0.12, 0.25])
@pytest.mark.parametrize("line", ["Halpha", "Hbeta", "[OIII]5008", "[NII]6585", "[SII]6718"])
def test_emission_lines_are_redshifted(line: str, redshift: float) -> None:
    flux = observed_flux(YOUNG, redshift=redshift, flux_r_nmgy=10.0)
    expected = EMISSION_LINES[line][0] * (1 + redshift)
    near = np.abs(WAVE - expected) < 9

    peak = WAVE[near][flux[near].argmax()]

    assert peak == pytest.approx(expected, abs=2.0)
    assert flux[near].max() > 1.1 * np.median(flux[np.abs(WAVE - expected) < 150])


@pytest.mark.parametrize("redshift", [0.05, 0.2, 0.5])
def test_old_stars_have_calcium_lines_and_the_4000_angstrom_break(redshift: float) -> None:
    flux = observed_flux(OLD, redshift=redshift, flux_r_nmgy=10.0)
    stretch = 1 + redshift

    for calcium in (3934.8, 3969.6):
        near = np.abs(WAVE - calcium * stretch) < 14
        dip = WAVE[near][flux[near].argmin()]
        assert dip == pytest.approx(calcium * stretch, abs=4 * stretch)
    red = between(flux * WAVE**2, 4000 * stretch, 4100 * stretch)
    blue = between(flux * WAVE**2, 3850 * stretch, 3950 * stretch)
    assert 1.5 < red / blue < 2.4  # D_n(4000) of early-type galaxies


def test_star_forming_galaxies_have_no_strong_break() -> None:
    flux = observed_flux(YOUNG, redshift=0.1, flux_r_nmgy=10.0) * WAVE**2

    assert between(flux, 4400, 4510) / between(flux, 4235, 4345) < 1.3


@pytest.mark.parametrize("light", [OLD, YOUNG, StarSurface(temperature_k=6000.0)])
@pytest.mark.parametrize("redshift", [0.0, 0.15])
def test_spectrum_and_photometry_agree(light: Starlight | StarSurface, redshift: float) -> None:
    flux = observed_flux(light, redshift=redshift, flux_r_nmgy=10.0)

    def nanomaggies(centre: float, width: float) -> float:
        response = np.exp(-0.69 * (2 * (WAVE - centre) / width) ** 12)
        # counts of photons per log wavelength, over those of a flat 1 nmgy source
        flat = 3.631e-29 * LIGHT_SPEED_KM_S * 1e13 / WAVE**2 * 1e17
        counts = [(density * WAVE**2 * response).sum() for density in (flux, flat)]
        return float(counts[0] / counts[1])

    assert nanomaggies(6420, 1480) == pytest.approx(10.0, rel=0.01)
    ratio = nanomaggies(4730, 1480) / nanomaggies(6420, 1480)
    assert ratio == pytest.approx(colours(light, redshift)[0], rel=0.01)


def test_colours_are_those_of_real_galaxies_and_stars() -> None:
    def g_minus_r(light: Starlight | StarSurface, redshift: float = 0.0) -> float:
        return -2.5 * float(np.log10(colours(light, redshift)[0]))

    assert 0.7 < g_minus_r(OLD) < 0.9
    assert g_minus_r(OLD, 0.3) > 1.4
    assert g_minus_r(YOUNG) < 0.2
    hot_to_cool = [g_minus_r(StarSurface(temperature_k=k)) for k in (15e3, 9e3, 6e3, 4.5e3, 3.3e3)]
    assert (np.diff(hot_to_cool) > 0.1).all()


def test_dust_reddens() -> None:
    dusty = Starlight(old=1.0, middle=0.0, young=0.0, dust_mag=1.0)

    assert colours(dusty, 0.1)[0] < colours(OLD, 0.1)[0]
    assert colours(dusty, 0.1)[3] > colours(OLD, 0.1)[3]


def test_balmer_lines_are_deepest_in_stars_of_nine_thousand_kelvin() -> None:
    depth = {}
    for kelvin in (4_500.0, 9_000.0, 22_000.0):
        flux = observed_flux(StarSurface(temperature_k=kelvin), redshift=0.0, flux_r_nmgy=10.0)
        side = 0.5 * (between(flux, 4780, 4810) + between(flux, 4915, 4945))
        depth[kelvin] = 1 - between(flux, 4860, 4865) / side

    assert depth[9_000.0] > 0.5
    assert depth[9_000.0] > 2 * max(depth[4_500.0], depth[22_000.0])


def test_noise_is_what_ivar_says() -> None:
    clean = observed_flux(OLD, redshift=0.1, flux_r_nmgy=40.0)

    spectrum = observe(clean, quality=1.0, rng=np.random.default_rng(5))

    good = ~spectrum.mask
    scaled = (spectrum.flux - clean)[good] * np.sqrt(spectrum.ivar[good])
    assert scaled.std() == pytest.approx(1, abs=0.04)
    assert (spectrum.ivar[spectrum.mask] == 0).all()
    assert spectrum.mask[np.abs(WAVE - 5578.9) < 5].all()  # the brightest line of the night sky
    assert spectrum.mask.mean() < 0.03


@pytest.mark.parametrize(("mag", "low", "high"), [(17.0, 18, 40), (18.5, 8, 18), (19.8, 2, 7)])
def test_signal_to_noise_is_that_of_sdss(mag: float, low: float, high: float) -> None:
    clean = observed_flux(OLD, redshift=0.1, flux_r_nmgy=10 ** (0.4 * (22.5 - mag)))
    spectrum = observe(clean, quality=1.0, rng=np.random.default_rng(5))
    r = (WAVE > 5700) & (WAVE < 7100) & ~spectrum.mask

    assert low < float(np.median(clean[r] * np.sqrt(spectrum.ivar[r]))) < high


def test_the_desi_grid_is_that_of_its_coadds() -> None:
    wave = wavelength_angstrom(DESI)

    assert len(wave) == 7781
    assert wave[0] == 3600.0
    assert wave[-1] == 9824.0
    np.testing.assert_allclose(np.diff(wave), 0.8)


def test_both_spectrographs_see_the_same_light() -> None:
    desi = wavelength_angstrom(DESI)
    fine = flux_at(OLD, redshift=0.1, flux_r_nmgy=10.0, wavelength_angstrom=desi)
    coarse = observed_flux(OLD, redshift=0.1, flux_r_nmgy=10.0)

    np.testing.assert_allclose(np.interp(WAVE, desi, fine), coarse, rtol=0.02)
    # DESI goes bluer and redder than SDSS
    assert desi[0] < WAVE[0] < WAVE[-1] < desi[-1]


def test_noise_of_desi_is_what_ivar_says() -> None:
    wave = wavelength_angstrom(DESI)
    clean = flux_at(OLD, redshift=0.1, flux_r_nmgy=40.0, wavelength_angstrom=wave)

    spectrum = observe(clean, quality=1.0, rng=np.random.default_rng(5), spectrograph=DESI)

    good = ~spectrum.mask
    scaled = (spectrum.flux - clean)[good] * np.sqrt(spectrum.ivar[good])
    assert scaled.std() == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(spectrum.wavelength_angstrom, wave)


@pytest.mark.parametrize(("redshift", "lines"), [(0.4, 2), (1.5, 2), (2.3, 3)])
def test_broad_lines_of_quasars_are_redshifted(redshift: float, lines: int) -> None:
    glow = QuasarGlow(slope=-1.5)
    flux = observed_flux(glow, redshift=redshift, flux_r_nmgy=5.0)

    seen = 0
    for _, rest, width, broad in QUASAR_LINES:
        centre = rest * (1 + redshift)
        if not (broad and width > 10 and WAVE[0] + 200 < centre < WAVE[-1] - 200):
            continue
        near = np.abs(WAVE / centre - 1) < 0.004
        side = np.abs(np.abs(WAVE / centre - 1) - 0.035) < 0.004
        seen += flux[near].mean() > 1.05 * flux[side].mean()
    assert seen >= lines
    assert (flux > 0).all()


def test_quasars_are_bluer_than_sun_like_stars() -> None:
    quasar = colours(QuasarGlow(slope=-1.6), 1.2)
    sun = colours(StarSurface(temperature_k=5700.0), 0.0)

    assert quasar[0] > sun[0]


def contrast(wave: np.ndarray, flux: np.ndarray, width_angstrom: float) -> np.ndarray:
    """Lines alone: flux over its running mean."""
    num = int(width_angstrom / np.median(np.diff(wave))) // 2 * 2 + 1
    padded = np.pad(flux, num // 2, mode="edge")
    return flux / np.convolve(padded, np.ones(num) / num, "valid") - 1


@pytest.mark.parametrize(
    ("file", "light", "low", "high", "width", "least"),
    [
        ("STAR-G-v0.1", StarSurface(temperature_k=5800.0), 3850, 7000, 150.0, 0.5),
        ("QSO-LOZ-v1.1", QuasarGlow(slope=-1.5), 1750, 3200, 400.0, 0.8),
        ("QSO-LOZ-v1.1", QuasarGlow(slope=-1.5), 4300, 7000, 400.0, 0.8),
        ("QSO-HIZ-v1.1", QuasarGlow(slope=-1.5), 1250, 3000, 300.0, 0.8),
    ],
)
def test_lines_are_where_redrock_has_them(
    shared_data: Path,
    file: str,
    light: StarSurface | QuasarGlow,
    low: float,
    high: float,
    width: float,
    least: float,
) -> None:
    path = shared_data / "desi_redrock_templates" / f"rrtemplate-{file}.fits"
    with fits.open(path) as opened:
        header, template = opened[0].header, opened[0].data[0].astype(np.float64)
    wave = header["CRVAL1"] + header["CDELT1"] * np.arange(len(template))
    if header.get("LOGLAM"):
        wave = 10**wave
    part = (low < wave) & (wave < high)
    ours = np.interp(wave[part], rest_wavelength_angstrom(), rest_curve(light))

    lines = contrast(wave[part], ours, width)
    theirs = contrast(wave[part], template[part], width)

    assert np.corrcoef(lines, theirs)[0, 1] > least
