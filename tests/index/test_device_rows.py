"""Rows on a device against probing.Lists and exact search, on torch's CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy import ndarray

from index import codec as codecs
from index import filtering, overfetch, search
from index.codec import Codec, CodecConfig
from index.device_rows import DeviceRows
from index.errors import GpuUnavailable
from index.filtering import Filter, Live
from index.mapped_vectors import MappedVectors
from index.probing import Effort, Lists
from index.segment import Segment, write_segment
from tests.index.exact_answers import by_numpy, recall, unit

DIM, NUM = 32, 24_000


@pytest.fixture(autouse=True)
def _lists_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists also where a scan would do."""
    monkeypatch.setattr(overfetch, "EXACT_ROWS", 100)
    monkeypatch.setattr(filtering, "FEW_ROWS", 100)


@pytest.fixture(scope="module")
def stored() -> ndarray:
    """Clusters, as float16 keeps them."""
    random = np.random.default_rng(3)
    spread = unit(300, DIM, 1)[random.integers(300, size=NUM)]
    vectors = spread + 0.1 * random.standard_normal((NUM, DIM))
    vectors[100] = vectors[20_000]  # a tie
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def codec(stored: ndarray) -> Codec:
    config = CodecConfig(kind="sq8", dim=DIM, num_lists=64, num_iterations=3)
    return codecs.train(stored[:8000].astype(np.float32), config)


@pytest.fixture(scope="module")
def rows(codec: Codec, stored: ndarray) -> DeviceRows:
    return DeviceRows(stored, device="cpu", index=codecs.fill(codec, [stored.astype(np.float32)]))


@pytest.fixture(scope="module")
def queries(stored: ndarray) -> ndarray:
    near = stored[::600].astype(np.float32) + 0.05 * unit(40, DIM, 5)
    return search.unit_queries(near.astype(np.float32))


def test_recall_is_that_of_a_cpu(
    rows: DeviceRows, codec: Codec, stored: ndarray, queries: ndarray
) -> None:
    lists = Lists(
        codecs.fill(codec, [stored.astype(np.float32)]), codec.config, MappedVectors(stored)
    )
    truth = by_numpy(queries, stored, 10).rows
    for effort in (Effort(2, 2), Effort(8, 4), Effort(64, 8)):
        here = recall(rows.candidates(queries, num=10, effort=effort), truth)
        assert here >= recall(lists.candidates(queries, num=10, effort=effort), truth) - 0.01
    assert here == 1


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("obeys", [True, False])
def test_filters_keep_their_recall(
    rows: DeviceRows, stored: ndarray, queries: ndarray, share: float, correlated: bool, obeys: bool
) -> None:
    assert rows.lists is not None
    along = stored[:, 0] if correlated else np.random.default_rng(1).random(NUM)
    mask = along > np.quantile(along, 1 - share)
    ours = DeviceRows(stored, device="cpu")
    ours.lists = replace(rows.lists, obeys_selectors=obeys)
    found = ours.candidates(queries, num=10, effort=Effort(8, 4), allowed=ours.allow(mask))
    assert mask[found].all()
    assert recall(found, by_numpy(queries, stored, 10, mask).rows) >= 0.95


def test_every_row_is_looked_at_without_effort_or_lists(
    rows: DeviceRows, stored: ndarray, queries: ndarray
) -> None:
    truth = by_numpy(queries, stored, 12).rows
    np.testing.assert_array_equal(rows.candidates(queries, num=12, effort=None), truth)
    bare = DeviceRows(stored, device="cpu")
    np.testing.assert_array_equal(bare.candidates(queries, num=12, effort=Effort(1, 1)), truth)


def test_one_bit_codes_do_not_move(stored: ndarray) -> None:
    config = CodecConfig(kind="rabitq", dim=DIM, num_lists=16, num_iterations=1)
    trained = codecs.train(stored[:2000].astype(np.float32), config)
    with pytest.raises(ValueError, match="expected an IVF,SQ8 index"):
        DeviceRows(stored, device="cpu", index=trained.empty())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_an_error(stored: ndarray, device: str) -> None:
    with pytest.raises(GpuUnavailable, match=f"device {device} is asked for"):
        DeviceRows(stored, device=device)


@pytest.mark.parametrize("effort", [Effort(16, 4), Effort(64, 8)])
@pytest.mark.parametrize("keys_allowed", [None, 0.5, 0.01])
def test_a_segment_is_searched_through_them_as_through_its_lists(
    tmp_path: Path, codec: Codec, stored: ndarray, queries: ndarray,
    effort: Effort, keys_allowed: float | None,
) -> None:  # fmt: skip
    """Filters, deleted rows, several rows an object and ties, by the search of a version."""
    keys = np.sort(np.random.default_rng(0).integers(0, NUM // 2, size=NUM))
    name = write_segment(
        tmp_path, view="image", keys=keys,
        rows=pa.table({"precision": ["float32"] * NUM}),
        blocks=[stored], dim=DIM, encoder_hash="e", head_hash="h", codec=codec,
    )  # fmt: skip
    random = np.random.default_rng(2)
    alive = random.random(NUM) > 0.1
    allowed = None if keys_allowed is None else random.random(NUM) < keys_allowed

    def ask(segment: Segment, effort: Effort | None) -> search.Neighbors:
        return search.find(
            queries, [Live(segment, alive)], k=10, chosen=Filter(allowed), effort=effort
        )

    truth = ask(Segment(tmp_path / name), None)
    segment = Segment(tmp_path / name, device="cpu:0")
    assert isinstance(segment.lists, DeviceRows)
    assert segment.lists.lists is not None
    found = ask(segment, effort)
    assert recall(found.keys, truth.keys) >= 0.98
    same = found.keys == truth.keys
    np.testing.assert_array_equal(found.scores[same], truth.scores[same])
