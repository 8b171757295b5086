"""Where the pixels of an image lie on the sky, by the WCS of its header.

wcslib reads a coordinate that is no number as 0 and says nothing; astropy meets a CTYPE that is no
text with an AttributeError. Here such cards are refused by name.

Source: FITS Standard 4.0, section 8.
"""

from __future__ import annotations

import math
import re

from astropy.io import fits
from astropy.wcs import WCS, WcsError

_TEXT = ("CTYPE1", "CTYPE2", "CUNIT1", "CUNIT2")
_NUMBER = re.compile(r"(?:CRVAL|CRPIX|CDELT|CROTA)[12]|(?:CD|PC)[12]_[12]|LONPOLE|LATPOLE")


def celestial_wcs(header: fits.Header) -> WCS:
    """The WCS of the first two axes.

    Raises:
        ValueError: there is none of the sky, one of its cards is no text or no finite number, or
            wcslib refuses it.
    """
    for key in _TEXT:
        if key in header and not isinstance(header[key], str):
            raise ValueError(f"unusable WCS: expected {key} as text, got {_shown(header[key])}")
    for key in filter(_NUMBER.fullmatch, header):
        value = header[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"unusable WCS: expected {key} as a number, got {_shown(value)}")
    try:
        wcs = WCS(header, naxis=2)
    except WcsError as error:
        raise ValueError(why_unusable(error)) from error
    if not wcs.has_celestial:
        raise ValueError("no celestial WCS (CTYPE1, CTYPE2)")
    missing = [key for key in ("CRVAL1", "CRVAL2") if key not in header]
    if missing:
        raise ValueError(f"unusable WCS: no {' and '.join(missing)}")
    return wcs


def why_unusable(error: WcsError) -> str:
    """What wcslib says, which first tells in which of its lines it stopped, then why."""
    why = [line for line in str(error).splitlines() if not line.startswith("ERROR")]
    return f"unusable WCS: {' '.join(why)}"


def _shown(value: object) -> str:
    return "nothing" if value is None or isinstance(value, fits.card.Undefined) else repr(value)
