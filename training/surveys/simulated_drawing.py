"""Objects of the simulated sky as surveys would give them, drawn without touching the disk.

Every object depends only on the seed, its number and what the plan of the sky says of it, not on
the batch that it is drawn in. Each question has its own stream of random numbers, so that asking
one more of an object changes nothing else about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from training.observations import Image, Observation, Spectrum
from training.sky import scene
from training.sky.infrared import NOISE_NMGY, WISE_BANDS, wise_flux_nmgy
from training.sky.lens_population import with_clumps
from training.sky.milky_way import BAND_COEFFICIENTS, WISE_COEFFICIENTS, dimming, transmission
from training.sky.objects import SkyObject
from training.sky.population import draw_object
from training.sky.starlight import BANDS, StarSurface
from training.surveys import simulated_spectra
from training.surveys.exposure import observe
from training.surveys.gaia_spectra import GaiaView, seen_by_gaia
from training.surveys.nuisances import (
    Nuisances,
    draw_nuisances,
    on_that_night,
    spoiled,
    with_trail,
)
from training.surveys.simulated_catalogue import SURVEY, observation
from training.surveys.simulated_sky import Plan, SkyConfig, object_id
from training.surveys.simulated_sources import Sources, field_of, sources_in
from training.surveys.simulated_spectra import SPECTROGRAPHS, wavelength_angstrom

BATCH_SIZE = 4  # maps of so few objects stay in the cache of a processor; a GPU wants hundreds
_OBJECT, _NUISANCES, _DESI, _GAIA, _SOURCE, _WISE = 1, 2, 3, 4, 5, 6  # streams of random numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One imagined object through every instrument."""

    index: int
    thing: SkyObject
    image: Image
    psf_fwhm_arcsec: dict[str, float]  # of each band of the image
    spectra: dict[str, Spectrum]  # by the name of the spectrograph; empty if none was taken
    gaia: GaiaView | None
    flux_nmgy: Float64[ndarray, " band"]  # measured, griz
    wise_nmgy: dict[str, float]  # measured, W1 to W4, AB
    ebv_mag: float  # of the Milky Way, which all light came through
    radius_arcsec: float  # measured; 0 = a point
    sources: Sources


def _stream(config: SkyConfig, what: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(what, index)))


