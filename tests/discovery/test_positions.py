"""Positions as people write them."""

from __future__ import annotations

import astropy.units as u
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.positions import parse_position
from discovery.query import parse_cone


@pytest.mark.parametrize(
    "text",
    [
        "150.1 2.2",
        "150.1,2.2",
        "150.1, +2.2",
        "150.1,+2.2",
        "  150.1   +2.2 ",
        "150.1+2.2",
        "150.1° 2.2°",
        "10 00 24 +02 12 00",
        "10 00 24 02 12 00",
        "10:00:24 +02:12:00",
        "10:00:24.0,2:12:0",
        "10h00m24s +02d12m00s",
        "10h00m24s+02d12m00s",
        "https://www.legacysurvey.org/viewer?ra=150.1&dec=2.2&layer=ls-dr10&zoom=16",
        "https://www.legacysurvey.org/viewer/?layer=ls-dr9&ra=150.1&dec=%2B2.2",
        "https://www.legacysurvey.org/viewer?ra=150.1&dec=+2.2",
    ],
)
def test_accepted_forms_give_the_same_position(text: str) -> None:
    assert parse_position(text) == pytest.approx((150.1, 2.2), abs=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "12 34 56.7 -00 12 30",
        "12:34:56.7 -00:12:30",
        "12h34m56.7s -00d12m30s",
        "12 34 56.7, -00 12 30",
        "12:34:56.7-0:12:30",
        "12 34 56.7 \N{MINUS SIGN}00 12 30",
    ],
)
def test_minus_zero_degrees_keep_their_sign(text: str) -> None:
    ra_deg, dec_deg = parse_position(text)
    assert ra_deg == pytest.approx(15 * (12 + 34 / 60 + 56.7 / 3600))
    assert dec_deg == pytest.approx(-(12 / 60 + 30 / 3600))


@pytest.mark.parametrize("text", ["10, -00 12 30", "10 -00:12:30", "00 40 00 -0.2083333333"])
def test_degrees_and_sexagesimal_may_be_mixed_where_the_two_are_told_apart(text: str) -> None:
    assert parse_position(text) == pytest.approx((10, -(12 * 60 + 30) / 3600))


@settings(deadline=None)  # a busy machine is no failure
@given(ra=st.floats(0, 359.999), dec=st.floats(-89.999, 89.999))
def test_sexagesimal_agrees_with_astropy(ra: float, dec: float) -> None:
    position = SkyCoord(ra, dec, unit="deg")
    text = position.to_string("hmsdms", sep=" ", precision=6)
    there = SkyCoord(*parse_position(text), unit="deg")
    oracle = SkyCoord(text, unit=(u.hourangle, u.deg))
    assert there.separation(oracle).arcsec < 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M 31",
        "150.1",
        "1 2 3",
        "1 2 3 4",
        "12 34 -00 12 30",
        "nan nan",
        "1e2 3",
        "1,2,3",
        "150.1 - 2.2 3",
        "https://example.org/?x=1",
        "https://example.org/?ra=12:34:56&dec=2",
    ],
)
def test_bad_text_is_told_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected degrees .* viewer address"):
        parse_position(text)


@pytest.mark.parametrize("text", ["360 0", "10 90.5", "10 -91", "24 00 00 0 0 0"])
def test_positions_off_the_sky_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ra_deg in"):
        parse_position(text)


@pytest.mark.parametrize("text", ["12 60 00 0 0 0", "12 00 60 0 0 0", "1.5 2 3 0 0 0"])
def test_minutes_and_seconds_stay_below_sixty(text: str) -> None:
    with pytest.raises(ValueError, match="below 60"):
        parse_position(text)


def test_negative_right_ascension_is_refused() -> None:
    with pytest.raises(ValueError, match="right ascension must be 0 or more"):
        parse_position("-10 2.2")


def test_a_cone_is_three_numbers_in_degrees() -> None:
    assert parse_cone("150.1,-2.2,0.5") == (150.1, -2.2, 0.5)
    with pytest.raises(ValueError, match="RA,DEC,RADIUS"):
        parse_cone("150.1,-2.2")
    with pytest.raises(ValueError, match="radius of a cone"):
        parse_cone("150.1,-2.2,0")
