"""Hits as a table and as files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import Column, Table

from discovery import Hits, Query, Sky

from .conftest import PICTURES, object_id


@pytest.fixture(scope="module")
def hits(sky: Sky) -> Hits:
    """All objects with an image, the two without a position among them."""
    return sky.search(Query(like=[object_id(2), object_id(3)], unlike=[object_id(9)]))


def _with_nan(column: Column) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in column.tolist()])


def read_again(path: Path) -> Table:
    """The table as another program reads it."""
    if path.suffix == ".csv":
        return Table.read(path, format="ascii.ecsv")
    if path.suffix == ".parquet":
        return Table.from_pandas(pq.read_table(path).to_pandas())
    if path.suffix == ".vot":
        return Table.read(path, format="votable")
    return Table.read(path, hdu="HITS")


def test_the_table_starts_as_promised(hits: Hits) -> None:
    first = ["rank", "object_id", "score", "ra_deg", "dec_deg", "survey", "view", "known_as"]
    assert hits.table.colnames[: len(first)] == first
    assert {"mag_g", "mag_r", "mag_z", "redshift", "redshift_source", "views"} <= {
        *hits.table.colnames
    }
    assert not [name for name in hits.table.colnames if name.startswith("_")]
    assert "object_key" not in hits.table.colnames


def test_unknown_values_are_masked_and_never_nan(hits: Hits) -> None:
    lost = np.isin(hits.table["object_id"], PICTURES)
    assert lost.sum() == len(PICTURES)
    np.testing.assert_array_equal(hits.table["ra_deg"].mask, lost)
    assert hits.table["known_as"].mask.all()
    for name in hits.table.colnames:
        if hits.table[name].dtype.kind == "f":
            values = np.ma.compressed(np.ma.asarray(hits.table[name]))
            assert np.isfinite(values).all(), name


def test_columns_carry_unit_and_meaning(hits: Hits) -> None:
    assert str(hits.table["ra_deg"].unit) == "deg"
    assert str(hits.table["mag_r"].unit) == "mag"
    assert hits.table["flux_r_nmgy"].description == "Flux in r, nanomaggies"
    assert all(hits.table[name].description for name in hits.table.colnames)


@pytest.mark.parametrize("ending", ["csv", "parquet", "fits", "vot"])
def test_what_is_written_reads_back_the_same(hits: Hits, tmp_path: Path, ending: str) -> None:
    path = hits.write(tmp_path / f"hits.{ending}")
    table = read_again(path)
    assert table.colnames == hits.table.colnames
    assert tuple(str(one) for one in table["object_id"]) == hits.ids  # 19 digits, no rounding
    assert table["object_id"].dtype.kind in "UOS"  # FITS knows bytes only
    np.testing.assert_array_equal(np.asarray(table["score"], np.float32), hits.scores)
    for name in ("ra_deg", "redshift", "mag_r"):
        np.testing.assert_allclose(_with_nan(table[name]), _with_nan(hits.table[name]), rtol=1e-12)


@pytest.mark.parametrize("ending", ["csv", "parquet", "fits", "vot"])
def test_an_empty_answer_can_be_written(sky: Sky, tmp_path: Path, ending: str) -> None:
    none = sky.search(Query(like=[object_id(0)], where="redshift > 100"))
    table = read_again(none.write(tmp_path / f"none.{ending}"))
    assert len(table) == 0
    assert table.colnames == none.table.colnames


def test_provenance_is_inside(hits: Hits, tmp_path: Path) -> None:
    expected = {"version": hits.version, "encoder": hits.encoder_hash, "query": hits.asked()}

    meta = Table.read(hits.write(tmp_path / "hits.csv"), format="ascii.ecsv").meta
    assert {name: meta[name] for name in expected} == expected
    assert meta["creator"].startswith("skykin ")

    stored = pq.read_schema(hits.write(tmp_path / "hits.parquet"))
    told = json.loads(stored.metadata[b"skykin"])
    assert {name: told[name] for name in expected} == expected
    assert stored.field("ra_deg").metadata[b"unit"] == b"deg"

    with fits.open(hits.write(tmp_path / "hits.fits"), checksum=True) as hdus:
        header = hdus["HITS"].header
        assert header["VERSION"] == hits.version
        assert header["ENCODER"] == hits.encoder_hash
        assert json.loads(header["QUERY"]) == expected["query"]

    document = votable.parse(hits.write(tmp_path / "hits.vot"))
    infos = {info.name: info.value for info in document.resources[0].infos}
    assert infos["version"] == str(hits.version)
    assert infos["encoder"] == hits.encoder_hash
    assert json.loads(infos["query"]) == expected["query"]
    assert document.get_first_table().get_field_by_id("ra_deg").description == (
        "ICRS right ascension"
    )


def test_pandas_reads_the_csv_past_its_comments(hits: Hits) -> None:
    content = io.BytesIO(hits.to_bytes("csv"))
    table = pd.read_csv(content, comment="#", dtype={"object_id": str})
    assert tuple(table["object_id"]) == hits.ids


def test_another_ending_is_refused(hits: Hits, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.csv, \.parquet, \.fits, \.vot"):
        hits.write(tmp_path / "hits.xlsx")
    with pytest.raises(ValueError, match=r"folder .* does not exist"):
        hits.write(tmp_path / "nowhere" / "hits.csv")
    assert not list(tmp_path.iterdir())


def test_json_is_as_documented(sky: Sky) -> None:
    hits = sky.search(Query(position=(150.08, 2.04), radius_arcsec=10, k=2, where="mag_r < 19"))
    document = json.loads(json.dumps(hits.to_json(), allow_nan=False))
    assert set(document) == {"version", "query", "hits"}
    keys = {"rank", "object_id", "score", "ra_deg", "dec_deg", "survey", "view", "known_as"}
    assert all(set(hit) == keys for hit in document["hits"])
    assert [hit["rank"] for hit in document["hits"]] == [1, 2]
    assert all(isinstance(hit["object_id"], str) for hit in document["hits"])
    assert document["hits"][0]["known_as"] is None
    asked = document["query"]
    assert asked["position"] == [150.08, 2.04]
    assert asked["seeds"][0]["separation_arcsec"] == hits.seed.separation_arcsec
    assert asked["num_without_position"] == len(PICTURES)


def test_an_unknown_position_is_null_in_json(sky: Sky) -> None:
    hits = sky.search(Query(like=[object_id(0)], where="ra_deg is null"))
    assert {hit["object_id"] for hit in json.loads(json.dumps(hits.to_json()))["hits"]} == set(
        PICTURES
    )
    assert {hit["ra_deg"] for hit in hits.to_json()["hits"]} == {None}  # type: ignore[attr-defined]
