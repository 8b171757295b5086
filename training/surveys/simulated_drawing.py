"""Objects of the simulated sky as a survey would give them, drawn without touching the disk.

Every object depends only on the seed, its number and what the plan of the sky says of it.
"""

from __future__ import annotations

import numpy as np

from training.observations import Observation
from training.surveys.population import draw_object
from training.surveys.scene import draw as draw_scene
from training.surveys.scene import draw_conditions, observe, spectrum_of
from training.surveys.simulated_catalogue import SURVEY, observation
from training.surveys.simulated_sky import Plan, SkyConfig, object_id
from training.surveys.simulated_spectra import BANDS
from training.surveys.simulated_spectra import observe as observe_spectrum


def draw_one(config: SkyConfig, layout: Plan, index: int) -> Observation:
    """Draw one object: image, spectrum where the plan gives it one, and catalogue."""
    if not 0 <= index < config.num_objects:
        raise ValueError(f"object number must lie in 0 to {config.num_objects - 1}, got {index}")
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1, index)))
    thing = draw_object(layout.kinds[index], rng)
    conditions = draw_conditions(rng)
    drawn = draw_scene(thing, conditions, rng)
    image = observe(drawn, conditions, with_i=bool(layout.has_i[index]), rng=rng)
    spectrum = None
    if layout.has_spectrum[index]:
        quality = float(np.exp(rng.normal(0.1, 0.2)))
        spectrum = observe_spectrum(spectrum_of(drawn), quality=quality, rng=rng)
    # catalogues measure bright things to a few per cent, faint ones to their noise
    point_sigma = 9 * np.array(conditions.sky_sigma_nmgy)
    blur = 1 + drawn.radius_arcsec**2
    measured = drawn.total_flux_nmgy * np.exp(rng.normal(0, 0.03, size=len(BANDS)))
    measured += rng.normal(0, 1, size=len(BANDS)) * point_sigma * np.sqrt(blur)
    radius = drawn.radius_arcsec * float(np.exp(rng.normal(0, 0.06)))
    return observation(
        object_id=object_id(config, index),
        seed=config.seed,
        ra_deg=float(layout.ra_deg[index]),
        dec_deg=float(layout.dec_deg[index]),
        image=image,
        flux_nmgy={
            band: float(np.float32(flux))
            for band, flux in zip(BANDS, measured, strict=True)
            if band in image.bands
        },
        radius_arcsec=float(np.float32(radius)),
        spectrum=spectrum,
        redshift=float(np.float32(thing.redshift)) if spectrum is not None else None,
        is_star=thing.star is not None,
        source=f"{SURVEY}:{config.seed}",
    )
