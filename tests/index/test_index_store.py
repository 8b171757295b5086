"""The store of encoder vectors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from index import disk
from index.errors import VersionCorrupt
from index.store import Store

DIM = 8


def names(numbers: list[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def vectors_of(numbers: list[int]) -> ndarray:
    """A vector that only its number decides."""
    rows = [np.random.default_rng(number).standard_normal(DIM) for number in numbers]
    return np.array(rows, np.float16).reshape(len(numbers), DIM)


def test_vectors_come_back_in_the_order_asked_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    numbers = list(range(300))
    store.append("image", names(numbers), vectors_of(numbers), precision="float32")
    store.flush()

    asked = list(np.random.default_rng(1).permutation(numbers))
    again = Store(tmp_path, encoder_hash="e" * 64).vectors("image", names(asked))

    np.testing.assert_array_equal(again, vectors_of(asked))


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=5))
def test_batches_and_repeats_change_nothing(
    batches: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, encoder_hash="e" * 64)
    for numbers in batches:
        store.append("image", names(numbers), vectors_of(numbers), precision="float32")
        store.flush()
    there = sorted({number for numbers in batches for number in numbers})

    again = Store(folder, encoder_hash="e" * 64)

    assert again.has("image", names(list(range(13)))).tolist() == [n in there for n in range(13)]
    if there:
        np.testing.assert_array_equal(again.vectors("image", names(there)), vectors_of(there))
    parts = list(folder.glob("*/*/*/fingerprint.npy"))
    assert sum(len(np.load(part)) for part in parts) == len(there)  # nothing is stored twice


def test_views_and_encoders_are_kept_apart(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="a" * 64)
    store.append("image", names([1]), vectors_of([1]), precision="float32")
    store.flush()

    assert store.has("image", names([1])).all()
    assert not store.has("joint", names([1])).any()
    assert not Store(tmp_path, encoder_hash="b" * 64).has("image", names([1])).any()


def test_what_a_killed_writer_left_is_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    store.append("image", names([1]), vectors_of([1]), precision="float32")
    store.flush()
    half = store.folder / "image" / f"{disk.TEMPORARY}half"
    half.mkdir()
    (half / "fingerprint.npy").write_bytes(b"\x93NUM")

    assert Store(tmp_path, encoder_hash="e" * 64).has("image", names([1, 2])).tolist() == [1, 0]


def test_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    bad = np.full((1, DIM), np.inf, np.float16)

    with pytest.raises(ValueError, match="finite") as caught:
        store.append("image", names([1]), bad, precision="float32")

    assert names([1])[0] in str(caught.value)


@pytest.mark.parametrize("name", ["12", "zz" * 32, ""])
def test_a_fingerprint_that_is_no_sha256_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Store(tmp_path, encoder_hash="e" * 64).has("image", [name])


def test_a_vector_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    store.append("image", names([1]), vectors_of([1]), precision="float32")
    store.flush()

    with pytest.raises(VersionCorrupt, match=names([2])[0]):
        store.vectors("image", names([1, 2]))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    store.append("image", names([1]), vectors_of([1]), precision="float32")
    store.flush()
    (file,) = tmp_path.glob("*/*/*/fingerprint.npy")
    file.write_bytes(b"")

    with pytest.raises(VersionCorrupt, match=r"fingerprint\.npy"):
        Store(tmp_path, encoder_hash="e" * 64).has("image", names([1]))


def test_fingerprints_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    alike = [f"{'ab' * 8}{number:048x}" for number in range(6)]
    store = Store(tmp_path, encoder_hash="e" * 64)
    for number in (4, 0, 2):
        store.append("image", [alike[number]], vectors_of([number]), precision="float32")
        store.flush()

    for each in (store, Store(tmp_path, encoder_hash="e" * 64)):
        assert each.has("image", alike).tolist() == [True, False, True, False, True, False]
        asked = [alike[2], alike[4], alike[0], alike[2]]
        np.testing.assert_array_equal(each.vectors("image", asked), vectors_of([2, 4, 0, 2]))


def test_many_parts_are_found_while_they_are_written(tmp_path: Path) -> None:
    store = Store(tmp_path, encoder_hash="e" * 64)
    for number in range(33):
        store.append("image", names([number]), vectors_of([number]), precision="float32")
        store.flush()

    numbers = list(range(33))
    assert store.has("image", names(numbers)).all()
    np.testing.assert_array_equal(store.vectors("image", names(numbers)), vectors_of(numbers))
