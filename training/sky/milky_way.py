"""Dust of our own Galaxy in front of everything: how much of the light it lets through.

The curve is that of Fitzpatrick 1999 (PASP 111, 63, Table 4, R_V = 3.1), times 0.86 as Schlafly &
Finkbeiner 2011 (ApJ 737, 103) measured it, so that E(B-V) is on the scale of Schlegel, Finkbeiner
& Davis 1998 as in the Legacy Surveys. Bands take the coefficients of the Legacy Surveys
(legacysurvey.org/dr10/catalogs, "Galactic Extinction Coefficients"). Numpy alone is needed here.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

BAND_COEFFICIENTS = (3.214, 2.165, 1.592, 1.211)  # griz of the Dark Energy Camera, mag
WISE_COEFFICIENTS = (0.184, 0.113, 0.0241, 0.00910)  # W1 to W4
_CURVE = np.array(
    [
        *((2600, 6.591), (2700, 6.265), (4110, 4.315), (4670, 3.806), (5470, 3.055)),
        *((6000, 2.688), (12200, 0.829), (26500, 0.265)),
    ]
)
_SCALE = 0.86


def transmission(wavelength_angstrom: ndarray, ebv_mag: float) -> ndarray:
    """Share of the light that comes through, at wavelengths from 2600 Angstrom to 2.65 micrometre.

    Power laws join the published points: within 3 % in magnitudes of the spline through them.
    """
    logarithm = np.interp(
        np.log(wavelength_angstrom), np.log(_CURVE[:, 0]), np.log(_SCALE * _CURVE[:, 1])
    )
    return np.asarray(10 ** (-0.4 * ebv_mag * np.exp(logarithm)))


def dimming(coefficients: tuple[float, ...], ebv_mag: float) -> ndarray:
    """Share of the light of each band that comes through, (band,)."""
    return np.asarray(10 ** (-0.4 * ebv_mag * np.array(coefficients)))
