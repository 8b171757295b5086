"""A simulated frame: the light of an object through atmosphere, camera and noise.

Depth and seeing follow the Legacy Surveys DR10 (Dey et al. 2019, AJ 157, 168, Table 5 and later
releases). Structure is blurred by Fourier transform with a Moffat point-spread function drawn by
GalSim.
"""

from __future__ import annotations

from dataclasses import dataclass

import galsim
import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex64, Float32, Float64
from numpy import ndarray

from training.observations import IMAGE_SIZE, PIXEL_SCALE_ARCSEC, Image
from training.surveys.light_maps import (
    GRID_SIZE,
    MARGIN,
    OVERSAMPLING,
    STEP_ARCSEC,
    Map,
    add_neighbour,
    axis_arcsec,
    galaxy_layers,
    lensed_map,
)
from training.surveys.simulated_spectra import (
    BANDS,
    NUM_BANDS,
    R_BAND,
    Light,
    colours,
    observed_flux,
)
from training.surveys.sky_objects import SkyObject

_DEPTH_MAG = (24.7, 23.9, 23.6, 23.0)  # 5 sigma, point source, AB
_SEEING_ARCSEC = (1.29, 1.18, 1.12, 1.10)  # full width at half maximum
_SKY_MAG_ARCSEC2 = (22.0, 21.1, 20.2, 19.0)
_MOFFAT_BETA = 3.5
_FIBRE_RADIUS_ARCSEC = 1.5
_PSF_SIZE = 128  # fine pixels a side


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The night: one value a band, g r i z."""

    seeing_arcsec: tuple[float, ...]
    sky_sigma_nmgy: tuple[float, ...]  # one pixel
    psf_shear: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A frame without noise, and what the object in it is."""

    flux: Float32[ndarray, "band y x"]  # nanomaggies per pixel, all four bands
    total_flux_nmgy: Float64[ndarray, " band"]  # of the object, also outside the frame
    radius_arcsec: float  # half-light; 0 = a star
    fibre_light: tuple[tuple[Light, float, float], ...]  # light, redshift, r flux in the fibre


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Seeing and depth of one frame."""
    night = float(rng.normal(0, 0.08))
    seeing, sigma = [], []
    for depth, typical in zip(_DEPTH_MAG, _SEEING_ARCSEC, strict=True):
        fwhm = typical * float(np.exp(night + rng.normal(0, 0.04)))
        seeing.append(fwhm)
        depth = depth + float(rng.normal(0, 0.12))
        point_sigma = 10 ** (0.4 * (22.5 - depth)) / 5
        # matched-filter noise of a point is that of a pixel times the root of effective pixels
        sigma.append(point_sigma / np.sqrt(_effective_pixels(typical)))
    shear = rng.normal(0, 0.015, size=2)
    return Conditions(
        seeing_arcsec=tuple(seeing),
        sky_sigma_nmgy=tuple(sigma),
        psf_shear=(float(shear[0]), float(shear[1])),
    )


def _effective_pixels(fwhm_arcsec: float) -> float:
    """1 over the sum of squares of a Moffat profile, in pixels."""
    radius = fwhm_arcsec / (2 * np.sqrt(2 ** (1 / _MOFFAT_BETA) - 1)) / PIXEL_SCALE_ARCSEC
    return np.pi * radius**2 * (2 * _MOFFAT_BETA - 1) / (_MOFFAT_BETA - 1) ** 2


def _psf(conditions: Conditions, band: int) -> galsim.GSObject:
    moffat = galsim.Moffat(beta=_MOFFAT_BETA, fwhm=conditions.seeing_arcsec[band])
    return moffat.shear(g1=conditions.psf_shear[0], g2=conditions.psf_shear[1])


def _psf_transform(psf: galsim.GSObject) -> Complex64[ndarray, "ky kx"]:
    stamp = psf.drawImage(
        nx=_PSF_SIZE, ny=_PSF_SIZE, scale=STEP_ARCSEC, method="no_pixel", dtype=np.float32,
        offset=(0.5, 0.5),
    ).array  # fmt: skip
    grid = np.zeros((GRID_SIZE, GRID_SIZE), dtype=np.float32)
    grid[:_PSF_SIZE, :_PSF_SIZE] = stamp / stamp.sum()
    # the peak lies on pixel _PSF_SIZE / 2 and has to come to pixel 0
    return scipy.fft.rfft2(np.roll(grid, (-_PSF_SIZE // 2, -_PSF_SIZE // 2), axis=(0, 1)))


def _to_camera(fine: Map) -> Float32[ndarray, "row column"]:
    """Add up fine pixels and cut the frame out."""
    frame = fine[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return frame.reshape(IMAGE_SIZE, OVERSAMPLING, IMAGE_SIZE, OVERSAMPLING).sum(axis=(1, 3))


@dataclass(slots=True)
class _Part:
    """Light of one population, before it is blurred."""

    light: Light
    redshift: float
    flux_nmgy: Float64[ndarray, " band"]
    map: Map
    lane: Map | None = None
    gain: float = 1.0  # magnification by a lens


def _parts(thing: SkyObject, rng: np.random.Generator) -> list[_Part]:
    parts = []
    for galaxy in thing.galaxies:
        total = 10 ** (0.4 * (22.5 - galaxy.mag_r))
        shape = {
            name: colours(getattr(galaxy, name), galaxy.redshift)
            for name in ("bulge", "disc", "young")
        }
        for layer in galaxy_layers(galaxy, rng):
            parts.append(
                _Part(
                    getattr(galaxy, layer.population),
                    galaxy.redshift,
                    shape[layer.population] * total * layer.share,
                    layer.light,
                    layer.lane,
                )
            )
    if thing.source is not None:
        lens = thing.galaxies[0]
        arcs = lensed_map(thing.source, lens.x_arcsec, lens.y_arcsec)
        flux = colours(thing.source.light, thing.source.redshift)
        flux = flux * 10 ** (0.4 * (22.5 - thing.source.mag_r))
        gain = float(arcs.sum())
        parts.append(_Part(thing.source.light, thing.source.redshift, flux, arcs, gain=gain))
    if thing.star is not None:
        flux = colours(thing.star, thing.redshift) * 10 ** (0.4 * (22.5 - thing.star_mag_r))
        point = np.zeros((GRID_SIZE, GRID_SIZE), dtype=np.float32)
        half = GRID_SIZE // 2
        point[half - 1 : half + 1, half - 1 : half + 1] = 0.25
        parts.append(_Part(thing.star, thing.redshift, flux, point))
    return parts


# Optical depth of a dust lane in each band over that in r.
_LANE_COLOUR = (1.35, 1.0, 0.82, 0.68)


def _dimming(lane: Map, band: int) -> Map:
    # dust lies in the middle plane, so part of the stars stand before it
    return 0.35 + 0.65 * np.exp(np.float32(-_LANE_COLOUR[band]) * lane)


def draw(thing: SkyObject, conditions: Conditions, rng: np.random.Generator) -> Drawn:
    """Draw a frame without noise in all four bands."""
    parts = _parts(thing, rng)
    scenes = np.zeros((NUM_BANDS, GRID_SIZE, GRID_SIZE), dtype=np.float32)
    for neighbour in thing.neighbours:
        add_neighbour(scenes, neighbour)
    total = np.zeros(NUM_BANDS)
    frames = np.empty((NUM_BANDS, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    fibre: list[tuple[Light, float, float]] = []
    for band, scene in enumerate(scenes):
        transform = _psf_transform(_psf(conditions, band))
        aperture = _fibre_aperture(transform) if band == R_BAND else None
        for part in parts:
            flux = part.flux_nmgy[band]
            light = part.map if part.lane is None else part.map * _dimming(part.lane, band)
            scene += light * np.float32(flux)
            # light outside the grid belongs to the total, dimmed like the rest
            dimmed = 1.0 if part.lane is None else float(light.sum() / part.map.sum())
            total[band] += flux * part.gain * dimmed
            if aperture is not None:
                in_fibre = float(np.vdot(light, aperture)) * float(flux)
                fibre.append((part.light, part.redshift, in_fibre))
        blurred = scipy.fft.irfft2(scipy.fft.rfft2(scene) * transform, s=scene.shape)
        frames[band] = _to_camera(blurred)
    return Drawn(
        flux=frames,
        total_flux_nmgy=total,
        radius_arcsec=thing.galaxies[0].radius_arcsec if thing.galaxies else 0.0,
        fibre_light=tuple(fibre),
    )


def _fibre_aperture(transform: Complex64[ndarray, "ky kx"]) -> Map:
    """How much of the light of each fine pixel falls into a fibre at the centre of the frame."""
    axis = axis_arcsec()
    inside = np.hypot(axis[:, None], axis[None, :]) < _FIBRE_RADIUS_ARCSEC
    spread = scipy.fft.rfft2(inside.astype(np.float32)) * np.conj(transform)
    return scipy.fft.irfft2(spread, s=inside.shape)


def spectrum_of(drawn: Drawn) -> Float64[ndarray, " pixel"]:
    """Noiseless spectrum of the light in the fibre, 1e-17 erg/s/cm2/Angstrom."""
    return np.sum(
        [
            observed_flux(light, redshift=redshift, flux_r_nmgy=max(flux, 0.0))
            for light, redshift, flux in drawn.fibre_light
        ],
        axis=0,
    )


def observe(
    drawn: Drawn, conditions: Conditions, *, with_i: bool, rng: np.random.Generator
) -> Image:
    """Add the noise of sky and photons, and now and then a defect of the camera."""
    bands = [band for band in range(NUM_BANDS) if with_i or BANDS[band] != "DES-I"]
    clean = drawn.flux[bands]
    sigma = np.array(conditions.sky_sigma_nmgy, dtype=np.float32)[bands][:, None, None]
    sky = np.array([10 ** (0.4 * (22.5 - m)) for m in _SKY_MAG_ARCSEC2], dtype=np.float32)
    sky_nmgy = (sky * PIXEL_SCALE_ARCSEC**2)[bands][:, None, None]
    # photon counting: variance grows with the light as it does with the sky's own
    variance = sigma**2 * (1 + np.maximum(clean, 0) / sky_nmgy)
    ivar = _rounded_down(1 / variance, bits=9)
    noise = rng.standard_normal(clean.shape, dtype=np.float32) / np.sqrt(ivar)
    step = np.exp2(np.floor(np.log2(sigma / 16)))  # as survey files are compressed
    flux = np.round((clean + noise) / step) * step
    mask = _defects(flux.shape, rng)
    flux[mask] = 0
    ivar[mask] = 0
    return Image(
        flux=flux.astype(np.float32),
        ivar=ivar,
        mask=mask,
        bands=tuple(BANDS[band] for band in bands),
    )


def _rounded_down(values: Float32[ndarray, "*shape"], *, bits: int) -> Float32[ndarray, "*shape"]:
    """Keep so many bits of the mantissa: files compress better and noise is drawn to match."""
    keep = np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)
    return (values.astype(np.float32).view(np.uint32) & keep).view(np.float32)


def _defects(shape: tuple[int, ...], rng: np.random.Generator) -> Bool[ndarray, "band y x"]:
    """Bad pixels in every tenth frame or so: cosmic rays, bad columns, a missing corner."""
    mask = np.zeros(shape, dtype=bool)
    size = shape[-1]
    if rng.random() < 0.10:
        for _ in range(int(rng.integers(1, 5))):
            band, row, column = rng.integers(shape[0]), rng.integers(size), rng.integers(size)
            slope = float(rng.uniform(-1, 1))
            for step in range(int(rng.integers(2, 9))):
                y, x = int(row + slope * step), int(column + step)
                if 0 <= y < size and x < size:
                    mask[band, y, x] = True
    if rng.random() < 0.04:
        first = int(rng.integers(size))
        mask[rng.integers(shape[0]), :, first : first + int(rng.integers(1, 3))] = True
    if rng.random() < 0.01:
        mask[rng.integers(shape[0]), : int(rng.integers(4, 24)), :] = True
    return mask
