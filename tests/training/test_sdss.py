"""SDSS spectra: what is in the file is what comes out, and sky fibres stay out."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from training.observations import Observation
from training.surveys import sdss
from training.surveys.bintable import column_names, read_columns, table_header
from training.surveys.sdss_objects import photometric_id

NUM_PIXELS = 50
FLUX_UNIT = "1E-17 erg/cm^2/s/Ang"
OBJECT: dict[str, tuple[str, Any]] = {
    "OBJTYPE": ("16A", "GALAXY"),
    "CLASS": ("6A", "GALAXY"),
    "SUBCLASS": ("21A", ""),
    "Z": ("E", 0.25),
    "ZWARNING": ("J", 0),
    "PLATE": ("J", 266),
    "MJD": ("J", 51630),
    "FIBERID": ("J", 7),
    "PLUG_RA": ("D", 150.5),
    "PLUG_DEC": ("D", -1.25),
    "BESTOBJID": ("19A", "1237650795683184714"),
    "OBJID": ("5J", [752, 1, 3, 18, 77]),
    "SPECTROFLUX": ("5E", [1.0, 10.0, 100.0, -5.0, np.nan]),
}


def write(
    file: Path,
    *,
    loglam: np.ndarray | None = None,
    flux: np.ndarray | None = None,
    ivar: np.ndarray | None = None,
    changes: dict[str, tuple[str, Any] | None] | None = None,
    header: dict[str, Any] | None = None,
    exposures: tuple[fits.BinTableHDU, ...] = (),
) -> Path:
    """A spec-lite file; changes give columns of the object row another value, None leaves out."""
    grid = 3.6 + 1e-4 * np.arange(NUM_PIXELS) if loglam is None else loglam
    spectrum = {
        "flux": np.ones(NUM_PIXELS) if flux is None else flux,
        "loglam": grid,
        "ivar": np.full(NUM_PIXELS, 4.0) if ivar is None else ivar,
    }
    coadd = fits.BinTableHDU.from_columns(
        [fits.Column(name, "E", array=values) for name, values in spectrum.items()], name="COADD"
    )
    columns = {
        name: cell for name, cell in {**OBJECT, **(changes or {})}.items() if cell is not None
    }
    specobj = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, array=np.array([v])) for name, (form, v) in columns.items()],
        name="SPECOBJ",
    )
    primary = fits.PrimaryHDU()
    primary.header.update({"BUNIT": FLUX_UNIT, "VACUUM": True, **(header or {})})
    fits.HDUList([primary, coadd, specobj, *exposures]).writeto(file)
    return file


def only(file: Path) -> Observation:
    (batch,) = list(sdss.read(file))
    assert batch.skipped == ()
    (observation,) = batch.observations
    return observation


def only_reason(file: Path) -> str:
    (batch,) = list(sdss.read(file))
    assert batch.observations == ()
    return batch.skipped[0].reason


def test_the_real_spectra_agree_with_their_index_and_the_sky_fibre_is_refused(
    shared_data: Path,
) -> None:
    folder = shared_data / "sdss_spectra"
    index = pd.read_csv(folder / "index.csv").set_index("file")
    num_read = 0
    for file in sdss.list_files(folder):
        (batch,) = list(sdss.read(file))
        row = index.loc[file.name]
        if row["sourcetype"] == "SKY":
            assert batch.skipped[0].reason.startswith("a sky fibre")
            continue
        (seen,) = batch.observations
        num_read += 1
        assert seen.source_id == file.stem.removeprefix("spec-")
        assert seen.object_id.startswith("12376")
        assert seen.ra_deg == pytest.approx(row["ra"], abs=1e-6)
        assert seen.dec_deg == pytest.approx(row["dec"], abs=1e-6)
        if row["zwarning"] == 0:
            assert seen.catalogue["redshift"] == pytest.approx(row["z"], abs=1e-4)
            assert seen.catalogue["spectrum_class"] == row["class"]
        else:
            assert "redshift" not in seen.catalogue
            assert f"ZWARNING {row['zwarning']}: redshift and class left out" in seen.notes
    assert num_read == 63


def test_real_spectra_agree_with_astropy_pixel_by_pixel(shared_data: Path) -> None:
    for file in sdss.list_files(shared_data / "sdss_spectra")[::9]:
        with fits.open(file) as hdus:
            table = hdus[1].data
            flux, ivar, loglam = (np.array(table[name]) for name in ("flux", "ivar", "loglam"))

        spectrum = only(file).spectrum

        assert spectrum is not None
        good = ivar > 0
        np.testing.assert_array_equal(spectrum.mask, ~good)
        np.testing.assert_array_equal(spectrum.flux[good], flux[good])
        np.testing.assert_array_equal(spectrum.ivar[good], ivar[good])
        np.testing.assert_allclose(spectrum.wavelength_angstrom, 10 ** loglam.astype(float))
        assert 3500 < spectrum.wavelength_angstrom[0] < 4000


def test_the_multimodal_galaxies_are_known_by_their_image_name(shared_data: Path) -> None:
    folder = shared_data / "sdss_multimodal_10"
    index = pd.read_csv(folder / "index.csv", dtype={"objid": str}).set_index("spectrum")
    files = sdss.list_files(folder)
    assert len(files) == 10
    for file in files:
        seen, row = only(file), index.loc[file.name]

        assert seen.object_id == row["objid"] == Path(row["image"]).stem
        assert seen.catalogue["redshift"] == pytest.approx(row["z"], abs=1e-4)
        assert seen.catalogue["redshift_source"] == "sdss"
        for band in "ugriz":
            flux = row[f"spectroflux_{band}"]
            assert seen.catalogue[f"flux_{band}_nmgy"] == pytest.approx(flux, rel=1e-6)
            assert seen.catalogue[f"mag_{band}"] == pytest.approx(22.5 - 2.5 * np.log10(flux))
        again = sdss.read_one(file, "")
        assert again.fingerprint == seen.fingerprint
        assert again.spectrum is not None
        assert seen.spectrum is not None
        np.testing.assert_array_equal(again.spectrum.flux, seen.spectrum.flux)


def test_missing_and_negative_fluxes_give_no_magnitude(tmp_path: Path) -> None:
    catalogue = only(write(tmp_path / "spec.fits")).catalogue

    assert catalogue["flux_r_nmgy"] == 100
    assert catalogue["mag_r"] == pytest.approx(17.5)
    assert catalogue["flux_i_nmgy"] == -5
    assert not {"mag_i", "flux_z_nmgy", "mag_z"} & catalogue.keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "1237650795683184714"),
        ({"BESTOBJID": ("K", 1237650795683184714)}, "1237650795683184714"),
        ({"BESTOBJID": ("19A", ""), "OBJID": ("K", 1237650795683184715)}, "1237650795683184715"),
        ({"BESTOBJID": None, "OBJID": ("19A", "1237650795683184715")}, "1237650795683184715"),
        ({"BESTOBJID": ("19A", "0")}, "0266-51630-0007"),
        ({"BESTOBJID": None}, "0266-51630-0007"),
        ({"BESTOBJID": None, "OBJID": None, "PLATE": None}, "my-spectrum"),
    ],
)
def test_the_object_is_named_by_the_first_id_there_is(
    changes: dict[str, tuple[str, Any] | None], expected: str, tmp_path: Path
) -> None:
    seen = only(write(tmp_path / "my-spectrum.fits", changes=changes))

    assert seen.object_id == expected
    assert seen.source_id == ("my-spectrum" if "PLATE" in changes else "0266-51630-0007")


@pytest.mark.parametrize("column", ["OBJTYPE", "SOURCETYPE"])
def test_sky_fibres_are_refused(column: str, tmp_path: Path) -> None:
    reason = only_reason(write(tmp_path / "sky.fits", changes={column: ("16A", "SKY")}))

    assert reason == "a sky fibre: its class and redshift mean nothing"


def test_a_doubtful_redshift_is_left_out(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "spec.fits", changes={"ZWARNING": ("J", 4)}))

    assert not {"redshift", "redshift_source", "spectrum_class"} & seen.catalogue.keys()
    assert seen.notes == ("ZWARNING 4: redshift and class left out",)


def test_a_redshift_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "spec.fits", changes={"Z": ("E", np.nan)}))

    assert not {"redshift", "redshift_source", "spectrum_class"} & seen.catalogue.keys()
    assert seen.notes == ("Z is not a number: redshift and class left out",)


def test_a_missing_position_is_none_and_said(tmp_path: Path) -> None:
    nowhere: dict[str, tuple[str, Any] | None] = {
        "PLUG_RA": ("D", np.nan),
        "PLUG_DEC": ("D", np.nan),
    }

    seen = only(write(tmp_path / "spec.fits", changes=nowhere))

    assert seen.ra_deg is None
    assert seen.dec_deg is None
    assert seen.notes == ("no position in the table",)


def test_unsorted_wavelengths_are_refused(tmp_path: Path) -> None:
    loglam = 3.6 + 1e-4 * np.arange(NUM_PIXELS)
    loglam[[10, 11]] = loglam[[11, 10]]

    reason = only_reason(write(tmp_path / "spec.fits", loglam=loglam))

    assert reason == "HDU 1: wavelengths (loglam) are not ascending"


@pytest.mark.parametrize("first", [3800.0, 300.0, -5.0])
def test_wavelengths_that_are_no_logarithms_of_angstrom_are_refused(
    first: float, tmp_path: Path
) -> None:
    reason = only_reason(write(tmp_path / "spec.fits", loglam=first + np.arange(NUM_PIXELS)))

    assert "expected loglam, log10 of Angstrom, between 2.0 and 6.0" in reason


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_spectrum_without_positive_inverse_variance_is_refused(
    value: float, tmp_path: Path
) -> None:
    reason = only_reason(write(tmp_path / "spec.fits", ivar=np.full(NUM_PIXELS, value)))

    assert "no usable pixel" in reason
    assert "all 50" in reason


def test_bad_pixels_are_zero_and_masked(tmp_path: Path) -> None:
    flux, ivar = np.ones(NUM_PIXELS), np.full(NUM_PIXELS, 4.0)
    flux[3], ivar[5], ivar[7], ivar[9] = np.nan, 0, -2, np.inf

    spectrum = only(write(tmp_path / "spec.fits", flux=flux, ivar=ivar)).spectrum

    assert spectrum is not None
    assert np.flatnonzero(spectrum.mask).tolist() == [3, 5, 7, 9]
    assert (spectrum.flux[spectrum.mask] == 0).all()
    assert (spectrum.ivar[spectrum.mask] == 0).all()


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_ends_within_a_table_is_skipped(number: int, tmp_path: Path) -> None:
    file = write(tmp_path / "spec.fits")
    with fits.open(file) as hdus:
        start = hdus[number].fileinfo()["datLoc"]
    file.write_bytes(file.read_bytes()[: start + 10])

    reason = only_reason(file)

    assert reason.startswith(f"HDU {number}: truncated")
    assert "10 bytes are left" in reason


def test_a_file_that_ends_within_a_header_is_skipped(tmp_path: Path) -> None:
    file = write(tmp_path / "spec.fits")
    file.write_bytes(file.read_bytes()[:4000])

    assert only_reason(file) == "HDU 1: truncated: its header has no END"


def test_several_objects_in_the_table_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "spec.fits")
    with fits.open(file) as hdus:
        hdus[2].data = np.concatenate([hdus[2].data, hdus[2].data])
        hdus.writeto(tmp_path / "two.fits")

    assert only_reason(tmp_path / "two.fits") == "HDU 2: expected one object, got 2 rows"


def exposure(name: str, seed: int) -> fits.BinTableHDU:
    rng = np.random.default_rng(seed)
    columns = [fits.Column(name, "E", array=rng.normal(size=900)) for name in ("flux", "ivar")]
    return fits.BinTableHDU.from_columns(columns, name=name)


def test_the_exposures_of_a_full_file_are_never_looked_at(tmp_path: Path) -> None:
    lite = write(tmp_path / "lite.fits")
    full = write(tmp_path / "full.fits", exposures=(exposure("B1-1", 1), exposure("R1-1", 2)))
    content = full.read_bytes()

    seen = only(full)
    (tmp_path / "full.fits").write_bytes(content[: lite.stat().st_size] + b"?" * 5000)
    damaged = only(full)

    for other in (seen, damaged):
        assert other.fingerprint == only(lite).fingerprint
        assert other.spectrum is not None
        np.testing.assert_array_equal(other.spectrum.flux, np.ones(NUM_PIXELS))


def test_a_real_full_file_is_read_from_its_coadd(shared_data: Path) -> None:
    file = shared_data / "sdss_spectra" / "spec-0332-52367-0639.fits"
    with fits.open(file) as hdus:
        assert len(hdus) > 4
        flux = np.array(hdus["COADD"].data["flux"])
        good = hdus["COADD"].data["ivar"] > 0

    seen = only(file)

    assert seen.spectrum is not None
    np.testing.assert_array_equal(seen.spectrum.flux[good], flux[good])
    assert "plate quality marginal" in seen.notes


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_files_are_read_alike(pack: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "spec.fits")
    packed = tmp_path / "spec.fits.gz"
    packed.write_bytes(pack(file.read_bytes()))

    assert only(packed).fingerprint == only(file).fingerprint


def test_the_fingerprint_is_of_the_spectrum_and_the_object(tmp_path: Path) -> None:
    flux = np.ones(NUM_PIXELS)
    flux[3] = 2
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"flux": flux},
        {"ivar": np.full(NUM_PIXELS, 5.0)},
        {"loglam": 3.7 + 1e-4 * np.arange(NUM_PIXELS)},
        {"header": {"VACUUM": False}},
        {"header": {"BUNIT": "1E-16 erg/cm^2/s/Ang"}},
        {"changes": {"Z": ("E", 0.5)}},
    )
    prints = {
        only(write(tmp_path / f"{number}.fits", **variant)).fingerprint
        for number, variant in enumerate(variants)
    }

    assert len(prints) == 7
    assert only(write(tmp_path / "again.fits")).fingerprint in prints


def test_a_trusted_redshift_is_a_token_too(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "a.fits", changes={"Z_ERR": ("E", 0.5)}))
    doubtful = only(write(tmp_path / "b.fits", changes={"ZWARNING": ("J", 4)}))

    assert seen.scalars == {"tok_z": 0.25}
    assert seen.catalogue["redshift_error"] == 0.5
    assert doubtful.scalars == {}


def test_air_is_converted_to_vacuum(tmp_path: Path) -> None:
    loglam = np.log10(np.array([4861.325, 5006.843]))  # H beta and [O III] in air

    seen = only(
        write(
            tmp_path / "a.fits",
            loglam=loglam,
            flux=np.ones(2),
            ivar=np.ones(2),
            header={"VACUUM": False},
        )
    )

    assert seen.spectrum is not None
    np.testing.assert_allclose(seen.spectrum.wavelength_angstrom, [4862.683, 5008.240], atol=0.01)
    assert seen.notes == ("wavelengths converted from air to vacuum",)


def test_other_units_of_flux_are_converted_and_a_missing_one_is_noted(tmp_path: Path) -> None:
    tenfold = only(write(tmp_path / "a.fits", header={"BUNIT": "1E-16 erg/cm^2/s/Ang"}))
    silent = only(write(tmp_path / "b.fits", header={"BUNIT": ""}))

    assert tenfold.spectrum is not None
    assert silent.spectrum is not None
    np.testing.assert_allclose(tenfold.spectrum.flux, 10, rtol=1e-6)
    np.testing.assert_allclose(tenfold.spectrum.ivar, 0.04, rtol=1e-6)
    assert (silent.spectrum.flux == 1).all()
    assert silent.notes == ("no unit of flux given: taken as 1e-17 erg/s/cm2/Angstrom",)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"BUNIT": "counts"}, "HDU 1: unknown unit 'counts'"),
        ({"BUNIT": "mag"}, "HDU 1: expected a flux density such as 1e-17 erg"),
        ({"AIRORVAC": "air"}, "HDU 1: wavelengths in air and in vacuum at once"),
    ],
)
def test_units_that_do_not_fit_are_refused(
    header: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert only_reason(write(tmp_path / "a.fits", header=header)).startswith(reason)


def test_run_rerun_camcol_field_and_id_are_the_number_of_the_object(shared_data: Path) -> None:
    num_checked = 0
    for file in sdss.list_files(shared_data / "sdss_spectra"):
        with fits.open(file) as hdus:
            row = hdus[2].data[0]
            names = {name.upper() for name in hdus[2].columns.names}
            if not {"OBJID", "RUN", "RERUN", "CAMCOL", "FIELD", "ID"} <= names:
                continue
            if np.ndim(row["OBJID"]) or not str(row["OBJID"]).strip() or int(row["RUN"]) <= 0:
                continue
            parts = [int(row[name]) for name in ("RUN", "RERUN", "CAMCOL", "FIELD", "ID")]
            assert photometric_id({"objid": np.array(parts)}) == str(row["OBJID"]).strip()
            num_checked += 1

    assert num_checked > 30
    assert photometric_id({"objid": np.array([752, 40, 3, 18, 77])}) == ""  # an older rerun


@pytest.mark.parametrize(
    "num_flips", [60, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_end_in_a_spectrum_or_a_reason(
    num_flips: int, packed: bool, tmp_path: Path
) -> None:
    content = write(tmp_path / "whole.fits").read_bytes()
    content = gzip.compress(content) if packed else content
    file = tmp_path / "spec.fits"
    rng = np.random.default_rng(6)
    for _ in range(num_flips):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        for batch in sdss.read(file):
            assert len(batch.observations) + len(batch.skipped) == 1
            assert all(skipped.reason for skipped in batch.skipped)


@settings(deadline=None)  # it writes files
@given(
    num_rows=st.integers(0, 5),
    widths=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_columns_are_read_as_astropy_reads_them(
    num_rows: int, widths: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        fits.Column(
            name.upper(), f"{width}{code}", array=rng.normal(scale=50, size=(num_rows, width))
        )
        for name, code, width in zip("abcde", "EDJIK", widths, strict=True)
    ]
    columns.append(
        fits.Column("WORD", "6A", array=np.array(["a", "bc", "", "d e", "f"])[:num_rows])
    )
    columns.append(
        fits.Column("LARGE", "K", bzero=2**63, array=np.full(num_rows, 2**63 + 5, np.uint64))
    )
    file = tmp_path_factory.mktemp("table") / "table.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(file)
    content = file.read_bytes()
    with fits.open(file, uint=True) as hdus:
        place = hdus[1].fileinfo()
        expected = {name.lower(): np.array(hdus[1].data[name]) for name in hdus[1].columns.names}

    header = table_header(content, header_start=place["hdrLoc"], data_start=place["datLoc"])
    found = read_columns(
        content, header, data_start=place["datLoc"], wanted=frozenset(column_names(header))
    )

    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
