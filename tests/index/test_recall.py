"""The measured curve against recall counted by hand, and what effort it gives out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy import ndarray

from index import codec as codecs
from index import recall
from index.codec import CodecConfig
from index.mapped_vectors import MappedVectors
from index.probing import Effort, Lists
from index.recall import Queries, RecallCurve
from tests.index.test_codec import clustered, exact

NUM, NUM_LISTS = 6000, 64
EFFORTS = tuple(Effort(probes, depth) for probes in (1, 4, 16, 64) for depth in (2, 8, 40))


@pytest.fixture(scope="module")
def rows() -> ndarray:
    return clustered(NUM, 3)


@pytest.fixture(scope="module")
def lists(rows: ndarray) -> Lists:
    config = CodecConfig(dim=rows.shape[1], num_lists=NUM_LISTS)
    codec = codecs.train(rows.astype(np.float32), config)
    return Lists(codecs.fill(codec, [rows.astype(np.float32)]), config, MappedVectors(rows))


@pytest.fixture(scope="module")
def held_out(rows: ndarray) -> Queries:
    own = np.arange(0, NUM, 60)
    vectors = rows[own].astype(np.float32)
    neighbours = exact(vectors, rows, 101)
    others = [[row for row in line if row != me] for me, line in zip(own, neighbours, strict=True)]
    return Queries(vectors, np.array([line[:100] for line in others]), own)


@pytest.fixture(scope="module")
def curve(lists: Lists, rows: ndarray, held_out: Queries) -> RecallCurve:
    made = recall.directions(rows.astype(np.float32), 60, seed=1)
    along = Queries(made, exact(made, rows, 100), np.full(60, -1))
    return recall.measure(
        "image",
        lambda queries, num, effort: lists.candidates(queries, num=num, effort=effort),
        held_out, along,
        near=0.5, codec_hash="of the codec", num_rows=NUM, efforts=EFFORTS,
    )  # fmt: skip


def test_a_point_of_the_curve_is_the_recall_counted_by_hand(
    curve: RecallCurve, lists: Lists, held_out: Queries
) -> None:
    point = curve.rows[-1]
    found = lists.candidates(held_out.vectors, num=101, effort=point.effort)
    hits = [
        len(set([row for row in line if row != me][:10]) & set(true[:10]))
        for me, line, true in zip(
            held_out.own, found.tolist(), held_out.neighbours.tolist(), strict=True
        )
    ]

    assert point.recall_at_10 == pytest.approx(np.mean(hits) / 10)
    assert point.recall_at_10 > 0.97


@pytest.mark.parametrize("kind", ["rows", "directions"])
def test_dearer_points_reach_more(curve: RecallCurve, kind: str) -> None:
    points = getattr(curve, kind)
    assert [each.p50_ms for each in points] == sorted(each.p50_ms for each in points)
    best = -1.0
    for each in points:
        assert max(each.recall_at_10, each.recall_at_100) > -1
        best = max(best, each.recall_at_10)
    assert best == max(each.recall_at_10 for each in points)
    assert best > 0.95


def test_the_effort_for_a_recall_reached_it_when_measured(curve: RecallCurve) -> None:
    by_effort = {each.effort: each for each in curve.rows}
    for wanted in (0.5, 0.9, 0.95):
        effort = curve.effort(wanted, direction=False)
        assert effort is not None
        assert by_effort[effort].recall_at_10 >= wanted + by_effort[effort].error_at_10
    assert curve.effort(1.0, direction=True, k=100) is None or (
        max(each.recall_at_100 for each in curve.directions) == 1
    )
    with pytest.raises(ValueError, match=r"above 0 and up to 1, got 0\.0"):
        curve.effort(0.0, direction=False)


def test_recall_counts_no_padding() -> None:
    found = np.array([[4, 7, -1, -1], [1, 2, 3, -1]])
    expected = np.array([[7, 4, -1, -1], [1, 9, 8, 7]])

    assert recall.recall_of(found, expected) == pytest.approx((1 + 0.25) / 2)
    nothing = np.full((1, 4), -1)  # of a row that is the only one
    assert recall.recall_of(nothing, nothing) == 1


def test_curve_is_read_back_as_it_was(curve: RecallCurve) -> None:
    assert RecallCurve.model_validate_json(curve.model_dump_json()) == curve


def test_the_error_is_that_of_the_mean_over_queries(
    curve: RecallCurve, lists: Lists, held_out: Queries
) -> None:
    point = curve.rows[0]
    found = lists.candidates(held_out.vectors, num=11, effort=point.effort)
    shares = recall.shares_of(
        recall.without(found, held_out.own)[:, :10], held_out.neighbours[:, :10]
    )

    assert point.recall_at_10 == pytest.approx(shares.mean())
    assert point.error_at_10 == pytest.approx(shares.std() / np.sqrt(len(shares)))
    assert not point.reaches(point.recall_at_10)
    assert point.reaches(point.recall_at_10 - 2 * point.error_at_10)


def test_rows_and_directions_are_told_apart_half_way_between() -> None:
    rows = np.linspace(0.9, 1, 101, dtype=np.float32)
    along = np.linspace(0.5, 0.7, 101, dtype=np.float32)

    assert recall.told_apart(rows, along) == pytest.approx((0.901 + 0.698) / 2)
    assert recall.told_apart(rows, along + 0.5) == pytest.approx(0.901)


def test_directions_have_unit_length_however_few_rows_there_are() -> None:
    for num_rows in (1, 2, 3):
        made = recall.directions(np.eye(3, dtype=np.float32)[:num_rows], 200, seed=0)
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
