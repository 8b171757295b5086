"""HSC cutouts: bands grouped, counts calibrated, mask planes by name, tables joined."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.hsc_archive import (
    DEC_DEG,
    FLUXMAG0,
    PLANES,
    RA_DEG,
    SCALE_DEG,
    counts,
    exposure,
    write,
    write_group,
)
from training.observations import HSC_PIXEL_SCALE_ARCSEC, IMAGE_SIZE, Image, Observation
from training.surveys import Reader, hsc
from training.surveys.hsc_groups import band_of, group_of, place_name
from training.surveys.hsc_tables import SCALARS

ID = 44108482068930872
GRIZY = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")


def only(file: Path) -> Observation:
    (batch,) = list(hsc.read(file))
    assert batch.skipped == ()
    (seen,) = batch.observations
    return seen


def image_of(file: Path) -> Image:
    image = only(file).image
    assert image is not None
    return image


def only_reason(file: Path) -> str:
    (batch,) = list(hsc.read(file))
    assert batch.observations == ()
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
        hsc.read_one(file, "")
    return batch.skipped[0].reason


def one_band(tmp_path: Path, change: Callable[[fits.HDUList], None] = lambda hdus: None) -> Path:
    hdus = exposure(counts())
    change(hdus)
    return write(hdus, tmp_path / "17-target-cutout-HSC-I-9813-pdr3_wide.fits")


def test_the_module_is_a_reader() -> None:
    assert isinstance(hsc, Reader)


def test_five_bands_are_one_object_in_nanomaggies_on_native_pixels(tmp_path: Path) -> None:
    files = write_group(tmp_path)

    assert hsc.list_files(tmp_path) == [files["G"]]
    assert hsc.companions(files["G"]) == tuple(sorted(files[band] for band in "RIZY"))
    seen = only(files["G"])

    assert (seen.survey, seen.release, seen.calibrated) == ("hsc", "pdr3_wide", True)
    assert seen.source_id == seen.object_id == "pdr3_wide-J100059.50+021353.0"
    assert (seen.ra_deg, seen.dec_deg) == pytest.approx((RA_DEG, DEC_DEG), abs=1e-9)
    assert seen.notes == ()
    image = seen.image
    assert image is not None
    assert image.bands == GRIZY
    assert image.flux.shape == (5, IMAGE_SIZE, IMAGE_SIZE)
    assert image.pixel_scale_arcsec == HSC_PIXEL_SCALE_ARCSEC
    # Cropped, not resampled: AB 17.5 is 100 nanomaggies, and the pixels are those of the file.
    np.testing.assert_allclose(image.flux.sum(axis=(1, 2)), 100, rtol=0.003)
    np.testing.assert_allclose(image.flux[2], counts(seed=2)[7:103, 7:103] / 63.0957, rtol=2e-5)
    np.testing.assert_allclose(image.ivar, 63.0957344**2 / 0.0009, rtol=1e-5)
    assert not image.mask.any()


def test_every_band_of_a_group_leads_to_the_same_object(tmp_path: Path) -> None:
    files = write_group(tmp_path)

    seen = [only(file) for file in files.values()]

    assert len({one.fingerprint for one in seen}) == len({one.source_id for one in seen}) == 1
    assert hsc.list_files(files["Z"]) == [files["G"]]
    assert hsc.read_one(files["G"], "").fingerprint == seen[0].fingerprint
    with pytest.raises(ValueError, match="no part '3'"):
        hsc.read_one(files["G"], "3")


def test_a_group_is_read_with_the_bands_it_has_and_lists_the_others(tmp_path: Path) -> None:
    files = write_group(tmp_path, bands="RIY")

    assert hsc.list_files(tmp_path) == [files["R"]]
    seen = only(files["R"])

    assert seen.notes == ("bands missing: HSC-G, HSC-Z",)
    assert seen.image is not None
    assert seen.image.bands == ("HSC-R", "HSC-I", "HSC-Y")


def test_a_broken_band_is_listed_and_the_others_are_read(tmp_path: Path) -> None:
    files = write_group(tmp_path)
    whole = only(files["G"])
    content = files["R"].read_bytes()
    files["R"].write_bytes(content[:20_000])

    (batch,) = list(hsc.read(files["G"]))

    (seen,), (bad,) = batch.observations, batch.skipped
    assert bad.file == str(files["R"])
    assert "truncated" in bad.reason
    assert seen.notes == ("bands missing: HSC-R",)
    assert seen.fingerprint != whole.fingerprint
    files["R"].write_bytes(content)
    assert only(files["G"]).fingerprint == whole.fingerprint


def test_lines_of_a_list_are_grouped_by_place_for_a_line_is_one_band(tmp_path: Path) -> None:
    """Each band has its own line number, and two objects have one tract and rerun."""
    folder = tmp_path / "arch-231122-180146"
    first = write_group(folder, "{line}-{band}-9813-pdr3_wide")
    second = write_group(folder, "1{line}-{band}-9813-pdr3_wide", dec_deg=DEC_DEG + 0.01)
    third = write_group(
        tmp_path / "arch-231123-080000", "{line}-{band}-9813-pdr3_wide", ra_deg=10.0
    )

    files = hsc.list_files(tmp_path)

    assert sorted(files) == sorted([first["G"], second["G"], third["G"]])
    seen = [only(file) for file in files]
    assert len({one.object_id for one in seen}) == 3
    assert [one.image.bands for one in seen if one.image] == [GRIZY] * 3


def test_files_renamed_to_an_object_are_named_after_it(tmp_path: Path) -> None:
    files = write_group(tmp_path, f"{ID}-{{band}}-9813-pdr3_dud")
    other = write_group(tmp_path, f"{ID + 1}-{{band}}-9813-pdr3_dud", bands="GI")

    assert hsc.list_files(tmp_path) == [files["G"], other["G"]]
    assert only(files["G"]).source_id == str(ID)
    assert only(other["G"]).source_id == str(ID + 1)


def test_one_id_in_two_tracts_is_two_rows(tmp_path: Path) -> None:
    write_group(tmp_path, f"{ID}-{{band}}-9813-pdr3_dud", bands="G")
    write_group(tmp_path, f"{ID}-{{band}}-9812-pdr3_dud", bands="G")

    names = {only(file).source_id for file in hsc.list_files(tmp_path)}

    assert names == {f"{ID}-9812", f"{ID}-9813"}


def test_new_filters_count_as_the_old_and_the_last_of_two_downloads_is_taken(
    tmp_path: Path,
) -> None:
    for name, band, total in (
        ("cutout-HSC-R2-9813-pdr3_wide-231122-180146", "HSC-R2", 6309.57),
        ("cutout-HSC-I-9813-pdr3_wide-231122-180146", "HSC-I", 6309.57),
        ("cutout-HSC-I-9813-pdr3_wide-231122-180500", "HSC-I", 2 * 6309.57),
    ):
        write(exposure(counts(total=total), band=band), tmp_path / f"{name}.fits")

    (file,) = hsc.list_files(tmp_path)
    seen = only(file)

    assert seen.image is not None
    assert seen.image.bands == ("HSC-R", "HSC-I")
    np.testing.assert_allclose(seen.image.flux.sum(axis=(1, 2)), [100, 200], rtol=0.003)
    assert seen.notes[0] == (
        "cutout-HSC-I-9813-pdr3_wide-231122-180146.fits left out: its band is there twice"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("HSC-I2", "HSC-I"), ("hsc-r", "HSC-R"), ("y", "HSC-Y"), ("NB0816", ""), ("HSC-G2", "HSC-G")],
)
def test_filter_names(name: str, expected: str) -> None:
    assert band_of(name) == expected


@settings(deadline=None)
@given(ra_deg=st.floats(0, 360, exclude_max=True), dec_deg=st.floats(-90, 90))
def test_a_place_name_is_that_of_astropy(ra_deg: float, dec_deg: float) -> None:
    name = place_name("", ra_deg, dec_deg)

    ra, dec = name[1:10], name[10:]
    found = SkyCoord(
        f"{ra[:2]}h{ra[2:4]}m{ra[4:]}s", f"{dec[:3]}d{dec[3:5]}m{dec[5:]}s", frame="icrs"
    )
    assert found.separation(SkyCoord(ra_deg, dec_deg, unit="deg")).arcsec < 0.1


def test_bad_pixels_are_those_of_named_planes_whatever_their_bits(tmp_path: Path) -> None:
    flags = {(50, number): name for number, name in enumerate(PLANES)}
    shuffled = {name: (bit * 5 + 3) % 31 for name, bit in PLANES.items()}
    one = write(
        exposure(counts(), flags=flags), tmp_path / "a" / "x1-cutout-HSC-I-9813-pdr3_wide.fits"
    )
    two = write(
        exposure(counts(), flags=flags, planes=shuffled),
        tmp_path / "b" / "x1-cutout-HSC-I-9813-pdr1_wide.fits",
    )

    image = image_of(one)

    bad = {name for (y, x), name in flags.items() if x >= 7 and image.mask[0, y - 7, x - 7]}
    assert bad == {"SUSPECT", "NO_DATA", "UNMASKEDNAN"}  # BAD and SAT lie in the columns cut off
    assert image.mask.sum() == 3
    assert (image.flux[image.mask] == 0).all()
    assert (image.ivar[image.mask] == 0).all()
    np.testing.assert_array_equal(image_of(two).mask, image.mask)


def test_bad_and_saturated_pixels_are_bad(tmp_path: Path) -> None:
    flags = {(50, 50): "BAD", (51, 60): "SAT", (52, 70): "CR", (53, 80): "INTRP"}

    image = image_of(
        write(exposure(counts(), flags=flags), tmp_path / "x-HSC-I-9813-pdr3_wide.fits")
    )

    assert sorted(zip(*np.nonzero(image.mask[0]), strict=True)) == [(43, 43), (44, 53)]


def test_a_mask_without_names_is_refused_where_it_flags_a_pixel(tmp_path: Path) -> None:
    def nameless(hdus: fits.HDUList) -> None:
        for name in PLANES:
            del hdus["MASK"].header[f"MP_{name}"]
        hdus["MASK"].data[3, 3] = 1

    assert "MP_*" in only_reason(one_band(tmp_path, nameless))


def test_nan_infinity_and_zero_variance_make_a_pixel_bad(tmp_path: Path) -> None:
    def spoil(hdus: fits.HDUList) -> None:
        hdus["IMAGE"].data[20:23, 30] = np.nan, np.inf, 1e30
        hdus["VARIANCE"].data[30:35, 30] = 0, -1, np.nan, np.inf, 1e-30

    image = image_of(one_band(tmp_path, spoil))

    rows = np.flatnonzero(image.mask[0, :, 23]) + 7
    assert rows.tolist() == [20, 21, 22, 30, 31, 32, 33, 34]
    assert image.mask.sum() == 8


def test_variance_of_zero_everywhere_is_refused(tmp_path: Path) -> None:
    def spoil(hdus: fits.HDUList) -> None:
        hdus["VARIANCE"].data[:] = 0

    assert only_reason(one_band(tmp_path, spoil)) == "VARIANCE: not positive anywhere"


@pytest.mark.parametrize(
    ("primary", "image", "flux", "note"),
    [
        ({}, {}, 100.0, ()),
        ({"FLUXMAG0": None}, {}, 100.0, ("zero point 27 assumed: the header states none",)),
        ({"FLUXMAG0": None}, {"FLUXMAG0": FLUXMAG0}, 100.0, ()),
        ({"FLUXMAG0": 1e10}, {}, 6309.57 / 10, ("converted from zero point 25.00",)),
        ({"FLUXMAG0": None}, {"BUNIT": "nJy"}, 6309.57 / 3630.78, ("from zero point 31.40",)),
        ({}, {"BUNIT": "adu"}, 100.0, ()),
    ],
)
def test_the_zero_point_is_what_the_header_says(
    primary: dict[str, float | None],
    image: dict[str, float | str],
    flux: float,
    note: tuple[str, ...],
    tmp_path: Path,
) -> None:
    hdus = exposure(counts(), primary=primary)
    hdus["IMAGE"].header.update(image)
    seen = only(write(hdus, tmp_path / "x1-cutout-HSC-I-9813-pdr3_wide.fits"))

    assert seen.image is not None
    assert float(seen.image.flux.sum()) == pytest.approx(flux, rel=0.003)
    assert [text in " ".join(seen.notes) for text in note] == [True] * len(note)
    assert len(seen.notes) == 1 + len(note)  # the first is on missing bands


@pytest.mark.parametrize(
    ("primary", "image", "message"),
    [
        ({}, {"MAGZERO": 25.0}, "contradicting zero points: 27.00 by FLUXMAG0, 25.00 by MAGZERO"),
        ({}, {"BUNIT": "nJy"}, "contradicting zero points"),
        ({}, {"BUNIT": "Jy/beam"}, "BUNIT: expected counts of zero point 27, got 'Jy/beam'"),
        ({"FLUXMAG0": -1.0}, {}, "FLUXMAG0: expected a zero point, got -1.0"),
        ({"FLUXMAG0": "many"}, {}, "FLUXMAG0: expected a zero point"),
        ({"FILTER": "HSC-G"}, {}, "the band is HSC-I by the name, HSC-G by FILTER"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    primary: dict[str, float | str], image: dict[str, float | str], message: str, tmp_path: Path
) -> None:
    hdus = exposure(counts(), primary=primary)
    hdus["IMAGE"].header.update(image)

    assert message in only_reason(write(hdus, tmp_path / "x-HSC-I-9813-pdr3_wide.fits"))


@pytest.mark.parametrize("kind", ["MASK", "VARIANCE"])
def test_planes_of_another_shape_are_refused(kind: str, tmp_path: Path) -> None:
    def spoil(hdus: fits.HDUList) -> None:
        hdus[kind].data = hdus[kind].data[:-1]

    assert f"{kind}: expected the shape of IMAGE" in only_reason(one_band(tmp_path, spoil))


def test_swapped_axes_are_turned_back(tmp_path: Path) -> None:
    def swap(hdus: fits.HDUList) -> None:
        hdus["IMAGE"].data[60, 40] = 200.0  # east of the centre, north of it
        for kind in ("IMAGE", "MASK", "VARIANCE"):
            hdus[kind].data = np.ascontiguousarray(hdus[kind].data.T)
            header = hdus[kind].header
            header["CD1_1"] = header["CD2_2"] = 0.0
            header["CD1_2"], header["CD2_1"] = -SCALE_DEG, SCALE_DEG

    image = image_of(one_band(tmp_path, swap))

    assert np.unravel_index(image.flux[0].argmax(), (96, 96)) == (53, 33)


def test_a_band_that_is_a_row_larger_is_aligned_by_its_wcs(tmp_path: Path) -> None:
    files = write_group(tmp_path, bands="G")
    larger = exposure(np.pad(counts(), ((1, 0), (0, 1)))[:, :], band="HSC-R")
    for kind in ("IMAGE", "MASK", "VARIANCE"):
        larger[kind].header.update({"CRPIX1": 55.5, "CRPIX2": 56.5})  # where the galaxy is
    write(larger, tmp_path / "cutout-HSC-R-9813-pdr3_wide.fits")

    image = image_of(files["G"])

    assert image.bands == ("HSC-G", "HSC-R")
    np.testing.assert_array_equal(image.flux[0], image.flux[1])


def test_bands_of_different_places_are_not_stacked(tmp_path: Path) -> None:
    files = write_group(tmp_path, f"{ID}-{{band}}-9813-pdr3_wide", bands="G")
    write(
        exposure(counts(), band="HSC-I", ra_deg=RA_DEG + 0.01),
        tmp_path / f"{ID}-cutout-HSC-I-9813-pdr3_wide.fits",
    )

    (batch,) = list(hsc.read(files["G"]))

    assert "centred 36.0 arcsec from the other bands" in batch.skipped[0].reason
    assert batch.observations[0].notes[0] == "bands missing: HSC-R, HSC-I, HSC-Z, HSC-Y"


def test_a_small_cutout_is_padded_and_another_scale_is_resampled(tmp_path: Path) -> None:
    small = only(write(exposure(counts(60)), tmp_path / "a" / "x-HSC-I-9813-pdr3_wide.fits"))
    coarse = only(
        write(exposure(counts(), scale_deg=1.5 * SCALE_DEG), tmp_path / "b" / "x-HSC-I.fits")
    )

    assert "padded from 60 x 60 px" in small.notes
    assert small.image is not None
    assert (~small.image.mask).sum() == 3600
    assert "resampled from 0.252 arcsec per pixel" in coarse.notes
    assert coarse.image is not None
    assert float(coarse.image.flux.sum()) == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("kind", ["gzip", "rice", "rice lossless mask", "scaled", "little"])
def test_other_encodings_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    plain = image_of(write(exposure(counts()), tmp_path / "a" / "x-HSC-I.fits"))
    hdus = exposure(counts())
    file = tmp_path / "b" / "x-HSC-I.fits"
    atol = 1e-6
    if kind == "gzip":
        write(hdus, file)
        packed = file.with_suffix(".fits.gz")
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        file = packed
    elif kind.startswith("rice"):
        names = ("IMAGE", "MASK", "VARIANCE") if kind == "rice" else ("MASK",)
        for name in names:
            hdus[name] = fits.CompImageHDU(
                hdus[name].data, hdus[name].header, name=name, compression_type="RICE_1",
                quantize_level=64,
            )  # fmt: skip
        file = write(hdus, file.with_suffix(".fits.fz"))
        atol = 1e-4 if kind == "rice" else atol
    elif kind == "scaled":
        hdus["IMAGE"].scale("int32", bscale=1e-5, bzero=3.0)
        write(hdus, file)
        atol = 1e-6
    else:
        hdus["IMAGE"].data = hdus["IMAGE"].data.astype("<f8")
        hdus["MASK"].data = hdus["MASK"].data.astype(np.uint16)
        write(hdus, file)

    image = image_of(file)

    np.testing.assert_allclose(image.flux, plain.flux, atol=atol)
    np.testing.assert_array_equal(image.mask, plain.mask)


def test_missing_planes_are_said(tmp_path: Path) -> None:
    def strip(hdus: fits.HDUList) -> None:
        del hdus["MASK"], hdus["VARIANCE"]

    seen = only(one_band(tmp_path, strip))

    assert {"no mask", "no variance", "ivar estimated"} <= set(seen.notes)
    assert seen.image is not None
    assert np.median(seen.image.ivar) ** -0.5 == pytest.approx(0.03 / 63.1, rel=0.2)


def sql_answer() -> Table:
    """What the archive returns for an object at the place of the cutouts, and one far off."""
    rng = np.random.default_rng(4)
    table = Table(
        {"object_id": [ID + 5, ID], "ra": [10.0, RA_DEG], "dec": [3.0, DEC_DEG + 0.4 / 3600]}
    )
    for name in SCALARS:
        table[name] = rng.uniform(0.1, 0.2, 2) if name.startswith("a_") else rng.uniform(17, 20, 2)
    table["unwanted"] = ["x", "y"]
    return table


def as_csv(table: Table, file: Path, *, hash_sign: bool = True) -> None:
    lines = [",".join(table.colnames), *(",".join(map(str, row)) for row in table)]
    text = ("# " if hash_sign else "") + "\n".join(lines) + "\n"
    packed = file.name.endswith(".gz")
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def write_table(kind: str, table: Table, folder: Path) -> Path:
    file = folder / f"query{kind}"
    if kind == ".fits":
        table.write(file)
    else:
        as_csv(table, file, hash_sign=kind == ".csv")
    return file


@pytest.mark.parametrize("kind", [".fits", ".csv", ".csv.gz"])
def test_measurements_of_a_table_beside_the_cutouts_are_joined(kind: str, tmp_path: Path) -> None:
    table = sql_answer()
    placed, named = tmp_path / "placed", tmp_path / "named"
    by_place = write_group(placed, bands="GI")
    by_id = write_group(named, f"{ID}-{{band}}-9813-pdr3_wide", bands="GI")
    for folder, file in ((placed, by_place["G"]), (named, by_id["G"])):
        beside = write_table(kind, table, folder)
        assert beside in hsc.companions(file)
        assert hsc.list_files(folder) == [file]  # the table is none

    first, second = only(by_place["G"]), only(by_id["G"])

    expected = {key: float(table[name][1]) for name, key in SCALARS.items()}
    for seen in (first, second):
        assert dict(seen.scalars) == pytest.approx(expected)
        assert seen.object_id == str(ID)
        magnitude = float(table["r_cmodel_mag"][1])
        assert seen.catalogue["mag_r"] == pytest.approx(magnitude)
        assert seen.catalogue["flux_r_nmgy"] == pytest.approx(10 ** (0.4 * (22.5 - magnitude)))
    assert first.notes[-1] == f"measurements of query{kind}, by position, 0.40 arcsec away"
    assert second.notes[-1] == f"measurements of query{kind}, by object_id"
    assert first.source_id == "pdr3_wide-J100059.50+021353.0"


def test_what_a_table_does_not_know_is_left_out(tmp_path: Path) -> None:
    table = sql_answer()
    table["g_cmodel_mag"][1] = np.nan
    table["r_cmodel_mag"][1] = 99.99
    table["i_cmodel_mag_isnull"] = [False, True]
    table["i_sdssshape_shape11"][1] = -1.0
    table["i_sdssshape_shape12"][1] = -1.0
    files = write_group(tmp_path, bands="G")
    write_table(".fits", table, tmp_path)

    scalars = only(files["G"]).scalars

    assert {"tok_mag_g", "tok_mag_r", "tok_mag_i", "tok_shape11"}.isdisjoint(scalars)
    assert scalars["tok_shape12"] == -1.0
    assert np.isfinite(list(scalars.values())).all()


def test_a_row_too_far_away_is_not_joined(tmp_path: Path) -> None:
    table = sql_answer()
    table["dec"][1] += 0.01
    placed = write_group(tmp_path / "placed", bands="G")
    named = write_group(tmp_path / "named", f"{ID}-{{band}}-9813-pdr3_wide", bands="G")
    for file in (placed["G"], named["G"]):
        write_table(".fits", table, file.parent)
        seen = only(file)
        assert dict(seen.scalars) == dict(seen.catalogue) == {}
        assert seen.object_id == seen.source_id
    assert f"query.fits: not used: its {ID} lies 36 arcsec from the cutout" in seen.notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t["i_sdssshape_shape11"].__setattr__("unit", "pixel2"), "expected arcsec"),
        (lambda t: t["ra"].__setattr__("unit", "rad"), "column 'ra': expected deg"),
        (lambda t: t.replace_column("object_id", [1.5, 2.5]), "expected whole numbers"),
        (lambda t: t.replace_column("ra", ["a", "b"]), "column 'ra': expected numbers"),
    ],
)
def test_a_table_of_other_units_is_not_used_and_that_is_said(
    spoil: Callable[[Table], None], message: str, tmp_path: Path
) -> None:
    table = sql_answer()
    spoil(table)
    files = write_group(tmp_path, bands="G")
    write_table(".fits", table, tmp_path)

    seen = only(files["G"])

    assert seen.scalars == {}
    assert "query.fits: not used:" in seen.notes[-1]
    assert message in seen.notes[-1]


def test_a_damaged_table_is_said_and_another_sort_of_table_is_passed_over(tmp_path: Path) -> None:
    files = write_group(tmp_path, bands="G")
    (tmp_path / "index.csv").write_text("file,label\na,1\n")
    (tmp_path / "query.csv").write_text("# object_id,ra,dec,g_cmodel_mag\n12,x,3.0,17.0\n")

    (note,) = only(files["G"]).notes[1:]

    assert note.startswith("query.csv: not used: broken table")


def test_a_changed_row_changes_one_object(tmp_path: Path) -> None:
    first = write_group(tmp_path, f"{ID}-{{band}}-9813-pdr3_wide", bands="G")["G"]
    second = write_group(
        tmp_path, f"{ID + 5}-{{band}}-9813-pdr3_wide", bands="G", ra_deg=10.0, dec_deg=3.0
    )["G"]
    table = sql_answer()
    write_table(".csv", table, tmp_path)
    before = [only(file).fingerprint for file in (first, second)]
    table["g_cmodel_mag"][0] += 1
    table = table[::-1]
    write_table(".csv", table, tmp_path)

    after = [only(file).fingerprint for file in (first, second)]

    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_psfs_and_narrow_bands_beside_cutouts(tmp_path: Path) -> None:
    files = write_group(tmp_path, bands="GI")
    fits.PrimaryHDU(np.ones((43, 43))).writeto(
        tmp_path / "psf-calexp-pdr3_wide-HSC-I-9813-4,4-150.1-2.2.fits"
    )
    narrow = write(
        exposure(counts(), band="NB0816"), tmp_path / "cutout-NB0816-9813-pdr3_wide.fits"
    )

    assert hsc.list_files(tmp_path) == [files["G"], narrow]
    assert "no band" in only_reason(narrow)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"<html>login</html>", "not a FITS file")],
)
def test_what_is_no_fits_file_is_skipped(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "cutout-HSC-I-9813-pdr3_wide.fits"
    file.write_bytes(content)

    assert hsc.list_files(tmp_path) == [file]
    assert message in only_reason(file)


def test_an_empty_folder_and_one_without_cutouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty folder"):
        hsc.list_files(tmp_path)
    write_table(".fits", sql_answer(), tmp_path)
    with pytest.raises(ValueError, match="tables and PSFs alone"):
        hsc.list_files(tmp_path)


def damaged(content: bytes, *, seed: int, num_flips: int, cut: bool) -> bytes:
    rng = np.random.default_rng(seed)
    spoiled = bytearray(content)
    # Half of the flips hit the headers, which are a small part of the file.
    ends = [2880 * 2 if one % 2 else len(content) for one in range(num_flips)]
    for end in ends:
        spoiled[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return bytes(spoiled[: int(rng.integers(len(content)))] if cut else spoiled)


@pytest.mark.parametrize("packed", ["", "gzip", "rice"])
@pytest.mark.parametrize("num", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused_with_a_reason(
    packed: str, num: int, tmp_path: Path
) -> None:
    hdus = exposure(counts(40))
    if packed == "rice":
        for name in ("IMAGE", "MASK", "VARIANCE"):
            hdus[name] = fits.CompImageHDU(hdus[name].data, hdus[name].header, name=name)
    whole = write(hdus, tmp_path / "whole" / "x1-cutout-HSC-I-9813-pdr3_wide.fits")
    clean = image_of(whole)
    content = whole.read_bytes()
    if packed == "gzip":
        content = gzip.compress(content)
    outcomes = set()
    for seed in range(num):
        name = "x1-cutout-HSC-I-9813-pdr3_wide.fits" + (".gz" if packed == "gzip" else "")
        file = tmp_path / str(seed) / name
        file.parent.mkdir()
        file.write_bytes(damaged(content, seed=seed, num_flips=1 + seed % 9, cut=seed % 4 == 3))
        (batch,) = list(hsc.read(file))
        if not batch.observations:
            assert batch.skipped[0].reason
            outcomes.add("refused")
            with pytest.raises(ValueError, match="x1-cutout"):
                hsc.read_one(file, "")
            continue
        outcomes.add("read")
        image = batch.observations[0].image
        assert image is not None
        # No value that no sky has, whatever bit was hit.
        assert np.abs(image.flux).max() < 1e5
        assert image.ivar.max() < 1e5 * clean.ivar.max()
    # gzip has a checksum: a flip that is not in its header is always seen.
    assert outcomes >= ({"refused"} if packed == "gzip" else {"read", "refused"})


def test_cutout_of_cosmos_is_read_as_five_planes_of_an_assumed_zero_point(
    shared_data: Path,
) -> None:
    folder = shared_data / "hsc_cosmos_scenes"
    seen = only(folder / "Cut_HSC.fits")

    assert seen.source_id == "Cut_HSC"
    assert (seen.ra_deg, seen.dec_deg) == pytest.approx((150.3192, 2.0394), abs=1e-4)
    assert seen.image is not None
    assert seen.image.bands == GRIZY
    assert seen.image.pixel_scale_arcsec == HSC_PIXEL_SCALE_ARCSEC
    assert (~seen.image.mask).sum() == 5 * 50 * 50
    planes = fits.getdata(folder / "Cut_HSC.fits")
    np.testing.assert_allclose(seen.image.flux[:, 23:73, 23:73], planes / 63.0957, rtol=1e-5)
    # Every plane adds up to 1999: they were normalised, so that nothing is calibrated here.
    np.testing.assert_allclose(planes.sum(axis=(1, 2)), 1999, rtol=1e-6)
    assert not seen.calibrated
    assert "zero point 27 assumed: the header states none" in seen.notes
    assert "padded from 50 x 50 px" in seen.notes
    assert "5 planes taken as HSC-G, HSC-R, HSC-I, HSC-Z, HSC-Y" in seen.notes


def test_files_of_the_folder_that_are_no_hsc_cutouts_say_why(shared_data: Path) -> None:
    folder = shared_data / "hsc_cosmos_scenes"

    assert hsc.list_files(folder) == [folder / "Cut_HSC.fits", folder / "Cut_HST.fits"]
    assert "no band: expected HSC-G" in only_reason(folder / "Cut_HST.fits")


def test_a_group_is_found_again_when_a_band_arrives(tmp_path: Path) -> None:
    files = write_group(tmp_path / "from", bands="GI")
    target = tmp_path / "to"
    target.mkdir()
    shutil.copy(files["I"], target)
    assert hsc.list_files(target) == [target / files["I"].name]
    before = target.stat().st_mtime_ns
    shutil.copy(files["G"], target)
    while target.stat().st_mtime_ns == before:  # a clock of some ms
        (target / "x").touch()
        (target / "x").unlink()

    assert hsc.list_files(target) == [target / files["G"].name]
    assert len(group_of(target / files["I"].name).files) == 2


def test_an_image_of_another_survey_is_refused(shared_data: Path) -> None:
    brick = "legacysurvey-0959p805-image-g.fits.fz"
    (batch,) = hsc.read(shared_data / "legacysurvey_catalogues_bricks" / brick)

    assert batch.observations == ()
    assert "expected an image of HSC, the header says" in batch.skipped[0].reason
    assert "DECaLS" in batch.skipped[0].reason
