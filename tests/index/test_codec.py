"""Codecs and the lists of a segment against exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from index import codec as codecs
from index.codec import Codec, CodecConfig, IndexConfig
from index.errors import VersionCorrupt
from index.mapped_vectors import MappedVectors
from index.probing import Effort, Lists

DIM, NUM, NUM_LISTS = 64, 8000, 64


def clustered(num: int, seed: int) -> ndarray:
    """Unit vectors in clusters, as float16 keeps them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((40, 8))
    latent = centres[rng.integers(40, size=num)] + 0.3 * rng.standard_normal((num, 8))
    vectors = np.tanh(latent @ np.random.default_rng(2).standard_normal((8, DIM)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ndarray:
    file = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(file, clustered(NUM, 3))
    mapped: ndarray = np.load(file, mmap_mode="r")
    return mapped


@pytest.fixture(scope="module", params=["rabitq", "sq8"])
def codec(request: pytest.FixtureRequest, stored: ndarray) -> Codec:
    config = CodecConfig(kind=request.param, dim=DIM, num_lists=NUM_LISTS)
    return codecs.train(stored.astype(np.float32), config)


@pytest.fixture(scope="module")
def lists(codec: Codec, stored: ndarray) -> Lists:
    halves = (stored[: NUM // 2].astype(np.float32), stored[NUM // 2 :].astype(np.float32))
    return Lists(codecs.fill(codec, halves), codec.config, MappedVectors(stored))


@pytest.fixture(scope="module")
def queries() -> ndarray:
    vectors = clustered(100, 4).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact(queries: ndarray, stored: ndarray, num: int, rows: ndarray | None = None) -> ndarray:
    rows = np.arange(len(stored)) if rows is None else rows
    scores = queries @ stored[rows].astype(np.float32).T
    return rows[np.argsort(-scores, axis=1, kind="stable")[:, :num]]


def recall(found: ndarray, expected: ndarray) -> float:
    pairs = zip(found.tolist(), expected.tolist(), strict=True)
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in pairs]))


def test_recall_rises_with_effort_to_the_exact_answer(
    lists: Lists, stored: ndarray, queries: ndarray
) -> None:
    expected = exact(queries, stored, 10)
    efforts = (Effort(1, 2), Effort(8, 8), Effort(NUM_LISTS, 40))
    recalls = [
        recall(lists.candidates(queries, num=10, effort=effort), expected) for effort in efforts
    ]

    assert recalls == sorted(recalls)
    assert recalls[1] > 0.9
    assert recalls[2] > 0.99


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("follows_clusters", [False, True])
@pytest.mark.parametrize("fits_in_memory", [False, True])
def test_a_filter_costs_no_recall(
    lists: Lists,
    stored: ndarray,
    queries: ndarray,
    share: float,
    follows_clusters: bool,
    fits_in_memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lists.vectors, "fits_in_memory", fits_in_memory)
    rng = np.random.default_rng(5)
    value = stored[:, 0].astype(float) if follows_clusters else rng.random(NUM)
    rows = value <= np.quantile(value, share)
    expected = exact(queries, stored, min(10, int(rows.sum())), np.flatnonzero(rows))
    allowed = lists.allow(rows)
    found = lists.candidates(queries, num=10, effort=Effort(8, 8), allowed=allowed)

    assert rows[found[found >= 0]].all()
    assert ((found >= 0).sum(axis=1) == min(10, rows.sum())).all()
    assert recall(found[:, : expected.shape[1]], expected) > 0.95


def test_few_of_vectors_larger_than_memory_are_read(
    lists: Lists, queries: ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = []
    read_rows = MappedVectors.rows

    def counted(self: MappedVectors, rows: ndarray, *, of: int | None = None) -> ndarray:
        num_read.append(len(rows))
        return read_rows(self, rows, of=of)

    monkeypatch.setattr(MappedVectors, "rows", counted)
    allowed = lists.allow(np.random.default_rng(6).random(NUM) < 0.015)
    for fits_in_memory, most in ((True, allowed.num_rows), (False, 2 * 2 * 10)):
        num_read.clear()
        monkeypatch.setattr(lists.vectors, "fits_in_memory", fits_in_memory)
        lists.candidates(queries[:1], num=10, effort=Effort(8, 2), allowed=allowed)
        assert max(num_read) == most


def test_nothing_allowed_finds_nothing(lists: Lists, queries: ndarray) -> None:
    none = lists.allow(np.zeros(NUM, bool))
    found = lists.candidates(queries, num=3, effort=Effort(8, 8), allowed=none)

    assert (found == -1).all()


def test_every_row_is_in_one_list(lists: Lists) -> None:
    assert (lists.list_of_row >= 0).all()
    assert (np.bincount(lists.list_of_row) > 0).sum() > NUM_LISTS // 2


def test_more_asked_for_than_there_is_ends_in_minus_one(lists: Lists, queries: ndarray) -> None:
    rows = np.zeros(NUM, bool)
    rows[[7, 99, 4000]] = True
    found = lists.candidates(queries, num=5, effort=Effort(4, 4), allowed=lists.allow(rows))

    assert [set(row[:3]) for row in found.tolist()] == [{7, 99, 4000}] * len(queries)
    assert (found[:, 3:] == -1).all()


def test_what_is_read_back_searches_alike(
    codec: Codec, lists: Lists, stored: ndarray, queries: ndarray, tmp_path: Path
) -> None:
    name = codecs.write_codec(tmp_path, "image", codec)
    again = codecs.read_codec(tmp_path / name)
    blocks = (stored[start : start + 1000].astype(np.float32) for start in range(0, NUM, 1000))
    index = codecs.fill(again, blocks)
    codecs.write_index(tmp_path / "index.faiss", index)
    read = codecs.read_index(tmp_path / "index.faiss", _sha256(tmp_path / "index.faiss"))
    effort = Effort(8, 4)

    assert again == codec
    np.testing.assert_array_equal(
        Lists(read, again.config, MappedVectors(stored)).candidates(queries, num=10, effort=effort),
        lists.candidates(queries, num=10, effort=effort),
    )


def test_training_is_repeatable(codec: Codec, stored: ndarray) -> None:
    assert codecs.train(stored.astype(np.float32), codec.config) == codec


def test_a_file_of_other_content_never_reaches_faiss(codec: Codec, tmp_path: Path) -> None:
    file = tmp_path / "index.faiss"
    codecs.write_index(file, codec.empty())
    known = _sha256(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    with pytest.raises(VersionCorrupt, match="checksum"):
        codecs.read_index(file, known)
    with pytest.raises(VersionCorrupt, match="missing"):
        codecs.read_index(tmp_path / "other.faiss", known)


def test_codec_is_chosen_by_rows_and_memory() -> None:
    assert codecs.choose(200_000, 256) is None
    one, ten = codecs.choose(10**6, 256), codecs.choose(10**7, 256)
    assert one is not None
    assert ten is not None
    assert (one.kind, one.code_dim, one.num_lists) == ("sq8", 64, 4096)
    assert ten.num_lists == 16_384
    assert codecs.choose(10**9, 256).num_lists == codecs.MAX_LISTS  # type: ignore[union-attr]
    tight = codecs.choose(50 * 10**6, 256, IndexConfig(memory_gib=3))
    assert tight is not None
    assert (tight.kind, tight.code_dim) == ("rabitq", None)
    with pytest.raises(ValueError, match=r"2.24 GiB, and memory_gib allows 1.00"):
        codecs.choose(50 * 10**6, 256, IndexConfig(memory_gib=1))
    with pytest.raises(ValueError, match=r"^expected code_dim up to 256, got 300$"):
        codecs.choose(10**6, 256, IndexConfig(code_dim=300))


def spread_over(num_axes: int, num: int = 3000) -> ndarray:
    """Unit vectors that fill some of 64 dimensions, turned, with a little noise in the others."""
    rng = np.random.default_rng(num_axes)
    vectors = 0.01 * rng.standard_normal((num, DIM))
    vectors[:, :num_axes] += rng.standard_normal((num, num_axes))
    turned = vectors @ np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    return (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("num_axes", "needed", "kind"), [(10, 16, "sq8"), (24, 32, "sq8"), (60, DIM, "rabitq")]
)
def test_as_many_dimensions_are_coded_as_the_vectors_fill(
    num_axes: int, needed: int, kind: str
) -> None:
    sample = spread_over(num_axes)
    chosen = codecs.choose(10**6, DIM, sample=sample)

    assert codecs.needed_dim(sample) == needed
    assert chosen is not None
    assert chosen.kind == kind
    assert chosen.code_dim == (needed if kind == "sq8" else None)
    told = codecs.choose(10**6, DIM, IndexConfig(kind="sq8", code_dim=48), sample=sample)
    assert told is not None
    assert (told.kind, told.code_dim) == ("sq8", 48)


def test_principal_axes_hold_what_lies_in_them() -> None:
    sample = spread_over(10)
    axes = codecs.principal_axes(sample)

    np.testing.assert_allclose(axes @ axes.T, np.eye(DIM), atol=1e-5)
    held = ((sample @ axes[:10].T) ** 2).sum(axis=1)
    assert held.min() > 0.98
    np.testing.assert_array_equal(axes, codecs.principal_axes(sample))


def test_codes_of_few_dimensions_find_what_all_find() -> None:
    sample = spread_over(10, NUM)
    stored = sample.astype(np.float16)
    config = CodecConfig(kind="sq8", dim=DIM, code_dim=16, num_lists=NUM_LISTS)
    codec = codecs.train(sample, config)
    lists = Lists(codecs.fill(codec, [stored.astype(np.float32)]), config, MappedVectors(stored))
    queries = spread_over(10, NUM + 1)[:100]
    queries = sample[:100] + 0.1 * queries
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    found = lists.candidates(queries, num=10, effort=Effort(NUM_LISTS, 8))

    assert recall(found, exact(queries, stored, 10)) > 0.99
    assert config.bytes_a_row == 24
    for bad in ({"code_dim": 65}, {"code_dim": 8, "kind": "rabitq"}):
        with pytest.raises(ValueError, match="code_dim"):
            CodecConfig(**{"kind": "sq8", "dim": DIM, "num_lists": 4} | bad)  # type: ignore[arg-type]


def test_too_few_vectors_to_train_are_refused() -> None:
    config = CodecConfig(dim=DIM, num_lists=128)
    with pytest.raises(ValueError, match="at least 128 vectors to train as many lists, got 127"):
        codecs.train(np.ones((127, DIM), np.float32), config)
    with pytest.raises(ValueError, match="64 dimensions, got 32"):
        codecs.train(np.ones((200, 32), np.float32), config)


def _sha256(file: Path) -> str:
    from index import disk

    return disk.sha256_of(file)
