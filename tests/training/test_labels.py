"""Tables of labels: what they say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.labels import NO_LABELS, object_numbers, read_labels


def test_labels_are_those_of_the_table_whatever_its_order(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("\ufeffspiral,object_id,lens\n1,b,0\n0,a,1\n0,c,0\n")
    asked = object_numbers(["a", "unknown", "b", "c", "a"])

    every = read_labels(file)
    one = read_labels(file, ["lens"])

    assert every.names == ("spiral", "lens")
    assert every.digest == read_labels(file).digest != one.digest
    np.testing.assert_array_equal(every.of(asked), [[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(one.of(asked)[:, 0], [1, 0, 0, 0, 1])
    assert NO_LABELS.of(asked).shape == (5, 0)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", (), "expected rows with a column object_id"),
        ("object_id,spiral\n", (), "expected rows with a column object_id"),
        ("object_id,spiral\na,1,1\n", (), "line 2: 3 cells under 2 columns"),
        ("object_id,spiral\na,1\nb,1,1\n", (), "line 3: 3 cells under 2 columns"),
        ("spiral,object_id\n1,a\n\n1,\n", (), "line 4: object_id is '', expected an id"),
        ("name,spiral\na,1\n", (), "expected rows with a column object_id"),
        ("object_id\na\n", (), "expected a column of labels"),
        ("object_id,spiral\na,1\n", ("lens",), "expected a column lens, it has spiral"),
        ("object_id,spiral\na,1\nb,yes\n", (), "line 3: spiral is 'yes', expected 0 or 1"),
        ("object_id,spiral,lens\na,1\n", (), "line 2: 2 cells under 3 columns"),
        ("object_id,spiral\na,1\na,0\n", (), "the object_id 'a' comes twice"),
    ],
)
def test_another_table_is_refused(
    tmp_path: Path, text: str, columns: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(file, columns)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="no table of labels"):
        read_labels(file)
    with pytest.raises(ValueError, match="no table of labels"):
        read_labels(tmp_path / "absent.csv")