def draw_observations(
    config: SkyConfig,
    layout: Plan,
    indices: Iterable[int],
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> Iterator[Observation]:
    """Draw objects by number as observations, with the spectrum that the config asks for."""
    for seen in draw_seen(config, layout, indices, batch_size=batch_size, device=device):
        yield as_observation(config, layout, seen)


def draw_seen(
    config: SkyConfig,
    layout: Plan,
    indices: Iterable[int],
    *,
    spectrographs: tuple[str, ...] = (),
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> Iterator[Seen]:
    """Draw objects by number through every instrument.

    Args:
        config: Of the sky.
        layout: Its plan.
        indices: Numbers of objects.
        spectrographs: Whose spectra to take; that of the config by default.
        batch_size: Objects whose images are drawn at once; changes nothing but speed and memory.
        device: Where images are drawn.

    Raises:
        ValueError: a number is not in [0, num_objects).
    """
    wanted = spectrographs or (config.spectrograph,)
    pending: list[int] = []
    for index in indices:
        if not 0 <= index < config.num_objects:
            raise ValueError(
                f"object number must lie in 0 to {config.num_objects - 1}, got {index}"
            )
        pending.append(index)
        if len(pending) == batch_size:
            yield from _draw_batch(config, layout, pending, wanted, device)
            pending = []
    if pending:
        yield from _draw_batch(config, layout, pending, wanted, device)


def _draw_batch(
    config: SkyConfig,
    layout: Plan,
    indices: list[int],
    spectrographs: tuple[str, ...],
    device: torch.device | str,
) -> Iterator[Seen]:
    rngs = [_stream(config, _OBJECT, index) for index in indices]
    spoilers = [draw_nuisances(config, _stream(config, _NUISANCES, index)) for index in indices]
    things, nights = [], []
    for index, rng, nuisances in zip(indices, rngs, spoilers, strict=True):
        thing = draw_object(layout.kinds[index], rng)
        if thing.source is not None and not thing.source.clumps:
            source_rng = _stream(config, _SOURCE, index)
            if source_rng.random() < config.clumpy_source:
                thing = replace(thing, source=with_clumps(thing.source, source_rng))
        things.append(replace(thing, saturated=nuisances.star))
        nights.append(on_that_night(scene.draw_conditions(rng), nuisances))
    drawn = scene.draw(things, nights, rngs, device=device)
    frames = drawn.flux.cpu().numpy()
    for row, index in enumerate(indices):
        yield _see(
            config,
            layout,
            index,
            things[row],
            nights[row],
            spoilers[row],
            frames[row],
            drawn.total_flux_nmgy[row],
            drawn.radius_arcsec[row],
            drawn.light[row],
            drawn.fibre_light[row],
            spectrographs,
            rngs[row],
        )


def _see(
    config: SkyConfig,
    layout: Plan,
    index: int,
    thing: SkyObject,
    night: scene.Conditions,
    nuisances: Nuisances,
    frame: ndarray,
    total_flux_nmgy: ndarray,
    true_radius_arcsec: float,
    all_light: tuple[scene.PopulationLight, ...],
    fibre_light: tuple[scene.PopulationLight, ...],
    spectrographs: tuple[str, ...],
    rng: np.random.Generator,
) -> Seen:
    ebv_mag = float(layout.ebv_mag[index])
    if ebv_mag > 0:
        dimmed = dimming(BAND_COEFFICIENTS, ebv_mag)
        frame = frame * dimmed.astype(np.float32)[:, None, None]
        total_flux_nmgy = total_flux_nmgy * dimmed
    lit = with_trail(frame, night, nuisances.trail)
    image = observe(lit, night, with_i=bool(layout.has_i[index]), rng=rng)
    image = spoiled(image, nuisances)
    spectra = {}
    if layout.has_spectrum[index]:
        quality = float(np.exp(rng.normal(0.1, 0.2)))
        # SDSS's noise is part of the object's own stream: it is drawn whoever asks
        for name in dict.fromkeys(("sdss", *spectrographs)):
            spectrograph = SPECTROGRAPHS[name]
            wave = wavelength_angstrom(spectrograph)
            clean = scene.spectrum_of(fibre_light, wave)
            if ebv_mag > 0:
                clean = clean * transmission(wave, ebv_mag)
            spectra[name] = simulated_spectra.observe(
                clean,
                quality=quality,
                rng=rng if name == "sdss" else _stream(config, _DESI, index),
                spectrograph=spectrograph,
            )
        spectra = {name: spectra[name] for name in spectrographs}
    # catalogues measure bright things to a few per cent, faint ones to their noise
    point_sigma = 9 * np.array(night.sky_sigma_nmgy)
    blur = 1 + true_radius_arcsec**2
    measured = total_flux_nmgy * np.exp(rng.normal(0, 0.03, size=len(BANDS)))
    measured += rng.normal(0, 1, size=len(BANDS)) * point_sigma * np.sqrt(blur)
    gaia = None
    if layout.has_xp[index] and isinstance(thing.point, StarSurface):
        gaia_rng = _stream(config, _GAIA, index)
        gaia = seen_by_gaia(thing.point, mag_r=thing.point_mag_r, ebv_mag=ebv_mag, rng=gaia_rng)
    return Seen(
        index=index,
        thing=thing,
        image=image,
        psf_fwhm_arcsec={
            band: fwhm
            for band, fwhm in zip(BANDS, night.seeing_arcsec, strict=True)
            if band in image.bands
        },
        spectra=spectra,
        gaia=gaia,
        flux_nmgy=measured,
        wise_nmgy=_seen_by_wise(all_light, ebv_mag, _stream(config, _WISE, index)),
        ebv_mag=ebv_mag,
        radius_arcsec=true_radius_arcsec * float(np.exp(rng.normal(0, 0.06))),
        sources=sources_in(thing),
    )


def _seen_by_wise(
    light: tuple[scene.PopulationLight, ...], ebv_mag: float, rng: np.random.Generator
) -> dict[str, float]:
    clean = wise_flux_nmgy((part.light, part.redshift, part.flux_r_nmgy) for part in light)
    clean *= dimming(WISE_COEFFICIENTS, ebv_mag)
    measured = clean * np.exp(rng.normal(0, 0.03, size=len(clean))) + rng.normal(0, NOISE_NMGY)
    return {band: float(np.float32(flux)) for band, flux in zip(WISE_BANDS, measured, strict=True)}


def as_observation(config: SkyConfig, layout: Plan, seen: Seen) -> Observation:
    """The object with the spectrum of the config's spectrograph."""
    spectrum = seen.spectra.get(config.spectrograph)
    return observation(
        object_id=object_id(config, seen.index),
        seed=config.seed,
        ra_deg=float(layout.ra_deg[seen.index]),
        dec_deg=float(layout.dec_deg[seen.index]),
        image=seen.image,
        flux_nmgy={
            band: float(np.float32(flux))
            for band, flux in zip(BANDS, seen.flux_nmgy, strict=True)
            if band in seen.image.bands
        },
        wise_nmgy=seen.wise_nmgy,
        ebv_mag=float(np.float32(seen.ebv_mag)),
        radius_arcsec=float(np.float32(seen.radius_arcsec)),
        ellipticity=(
            float(np.float32(seen.sources.main.e1)),
            float(np.float32(seen.sources.main.e2)),
        ),
        object_mask=field_of(seen.sources.mask),
        ellipses=seen.sources.ellipses,
        spectrum=spectrum,
        redshift=float(np.float32(seen.thing.redshift)) if spectrum is not None else None,
        spectrum_class={"star": "STAR", "quasar": "QSO"}.get(seen.thing.kind, "GALAXY"),
        gaia=seen.gaia,
        source=f"{SURVEY}:{config.seed}",
    )
