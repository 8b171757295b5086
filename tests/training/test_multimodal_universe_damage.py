"""Wrong and damaged Multimodal Universe files end in a read or in a reason, never in a crash."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.mmu_files import (
    batches,
    legacy,
    reasons,
    seen,
    spectra,
    write_hdf5,
    write_parquet,
)
from training.surveys import mmu_parquet, multimodal_universe


def _without(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": (_without("object_id"), "expected a column object_id or source_id"),
    "no ivar": (_without("image_ivar"), "legacysurvey: expected columns image_ivar"),
    "nothing known": (
        _without("image_array"),
        "not a known data set of the Multimodal Universe: neither its columns nor its folder",
    ),
    "lengths": ({"ra": np.zeros(5)}, "column 'ra' has 5 rows, there are 2 objects"),
    "too small": ({"image_array": np.ones((2, 4, 90, 90))}, "96 x 96 px or more, got 90 x 90"),
    "ivar shape": ({"image_ivar": np.ones((2, 4, 98, 98))}, "flux, ivar and mask differ in shape"),
    "swapped axes": ({"image_array": np.ones((2, 96, 96, 4))}, "96 x 96 px or more, got 96 x 4"),
    "band": ({"image_band": [[b"des-g", b"des-r", b"des-i", b"sdss-u"]] * 2}, "unknown band"),
    "bands": ({"image_band": [[b"des-g", b"des-r"]] * 2}, "expected 4 bands, one a plane"),
    "repeated band": ({"image_band": [[b"des-g"] * 4] * 2}, "a band is given twice"),
    "scale": ({"image_scale": np.full((2, 4), 0.396)}, "expected pixels of 0.262 arcsec"),
    "ivar 0": ({"image_ivar": np.zeros((2, 4, 96, 96))}, "no usable pixel"),
    "ivar -1": ({"image_ivar": np.full((2, 4, 96, 96), -1.0)}, "no usable pixel"),
    "ivar nan": ({"image_ivar": np.full((2, 4, 96, 96), np.nan)}, "no usable pixel"),
    "text": ({"image_array": np.full((2, 4, 96, 96), b"x")}, "expected (band, y, x), got |S1"),
    "off the sky": ({"dec": [91.0, -91.0]}, "expected ra_deg in [0, 360)"),
    "float ids": ({"object_id": [1.5, 2.5]}, "expected object_id as text or whole numbers"),
    "types": ({"object_mask": np.full((2, 96, 96), 9)}, "expected types from 0 to 6"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_said(case: str, tmp_path: Path) -> None:
    changes, expected = BAD[case]
    columns = {**legacy(2, 96), **changes}
    file = write_hdf5(
        tmp_path / "a.hdf5", {name: each for name, each in columns.items() if each is not None}
    )

    got = batches(file)

    assert [each for batch in got for each in batch.observations] == []
    assert expected in reasons(file)[0]


BAD_SPECTRA: dict[str, tuple[dict[str, Any], str]] = {
    "nm": ({"spectrum_lambda": np.tile(np.linspace(380, 920, 50), (2, 1))}, "12500 Angstrom"),
    "descending": (
        {"spectrum_lambda": np.tile(np.linspace(9200, 3800, 50), (2, 1))},
        "strictly ascending",
    ),
    "padding only": ({"spectrum_lambda": np.full((2, 50), -1.0)}, "got none"),
    "unit": ({"spectrum_flux": np.full((2, 50), 3e-17)}, "expected flux in 1e-17 erg"),
    "ivar 0": ({"spectrum_ivar": np.zeros((2, 50))}, "no usable pixel"),
    "ivar -1": ({"spectrum_ivar": np.full((2, 50), -1.0)}, "no usable pixel"),
    "ivar nan": ({"spectrum_ivar": np.full((2, 50), np.nan)}, "no usable pixel"),
    "all bad": ({"spectrum_mask": np.ones((2, 50), bool)}, "no usable pixel"),
    "sky": ({"OBJTYPE": np.array([b"SKY", b"SKY"])}, "a sky or bad fibre: OBJTYPE SKY"),
    "fibre": ({"COADD_FIBERSTATUS": [8, 8]}, "a fibre with a problem: COADD_FIBERSTATUS 8"),
    "length": ({"spectrum_ivar": np.ones((2, 49))}, "differ in length"),
}


@pytest.mark.parametrize("case", BAD_SPECTRA)
def test_what_is_wrong_with_a_spectrum_is_said(case: str, tmp_path: Path) -> None:
    changes, expected = BAD_SPECTRA[case]
    file = write_hdf5(tmp_path / "a.hdf5", {**spectra(2, zwarn="ZWARN"), **changes})

    assert len(reasons(file)) == 2
    assert all(why.startswith(f"row {n} (object_id 396") for n, why in enumerate(reasons(file)))
    assert all(expected in why for why in reasons(file))


def test_nan_pixels_and_padding_are_bad_or_gone(tmp_path: Path) -> None:
    columns = spectra(1, zwarn="ZWARN")
    columns["spectrum_flux"][0, 3] = np.nan
    columns["spectrum_ivar"][0, 4] = np.inf
    columns["spectrum_lambda"][0, 45:] = [0, 0, -1, -1, np.nan]

    (got,) = seen(write_hdf5(tmp_path / "a.hdf5", columns))

    assert got.spectrum is not None
    assert len(got.spectrum.flux) == 45
    assert got.spectrum.mask[3:5].all()
    assert not got.spectrum.flux[3:5].any()


def test_of_two_rows_with_one_id_the_first_is_kept(tmp_path: Path) -> None:
    columns = legacy(3, 96)
    columns["object_id"][2] = columns["object_id"][0]

    (batch,) = batches(write_hdf5(tmp_path / "a.hdf5", columns))

    assert len(batch.observations) == 2
    assert batch.skipped[0].reason == (
        "row 2 (object_id 0421p022-7410): an earlier row has this object_id"
    )


def test_a_band_without_a_good_pixel_is_left_out(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    columns["image_ivar"][0, 2] = 0

    (got,) = seen(write_hdf5(tmp_path / "a.hdf5", columns))

    assert got.image is not None
    assert got.image.bands == ("DES-G", "DES-R", "DES-Z")
    assert "no usable pixel in DES-I: left out" in got.notes


def test_ids_that_are_text_of_bytes_are_unwrapped(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    columns["object_id"] = np.array([b"b'0421p022-7410'"])
    assert seen(write_hdf5(tmp_path / "a.hdf5", columns))[0].object_id == "0421p022-7410"


def test_nothing_outside_the_file_is_followed(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    elsewhere = write_hdf5(tmp_path / "elsewhere.hdf5", {"image_ivar": columns.pop("image_ivar")})
    linked = write_hdf5(tmp_path / "linked.hdf5", columns)
    with h5py.File(linked, "a") as out:
        out["image_ivar"] = h5py.ExternalLink(elsewhere.name, "/image_ivar")
    assert reasons(linked) == ["'image_ivar' is a link to elsewhere, which is not followed"]

    virtual = write_hdf5(tmp_path / "virtual.hdf5", columns)
    layout = h5py.VirtualLayout((1, 4, 96, 96), np.float32)
    layout[:] = h5py.VirtualSource(str(elsewhere), "image_ivar", (1, 4, 96, 96))
    with h5py.File(virtual, "a") as out:
        out.create_virtual_dataset("image_ivar", layout)
    assert reasons(virtual) == ["column 'image_ivar' lies in another file, which is not followed"]

    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(4 * 4 * 96 * 96))
    external = write_hdf5(tmp_path / "external.hdf5", columns)
    with h5py.File(external, "a") as out:
        out.create_dataset(
            "image_ivar", (1, 4, 96, 96), "f4", external=[(str(raw), 0, raw.stat().st_size)]
        )
    assert reasons(external) == reasons(virtual)


def test_a_compression_that_is_not_at_hand_is_named(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    ivar = columns.pop("image_ivar")
    file = write_hdf5(tmp_path / "a.hdf5", columns)
    with h5py.File(file, "a") as out:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(ivar.shape)
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 4, 4))  # Blosc
        space = h5py.h5s.create_simple(ivar.shape)
        h5py.h5d.create(out.id, b"image_ivar", h5py.h5t.IEEE_F32LE, space, properties)
    assert "compressed by HDF5 filter 32001" in reasons(file)[0]


def test_a_damaged_chunk_costs_its_rows_alone(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", {})
    columns = legacy(4, 96)
    with h5py.File(file, "w") as out:
        for name, values in columns.items():
            big = values.ndim > 2
            chunks = (1, *values.shape[1:]) if big else None
            out.create_dataset(
                name, data=values, chunks=chunks, compression="gzip" if big else None
            )
        place = out["image_array"].id.get_chunk_info(2)
    with file.open("r+b") as stream:
        stream.seek(place.byte_offset + place.size // 2)
        stream.write(b"\xff" * 64)

    got = batches(file)

    assert [each.source_part for batch in got for each in batch.observations] == [
        f"0421p022-{7410 + row}" for row in (0, 1, 3)
    ]
    (why,) = reasons(file)
    assert why.startswith("row 2 (object_id 0421p022-7412): damaged")


@pytest.mark.parametrize("name", ["ra", "spectrum_mask"])
def test_what_is_promised_beyond_what_is_stored_is_refused(name: str, tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", spectra(zwarn="ZWARN"))
    with h5py.File(file) as opened:
        column = opened[name].id
        place, size = column.get_offset(), column.get_storage_size()
    content = bytearray(file.read_bytes())
    layout = place.to_bytes(8, "little") + size.to_bytes(8, "little")  # in the header of the column
    assert content.count(layout) == 1
    at = content.index(layout)
    content[at + 8] -= 1  # HDF5 would give what is in memory behind the others
    file.write_bytes(content)

    assert reasons(file) == [
        f"column {name!r}: {size:,} bytes are promised, {size - 1:,} are stored"
    ]
    assert not any(batch.observations for batch in batches(file))


def test_numbers_with_another_exponent_are_refused(tmp_path: Path) -> None:
    columns = spectra(zwarn="ZWARN")
    file = write_hdf5(
        tmp_path / "a.hdf5", {name: each for name, each in columns.items() if name != "ra"}
    )
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_ebias(1007)  # a flipped bit of 1023: all numbers would be 2^16 times as large
    with h5py.File(file, "a") as out:
        made = h5py.h5d.create(out.id, b"ra", kind, h5py.h5s.create_simple((3,)))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, columns["ra"])

    assert reasons(file) == ["column 'ra': numbers of another format than IEEE 754"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.hdf5"
    for content in (b"", b"SIMPLE  =", b"\x89HDF\r\n\x1a\n", b"PAR1", b"PAR1" + bytes(99)):
        file.write_bytes(content)
        assert len(reasons(file)) == 1
        with pytest.raises(ValueError, match=r"a\.hdf5"):
            multimodal_universe.read_one(file, "1")
    assert len(reasons(tmp_path / "absent.hdf5")) == 1


def _check_damaged(file: Path, content: bytes) -> None:
    """Either a read, or a reason that names the file."""
    file.write_bytes(content)
    got = batches(file)
    for batch in got:
        for each in batch.skipped:
            assert each.file == str(file)
            assert each.reason
    if any(batch.observations for batch in got):
        part = got[-1].observations[-1].source_part if got[-1].observations else ""
        with contextlib.suppress(ValueError):
            multimodal_universe.read_one(file, part)
    else:
        with pytest.raises(ValueError, match=re.escape(str(file))):
            multimodal_universe.read_one(file, "0421p022-7411")


@pytest.mark.parametrize("kind", ["hdf5", "gzip", "parquet", "spectra"])
@pytest.mark.parametrize("num_flips", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_flipped_bits_and_truncation_end_in_a_read_or_a_reason(
    kind: str, num_flips: int, tmp_path: Path
) -> None:
    columns = legacy(2, 96) if kind != "spectra" else spectra(zwarn="ZWARN")
    if kind == "parquet":
        good = write_parquet(tmp_path / "good.parquet", columns, write_page_checksum=True)
    else:
        packing = {"compression": "gzip", "fletcher32": True} if kind == "gzip" else {}
        good = write_hdf5(tmp_path / "good.hdf5", columns, **packing)
    content = good.read_bytes()
    rng = np.random.default_rng(num_flips)
    damaged = tmp_path / f"damaged{good.suffix}"
    for flip in range(num_flips):
        flipped = bytearray(content)
        # Pixels are most of a file; half of the flips are in what describes them.
        places = (len(content), 4096) if kind != "parquet" else (len(content), 20000)
        place = int(rng.integers(places[flip % 2]))
        place = len(content) - 1 - place if kind == "parquet" else place
        flipped[place] ^= 1 << int(rng.integers(8))
        _check_damaged(damaged, bytes(flipped))
    for length in rng.integers(0, len(content), 8):
        _check_damaged(damaged, content[: int(length)])


def test_a_flip_in_a_checked_page_is_noticed(tmp_path: Path) -> None:
    columns = spectra(zwarn="ZWARN")
    file = write_parquet(
        *(tmp_path / "a.parquet", columns), write_page_checksum=True, compression="none",
        use_dictionary=False,
    )  # fmt: skip
    content = bytearray(file.read_bytes())
    place = bytes(content).index(columns["spectrum_flux"][1].tobytes()[:40])
    content[place + 2] ^= 1
    file.write_bytes(content)

    assert [each for batch in batches(file) for each in batch.observations] == []
    assert any("CRC" in why for why in reasons(file))


def test_rows_that_a_page_lacks_are_said(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", legacy(1, 96))
    content = file.read_bytes()
    assert reasons(file) == []
    # The one value of a page is the 02 after its field header 15; 00 says that there is none.
    pages = [m.start() for m in re.finditer(rb"\x2c\x15\x02\x15", content)]
    assert len(pages) > 4
    for place in pages[:4]:
        file.write_bytes(content[: place + 2] + b"\x00" + content[place + 3 :])
        assert reasons(file) == ["damaged: 1 rows are promised, 0 are there"]


def test_a_row_of_very_many_values_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmu_parquet, "MAX_VALUES_OF_A_ROW", 1000)
    spectrum = [{name: [0.5] * 8000 for name in ("flux", "ivar", "lambda", "lsf_sigma", "mask")}]
    columns = {"object_id": ["1"], "ra": [1.0], "dec": [2.0], "Z": [0.1], "ZWARN": [False]}
    file = tmp_path / "desi" / "rows.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table({**columns, "spectrum": spectrum}), file)

    batches = list(multimodal_universe.read(file))

    assert not any(batch.observations for batch in batches)
    reasons = [skipped.reason for batch in batches for skipped in batch.skipped]
    assert any("8,000 values in 1 rows: a row is too large" in reason for reason in reasons)
