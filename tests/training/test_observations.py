"""Observations refuse what no reader may give, and fingerprints tell contents apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from training.observations import (
    NUM_XP_COEFFICIENTS,
    Ellipses,
    Field,
    Image,
    Observation,
    Spectrum,
    XpCoefficients,
    check_position,
    fingerprint,
    sky_position,
)


def image(
    flux: float = 1.0,
    *,
    ivar: float = 1.0,
    mask: bool = False,
    bands: tuple[str, ...] = ("DES-G", "DES-R"),
    num_planes: int | None = None,
    scale: float = 0.262,
) -> Image:
    shape = (num_planes or len(bands), 4, 4)
    return Image(
        np.full(shape, flux, np.float32),
        np.full(shape, ivar, np.float32),
        np.full(shape, mask),
        bands,
        scale,
    )


def spectrum(wavelength: list[float], *, flux: float = 1.0, ivar: float = 1.0) -> Spectrum:
    num = len(wavelength)
    return Spectrum(
        np.full(num, flux, np.float32),
        np.full(num, ivar, np.float32),
        np.zeros(num, bool),
        np.array(wavelength),
    )


def field(value: float = 0.5) -> Field:
    return Field(np.full((4, 4), value, np.float32))


def ellipses(x: list[float]) -> Ellipses:
    ones = np.ones(len(x), np.float32)
    return Ellipses(
        x=np.array(x, np.float32),
        y=48 * ones,
        shape_e1=0 * ones,
        shape_e2=0 * ones,
        shape_r_arcsec=ones,
    )


def coefficients(value: float = 1.0) -> ndarray:
    return np.full(NUM_XP_COEFFICIENTS, value, np.float32)


def observation(**changes: object) -> Observation:
    values: dict[str, object] = {
        "survey": "composite", "release": "", "source_id": "a", "object_id": "a",
        "fingerprint": "0", "source": "/a.jpg", "image": image(),
    }  # fmt: skip
    return Observation(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image(bands=("DES-G", "DES-Y")), "unknown band 'DES-Y'"),
        (lambda: image(bands=("DES-G", "DES-G")), "given twice"),
        (lambda: image(num_planes=3), "expected 2 planes"),
        (lambda: image(float("nan")), "NaN"),
        (lambda: image(ivar=float("inf")), "infinity"),
        (lambda: image(ivar=-1.0), "ivar must be 0 or more"),
        (lambda: image(mask=True), "all 32 are masked"),
        (lambda: image(ivar=0.0), "ivar is 0 everywhere"),
        (lambda: image(scale=0.0), "pixel scale must be positive"),
        (lambda: spectrum([4000.0, 3999.0]), "ascending"),
        (lambda: spectrum([4000.0, 4000.0]), "ascending"),
        (lambda: spectrum([-1.0, 4000.0]), "positive"),
        (lambda: spectrum([4000.0, 4001.0], flux=float("nan")), "NaN"),
        (lambda: spectrum([4000.0, 4001.0], ivar=-2.0), "ivar must be 0 or more"),
        (lambda: observation(image=None), "needs an image, a spectrum, XP coefficients or scalars"),
        (lambda: observation(image=None, object_mask=field()), "need the image"),
        (lambda: field(1.5), "from 0 to 1"),
        (lambda: field(float("nan")), "without NaN"),
        (lambda: ellipses([60.0, 48.0]), "ordered by distance"),
        (lambda: ellipses([48.0, float("inf")]), "infinity"),
        (lambda: XpCoefficients(), "got neither"),
        (lambda: XpCoefficients(bp=coefficients(float("nan"))), "BP coefficients hold NaN"),
        (lambda: XpCoefficients(rp=coefficients(), rp_error=coefficients(0.0)), "RP errors"),
        (lambda: XpCoefficients(rp=coefficients(), bp_error=coefficients()), "BP errors"),
        (lambda: observation(ra_deg=1.0), "together"),
        (lambda: observation(ra_deg=360.0, dec_deg=0.0), r"ra_deg in \[0, 360\)"),
        (lambda: observation(ra_deg=0.0, dec_deg=-90.1), "dec_deg"),
    ],
)
def test_what_no_reader_may_give_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_planes_of_different_shapes_are_refused() -> None:
    flux = np.ones((1, 4, 4), np.float32)

    # ValueError in production; the run-time shape check of the tests comes first.
    with pytest.raises((ValueError, TypeError)):
        Image(flux, flux[:, :3], np.zeros((1, 4, 4), bool), ("DES-G",))


def test_an_observation_needs_no_position_and_no_spectrum() -> None:
    seen = observation()

    assert seen.ra_deg is None
    assert seen.spectrum is None
    assert dict(seen.catalogue) == {}


def test_scalars_alone_or_one_xp_arm_are_an_observation() -> None:
    assert observation(image=None, scalars={"tok_parallax": 2.0}).scalars == {"tok_parallax": 2.0}
    assert observation(image=None, xp=XpCoefficients(rp=coefficients())).xp is not None


@given(ra=st.floats(0, 359.999), dec=st.floats(-90, 90))
def test_every_position_on_the_sky_is_accepted(ra: float, dec: float) -> None:
    check_position(ra, dec)

    with pytest.raises(ValueError, match="expected ra_deg"):
        check_position(ra + 360, dec)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ((0.0, -90.0), (0.0, -90.0)),
        ((360.0, 5.0), (0.0, 5.0)),
        ((-1e-18, 5.0), (0.0, 5.0)),
        ((-5e-7, 5.0), (359.9999995, 5.0)),
        ((360.0000005, 5.0), (5e-7, 5.0)),
        ((float("nan"), None), None),
        ((None, None), None),
    ],
)
def test_a_position_is_brought_onto_the_sky_where_rounding_took_it_off(
    stated: tuple[float | None, float | None], expected: tuple[float, float] | None
) -> None:
    place = sky_position(*stated)

    assert place == (None if expected is None else pytest.approx(expected, abs=1e-9))
    if place is not None:
        check_position(*place)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ((-2e-6, 0.0), r"ra_deg in \[0, 360\).*got -2e-06, 0"),
        ((360.00001, 0.0), "got 360.00001, 0"),
        ((-9999.0, -9999.0), "got -9999"),
        ((float("inf"), 0.0), "got inf"),
        ((10.0, 90.0000001), r"dec_deg in \[-90, 90\]"),
        ((10.0, float("nan")), "both coordinates of the position or none, got ra_deg 10.0"),
        ((None, 5.0), "both coordinates"),
    ],
)
def test_a_position_off_the_sky_or_by_half_is_refused(
    stated: tuple[float | None, float | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sky_position(*stated)


@given(parts=st.lists(st.binary(max_size=8), min_size=2, max_size=4))
def test_moving_a_byte_between_parts_changes_the_fingerprint(parts: list[bytes]) -> None:
    joined = [b"".join(parts[:2]), *parts[2:]]

    assert fingerprint(*parts) == fingerprint(*parts)
    assert fingerprint(*parts) != fingerprint(*joined)


def test_the_fingerprint_of_an_array_depends_on_type_shape_and_content_only() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    others: list[ndarray | None] = [array.astype(np.float64), array.reshape(3, 2), array + 1, None]

    assert fingerprint(array) == fingerprint(array[:, ::-1][:, ::-1])
    assert len({fingerprint(array), *(fingerprint(other) for other in others)}) == 5
