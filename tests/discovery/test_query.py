"""What a query may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from discovery import Query


@pytest.fixture
def _types_unchecked() -> Iterator[None]:
    """As in production, where no type checker stands before the query's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "something to look like"),
        ({"unlike": ["a"]}, "something to look like"),
        ({"like": ["a"], "k": 0}, "k must be between 1"),
        ({"like": ["a"], "k": -3}, "k must be between 1"),
        ({"like": "a"}, "list of object ids"),
        ({"like": [1237648721217716541]}, "object ids are strings"),
        ({"like": ["a"], "exclude": "b"}, "list of object ids"),
        ({"like": ["a"], "unlike": ["a", "b"]}, "both as like and as unlike"),
        ({"position": (150.1, 95.0)}, "dec_deg in"),
        ({"position": (float("nan"), 2.0)}, "ra_deg in"),
        ({"position": (1.0, 2.0, 3.0)}, "2 numbers in degrees"),
        ({"position": "somewhere"}, "expected degrees"),
        ({"position": (1.0, 2.0), "radius_arcsec": 0.0}, "radius_arcsec"),
        ({"position": (1.0, 2.0), "radius_arcsec": float("nan")}, "radius_arcsec"),
        ({"file": "cutout.fits"}, "file and survey are given together"),
        ({"like": ["a"], "survey": "sdss"}, "file and survey are given together"),
        ({"like": ["a"], "view": "radio"}, "unknown view 'radio'"),
        ({"like": ["a"], "where": "  "}, "where is blank"),
        ({"like": ["a"], "where": "mag_r < \udcff"}, "where is not UTF-8"),
        ({"like": ["a"], "cone": (1.0, 2.0)}, "cone takes 3 numbers"),
        ({"like": ["a"], "cone": (1.0, 2.0, -1.0)}, "radius of a cone"),
        ({"like": ["a"], "cone": (1.0, 100.0, 1.0)}, "dec_deg in"),
    ],
)
@pytest.mark.usefixtures("_types_unchecked")
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Query(**fields)


def test_a_position_may_be_text() -> None:
    assert Query(position="12 00 00 -00 30 00").position == (180.0, -0.5)


def test_a_repeated_seed_counts_once() -> None:
    assert Query(like=["a", "b", "a"]).like == ("a", "b")


def test_what_was_asked_survives_json() -> None:
    query = Query(
        like=["1237648721217716541"], file=Path("x.fits"), survey="sdss", cone=(1, 2, 3), k=7
    )
    assert json.loads(json.dumps(query.to_dict())) == {
        "like": ["1237648721217716541"],
        "file": "x.fits",
        "survey": "sdss",
        "cone": [1.0, 2.0, 3.0],
        "k": 7,
    }
