"""What the simulated survey reports of an object: an Observation with its catalogue columns."""

from __future__ import annotations

import math

import numpy as np

from training.observations import (
    CatalogueValue,
    Ellipses,
    Field,
    Image,
    Observation,
    Spectrum,
    fingerprint,
)
from training.surveys.gaia_spectra import GaiaView

SURVEY = "simulated"
# Of a GaiaView, named as the columns of the catalogue.
_ASTROMETRY = ("parallax_mas", "parallax_error_mas", "pmra_mas_per_yr", "pmdec_mas_per_yr")


def observation(
    *,
    object_id: str,
    seed: int,
    ra_deg: float,
    dec_deg: float,
    image: Image,
    flux_nmgy: dict[str, float],
    wise_nmgy: dict[str, float],
    ebv_mag: float,
    radius_arcsec: float,
    ellipticity: tuple[float, float],
    object_mask: Field,
    ellipses: Ellipses,
    spectrum: Spectrum | None,
    redshift: float | None,
    spectrum_class: str,
    gaia: GaiaView | None,
    source: str,
) -> Observation:
    """Put together what was measured; redshift and class are reported with a spectrum.

    Fluxes by band, as observed: through the dust of the Milky Way, whose E(B-V) is reported.
    """
    scalars: dict[str, float] = {}
    catalogue: dict[str, CatalogueValue] = {}
    for band, flux in flux_nmgy.items():
        letter = band[-1].lower()
        scalars[f"tok_flux_{letter}"] = flux
        catalogue[f"flux_{letter}_nmgy"] = flux
        if flux > 0:
            catalogue[f"mag_{letter}"] = 22.5 - 2.5 * math.log10(flux)
    for band, flux in wise_nmgy.items():
        if flux > 0:  # often it is not seen, and fluxes are tokenized by their logarithm
            scalars[f"tok_flux_{band.lower()}"] = flux
    scalars["tok_ebv"] = ebv_mag
    if radius_arcsec > 0:  # stars have no size, and sizes are tokenized by their logarithm
        scalars["tok_shape_r"] = radius_arcsec
        scalars["tok_shape_e1"], scalars["tok_shape_e2"] = ellipticity
        catalogue["radius_arcsec"] = radius_arcsec
    if redshift is not None:
        scalars["tok_z"] = redshift
        catalogue["redshift"] = redshift
        catalogue["redshift_source"] = SURVEY
        catalogue["spectrum_class"] = spectrum_class
    xp = None if gaia is None else gaia.xp
    if gaia is not None:
        scalars |= {**_gaia_scalars(gaia), "tok_ra": ra_deg, "tok_dec": dec_deg}
        catalogue |= {name: getattr(gaia, name) for name in _ASTROMETRY}
    xp_content = () if xp is None else (xp.bp, xp.rp)
    shapes = (ellipses.x, ellipses.y, ellipses.shape_e1, ellipses.shape_e2, ellipses.shape_r_arcsec)
    spectrum_content = (spectrum.flux, spectrum.ivar, spectrum.mask) if spectrum else (None,)
    motion = (
        () if gaia is None else (gaia.parallax_mas, gaia.pmra_mas_per_yr, gaia.pmdec_mas_per_yr)
    )
    numbers = np.array([ra_deg, dec_deg, *scalars.values(), *motion])
    return Observation(
        survey=SURVEY,
        release=f"seed-{seed}",
        source_id=object_id,
        object_id=object_id,
        fingerprint=fingerprint(
            object_id, "".join(image.bands), image.flux, image.ivar, image.mask, numbers,
            object_mask.value, *shapes, *spectrum_content, *xp_content,
        ),
        source=source,
        source_part=object_id,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=image,
        spectrum=spectrum,
        xp=xp,
        object_mask=object_mask,
        ellipses=ellipses,
        scalars=scalars,
        catalogue=catalogue,
    )  # fmt: skip


def _gaia_scalars(gaia: GaiaView) -> dict[str, float]:
    scalars = {f"tok_flux_{band}_gaia": getattr(gaia, f"flux_{band}") for band in ("g", "bp", "rp")}
    if gaia.parallax_mas > 0:  # noise can make it negative, and it is tokenized by its logarithm
        scalars["tok_parallax"] = gaia.parallax_mas
    return scalars
