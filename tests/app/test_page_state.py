"""The state of the page and its address say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.page_state import (
    CHOICES_OF_K,
    Q_RANGE,
    STRETCH_RANGE_NMGY,
    PageState,
    from_params,
    to_params,
)


def between(limits: tuple[float, float]) -> st.SearchStrategy[float]:
    # Addresses carry six digits.
    return st.floats(*limits).map(lambda value: float(f"{value:g}"))


states = st.builds(
    PageState,
    seed=st.text(max_size=30),
    view=st.sampled_from(["", "image", "spectrum", "xp", "joint", "any"]),
    k=st.integers(1, CHOICES_OF_K[-1]),
    where=st.text(max_size=40),
    stretch=between(STRETCH_RANGE_NMGY),
    q=between(Q_RANGE),
    shown=st.integers(1, CHOICES_OF_K[-1]),
)


@given(states)
def test_an_address_reopens_the_same_page(state: PageState) -> None:
    assert from_params(to_params(state)) == (state, ())


def test_the_address_of_the_default_page_is_empty() -> None:
    assert to_params(PageState()) == {}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"k": "many"}, "k is not a number: 'many'"),
        ({"k": "0"}, "k must be 1 to 1000, got 0"),
        ({"stretch": "nan"}, "stretch must be 0.001 to 2, got nan"),
        ({"view": "x-ray"}, "view must be one of"),
        ({"colour": "red"}, "colour, which this page does not know"),
        ({"seed": "7", "near": "10 20"}, "one of seed, near and name"),
    ],
)
def test_a_bad_part_of_an_address_is_named_and_the_rest_is_used(
    params: dict[str, str], said: str
) -> None:
    state, complaints = from_params({**params, "where": "mag_r < 18"})

    assert len(complaints) == 1
    assert said in complaints[0]
    assert state.where == "mag_r < 18"


def test_the_query_is_what_the_state_says() -> None:
    state = PageState(near="150.1 +2.2", where=" mag_r < 18 ", view="joint")

    query = state.query(k=7)

    assert query.position == (150.1, 2.2)
    assert (query.where, query.view, query.k, query.like) == ("mag_r < 18", "joint", 7, ())
