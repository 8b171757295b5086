"""Which rows of several files are one object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cohort import Sighting, put_together

ARCSEC = 1 / 3600


def sighting(
    survey: str, object_id: str, ra_deg: float = np.nan, dec_deg: float = np.nan
) -> Sighting:
    return Sighting(
        file=Path(survey), source_part=object_id, survey=survey, object_id=object_id,
        ra_deg=ra_deg, dec_deg=dec_deg, streams=frozenset(), values={},
    )  # fmt: skip


LEGACY = sighting("legacysurvey", "a", 150.0, 60.0)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (sighting("gz10", "1", 150.0 + 1.8 * ARCSEC, 60.0), True),  # 0.9 arcsec at this declination
        (sighting("gz10", "1", 150.0 + 2.2 * ARCSEC, 60.0), False),
        (sighting("desi", "a", 150.0, 60.0 + 3 * ARCSEC), True),
        (sighting("desi", "a", 150.0, 60.0 + 11 * ARCSEC), False),  # ids that are alike by chance
        (sighting("desi", "a"), True),
        (sighting("desi", "b"), False),
        (sighting("legacysurvey", "b", 150.0, 60.0 + 0.5 * ARCSEC), True),  # seen twice
    ],
)
def test_rows_are_one_object_by_position_or_by_id(other: Sighting, same: bool) -> None:
    assert len(put_together([other, LEGACY])) == (1 if same else 2)


def test_rows_across_right_ascension_zero_are_one_object() -> None:
    pair = [sighting("hsc", "1", 0.1 * ARCSEC, 5.0), sighting("sdss", "2", 360 - 0.1 * ARCSEC, 5.0)]
    assert put_together(pair) == [pair]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(9)))
def test_the_order_of_rows_changes_nothing(order: list[int]) -> None:
    rows = [
        sighting(survey, f"{survey[0]}{number}", 10.0 * number, 3.0)
        for number in range(3)
        for survey in ("gz10", "hsc", "desi")
    ]
    objects = put_together([rows[place] for place in order])
    assert [[row.survey for row in mine] for mine in objects] == [["hsc", "desi", "gz10"]] * 3
    assert objects == put_together(rows)
