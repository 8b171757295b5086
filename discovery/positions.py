"""Positions as people write them: degrees, sexagesimal, a pasted viewer address, a name."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from training.observations import check_position

_ACCEPTED = (
    'expected degrees ("150.1 2.2", "150.1,+2.2"), hours and degrees '
    '("12 34 56.7 -00 12 30", "12:34:56.7 -00:12:30"), or a viewer address with ra= and dec='
)
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
_SEPARATORS = re.compile(r"[\s:hmsd°'\"\u2032\u2033]+")
_NAME_TIMEOUT_S = 10


def parse_position(text: str) -> tuple[float, float]:
    """Read a position: ICRS right ascension and declination in degrees.

    Two numbers are degrees; six are hours, minutes, seconds and degrees, arcminutes, arcseconds,
    with spaces, colons or unit letters between them. The sign of "-00 12 30" is kept. Where a
    comma or the sign of the declination parts the two, either may be degrees. A pasted address
    (the Legacy Survey viewer's, or any other with ra= and dec=) is read in degrees.

    Raises:
        ValueError: the text is none of these, or the position is off the sky.
    """
    if "://" in text:
        ra_deg, dec_deg = _from_address(text)
    else:
        ra_deg, dec_deg = _from_numbers(text)
    check_position(ra_deg, dec_deg)
    return ra_deg, dec_deg


def _from_address(text: str) -> tuple[float, float]:
    parts = urlsplit(text.strip())
    fields = parse_qs(parts.query) | parse_qs(parts.fragment)
    try:
        return float(fields["ra"][0]), float(fields["dec"][0])
    except (KeyError, ValueError):
        raise ValueError(f"no ra= and dec= in degrees in {text.strip()!r}: {_ACCEPTED}") from None


def _from_numbers(text: str) -> tuple[float, float]:
    refused = ValueError(f"cannot read {text!r} as a position: {_ACCEPTED}")
    plain = text.replace("\N{MINUS SIGN}", "-").strip()
    halves = [half for half in re.split(r",|(?<=.)(?=[+-])", plain) if half.strip()]
    if len(halves) == 2:
        ra, dec = (_split(half) for half in halves)
    elif len(halves) == 1:
        numbers = _split(plain)
        ra, dec = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    else:
        raise refused
    negative = bool(dec) and dec[0].startswith("-")
    ra = [ra[0].removeprefix("+"), *ra[1:]] if ra else ra
    dec = [dec[0].lstrip("+-"), *dec[1:]] if dec else dec
    if len(ra) not in (1, 3) or len(dec) not in (1, 3):
        raise refused
    if ra[0].startswith("-"):
        raise ValueError(f"right ascension must be 0 or more, got {text!r}: {_ACCEPTED}")
    if not all(_NUMBER.fullmatch(number) for number in (*ra, *dec)):
        raise refused
    ra_deg = float(ra[0]) if len(ra) == 1 else 15 * _sexagesimal(ra, text)
    dec_deg = float(dec[0]) if len(dec) == 1 else _sexagesimal(dec, text)
    return ra_deg, -dec_deg if negative else dec_deg


def _split(text: str) -> list[str]:
    return [part for part in _SEPARATORS.split(text.strip()) if part]


def _sexagesimal(parts: list[str], text: str) -> float:
    """Whole units from units, minutes and seconds, all without a sign."""
    units, minutes, seconds = (float(part) for part in parts)
    if units % 1 or minutes % 1 or minutes >= 60 or seconds >= 60:
        raise ValueError(
            f"expected whole hours, degrees and minutes, minutes and seconds below 60, got {text!r}"
        )
    return units + minutes / 60 + seconds / 3600


def resolve_name(name: str) -> tuple[float, float]:
    """Ask CDS Sesame where an object with a published name is: ICRS degrees. Needs the network.

    Raises:
        ValueError: Sesame does not know the name, or cannot be reached.
    """
    from astropy.coordinates.name_resolve import (
        NameResolveError,
        get_icrs_coordinates,
        sesame_url,
    )
    from astropy.utils.data import conf

    try:
        with conf.set_temp("remote_timeout", _NAME_TIMEOUT_S):
            position = get_icrs_coordinates(name)
    except NameResolveError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"could not resolve the name {name!r} ({reason}). Names are looked up at "
            f"{sesame_url.get()[0]}, which needs the network; a position works without it"
        ) from error
    return float(position.ra.deg) % 360, float(position.dec.deg)
