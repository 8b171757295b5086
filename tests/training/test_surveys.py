"""What all readers have in common: names, folders, and files that cannot be used."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image as Picture

from training.surveys import SURVEYS, Reader, companions, files, reader

FIRST_SUFFIX = {"composite": ".jpg", "legacysurvey": ".fits", "sdss": ".fits"}


def only_reason(survey: str, file: Path) -> str:
    """Why a file is skipped, after checking that nothing else came of it."""
    (batch,) = list(reader(survey).read(file))
    assert batch.observations == ()
    (skipped,) = batch.skipped
    assert skipped.file == str(file)
    with pytest.raises(ValueError, match=file.stem):
        reader(survey).read_one(file, "")
    return skipped.reason


def test_an_unknown_survey_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match=r"unknown survey 'hst'.*composite, desi.*sdss"):
        reader("hst")


@pytest.mark.parametrize("survey", SURVEYS)
def test_every_survey_module_is_a_reader(survey: str) -> None:
    if survey in ("multimodal_universe", "simulated"):
        pytest.importorskip("h5py")

    assert isinstance(reader(survey), Reader)


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_an_empty_folder_is_refused(survey: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")

    with pytest.raises(ValueError, match=f"empty folder.*{FIRST_SUFFIX[survey]}"):
        reader(survey).list_files(tmp_path)


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_a_folder_that_is_not_there_is_refused(survey: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        reader(survey).list_files(tmp_path / "gone")


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_folders_are_listed_recursively_and_sorted(survey: str, tmp_path: Path) -> None:
    suffix = FIRST_SUFFIX[survey]
    wanted = [tmp_path / "a" / f"z{suffix}", tmp_path / "b" / "c" / f"a{suffix.upper()}"]
    for file in (*wanted, tmp_path / "b" / "readme.txt", tmp_path / "b" / f"._hidden{suffix}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    assert reader(survey).list_files(tmp_path) == wanted
    assert reader(survey).list_files(wanted[0]) == wanted[:1]


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_what_cannot_be_read_is_skipped_with_a_reason(survey: str, tmp_path: Path) -> None:
    suffix = FIRST_SUFFIX[survey]
    folder, link = tmp_path / f"folder{suffix}", tmp_path / f"link{suffix}"
    folder.mkdir()
    link.symlink_to(tmp_path / "gone")

    assert reader(survey).list_files(tmp_path) == [folder, link]
    assert only_reason(survey, folder) == "Is a directory"
    assert only_reason(survey, link) == "No such file or directory"


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_links_in_a_circle_are_not_followed(survey: str, tmp_path: Path) -> None:
    file = tmp_path / "deep" / f"file{FIRST_SUFFIX[survey]}"
    file.parent.mkdir()
    file.touch()
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)

    assert reader(survey).list_files(tmp_path) == [file]


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_a_folder_that_cannot_be_opened_is_listed_not_passed_over(
    survey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, closed = tmp_path / f"file{FIRST_SUFFIX[survey]}", tmp_path / "closed"
    file.touch()
    closed.mkdir()
    really: Callable[..., object] = os.scandir

    def scandir(folder: str | os.PathLike[str]) -> object:
        if Path(folder) == closed:  # root may open every folder
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", scandir)

    assert reader(survey).list_files(tmp_path) == [closed, file]
    assert only_reason(survey, closed)


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
@pytest.mark.parametrize("content", [b"", b"Dear diary, no galaxies today.\n" * 200])
def test_a_text_file_in_disguise_is_skipped(survey: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"disguise{FIRST_SUFFIX[survey]}"
    file.write_bytes(content)

    expected = ("FITS", "not a JPEG") if content else ("empty file",)
    assert any(word in only_reason(survey, file) for word in expected)


@pytest.mark.parametrize("survey", ["legacysurvey", "sdss"])
def test_fits_without_a_usable_hdu_is_skipped_and_says_what_is_in_it(
    survey: str, tmp_path: Path
) -> None:
    file = tmp_path / "empty.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.ones(3))], name="T")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(file)

    reason = only_reason(survey, file)

    assert "no usable HDU: expected" in reason
    assert "1 " in reason


@pytest.mark.parametrize("survey", FIRST_SUFFIX)
def test_a_file_of_one_object_has_no_parts(survey: str, tmp_path: Path) -> None:
    file = tmp_path / f"one{FIRST_SUFFIX[survey]}"
    file.touch()

    with pytest.raises(ValueError, match="no part '3'"):
        reader(survey).read_one(file, "3")


def sample(kind: str, shared_data: Path, folder: Path) -> Path:
    """A good file of each kind."""
    rgb = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    file = folder / f"sample.{kind.split()[-1]}"
    if kind == "legacysurvey fits":
        file.write_bytes((shared_data / "legacysurvey_fits_cutouts/temp_small.fits").read_bytes())
    elif kind == "sdss fits":
        spectrum = shared_data / "sdss_multimodal_10" / "spec-0266-51630-0168.fits"
        file.write_bytes(spectrum.read_bytes())
    elif kind == "composite npz":
        np.savez_compressed(file, images=rgb, name=np.array(["a", "b", "c"]))
    else:
        Picture.fromarray(rgb[0]).save(file)
    return file


@pytest.mark.parametrize(
    "kind", ["legacysurvey fits", "sdss fits", "composite npz", "composite png", "composite jpg"]
)
def test_a_damaged_file_is_read_or_skipped_but_never_stops_the_reader(
    kind: str, shared_data: Path, tmp_path: Path
) -> None:
    file = sample(kind, shared_data, tmp_path)
    survey, content = kind.split()[0], file.read_bytes()
    assert all(batch.observations for batch in reader(survey).read(file))
    rng = np.random.default_rng(1)
    num_skipped = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 5000), rng.integers(1, 20)):
            damaged[place] = rng.integers(32, 127)
        file.write_bytes(damaged[: len(damaged) if rng.random() < 0.8 else rng.integers(9000)])
        for batch in reader(survey).read(file):
            num_skipped += len(batch.skipped)
            assert all(skipped.reason for skipped in batch.skipped)
    assert num_skipped > 0


def test_byte_identical_files_are_two_objects_of_one_fingerprint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Picture.fromarray(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8))
    for name in ("first.png", "second.png"):
        picture.save(tmp_path / name)
    composite = reader("composite")

    seen = [
        observation
        for file in composite.list_files(tmp_path)
        for batch in composite.read(file)
        for observation in batch.observations
    ]

    assert [observation.object_id for observation in seen] == ["first", "second"]
    assert seen[0].fingerprint == seen[1].fingerprint


SUFFIX = {"gaia": ".csv", "multimodal_universe": ".hdf5", "composite": ".png"}


@pytest.mark.parametrize("survey", [name for name in SURVEYS if name != "simulated"])
def test_listing_a_folder_does_not_wait_for_a_pipe(survey: str, tmp_path: Path) -> None:
    pipe = tmp_path / f"coadd-pipe{SUFFIX.get(survey, '.fits')}"
    os.mkfifo(pipe)

    assert reader(survey).list_files(tmp_path) == [pipe]
    assert companions(survey, pipe) == ()


def pack_zeros(file: Path, num_mib: int, pack: Callable[[bytes], bytes]) -> Path:
    file.write_bytes(pack(b"SIMPLE  =" + bytes(num_mib << 20)))
    return file


@pytest.mark.parametrize("survey", ["legacysurvey", "hsc", "desi", "sdss", "gaia"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_a_packed_file_that_hides_much_is_not_unpacked_to_its_end(
    survey: str,
    pack: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "MAX_WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    reason = only_reason(survey, pack_zeros(tmp_path / "bomb.fits.gz", 8, pack))

    if survey == "gaia" and pack is bz2.compress:  # which the archive of Gaia never packs with
        assert "bytes that are no text" in reason
    else:
        assert reason in ("unpacks to more than 1 MiB", "unpacks to more than 1 MiB: given up")


def test_a_packed_file_of_an_honest_size_is_unpacked_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_WHOLE_BYTES", 1 << 10)
    noise = np.random.default_rng(0).integers(0, 9, 1 << 20).astype(np.uint8).tobytes()
    for pack in (gzip.compress, bz2.compress):
        assert b"".join(files.pieces_unpacked(io.BytesIO(pack(noise)))) == noise
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 1 << 19)
    with pytest.raises(ValueError, match="more than 0 MiB: given up"):
        list(files.pieces_unpacked(io.BytesIO(gzip.compress(noise))))


@pytest.mark.parametrize("survey", SURVEYS)
def test_what_is_no_regular_file_is_refused_at_once(survey: str, tmp_path: Path) -> None:
    pipe, folder, empty = (
        tmp_path / f"{name}{SUFFIX.get(survey, '.fits')}" for name in ("pipe", "folder", "empty")
    )
    os.mkfifo(pipe)
    folder.mkdir()
    empty.touch()

    assert only_reason(survey, pipe).endswith("a regular file, got a pipe, socket or device")
    assert only_reason(survey, folder).endswith("Is a directory")
    assert only_reason(survey, empty).endswith("empty file")
    for device in (Path("/dev/zero"), Path("/dev/null")):  # one has no end
        assert "got a pipe, socket or device" in only_reason(survey, device)


@pytest.mark.parametrize(
    ("survey", "name"),
    [
        ("legacysurvey", "tractor-1054p567.fits"),
        ("legacysurvey", "sweep-000m005-010p000.fits.gz"),
        ("sdss", "spPlate-0266-51602.fits"),
        ("desi", "coadd-1-80693-thru20210204.fits"),
        ("gaia", "XpContinuousMeanSpectrum_000000-003111.csv.gz"),
        ("composite", "crops.npz"),
        ("hsc", "1-cutout-HSC-I-9813-pdr3_wide.fits"),
        ("multimodal_universe", "part.parquet"),
    ],
)
def test_a_pipe_of_any_name_is_refused_at_once(survey: str, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)

    assert "got a pipe, socket or device" in only_reason(survey, tmp_path / name)


def test_a_hair_below_zero_hours_is_zero_hours(tmp_path: Path) -> None:
    header = fits.Header({"BANDS": "g", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update(CRVAL1=-1e-18, CRVAL2=5.0, CRPIX1=48.5, CRPIX2=48.5)
    header.update(CD1_1=-7.3e-5, CD1_2=0.0, CD2_1=0.0, CD2_2=7.3e-5)
    pixels = np.random.default_rng(0).normal(1, 0.1, (1, 96, 96)).astype(np.float32)
    fits.PrimaryHDU(pixels, header).writeto(tmp_path / "a.fits")

    seen = reader("legacysurvey").read_one(tmp_path / "a.fits", "")

    assert seen.ra_deg == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("card", "value", "expected"),
    [
        ("NAXIS1", "1000000000", "truncated: 80,000,000,000 bytes are promised"),
        ("NAXIS1", "99999999999999999999", "truncated"),
        ("NAXIS1", "-5", "expected NAXIS1 as a whole number of 0 or more, got '-5'"),
        ("NAXIS", "-5", "expected NAXIS as a whole number from 0 to 999, got '-5'"),
        ("BITPIX", "7", "expected BITPIX as one of 8, 16, 32, 64, -32, -64, got '7'"),
        ("BITPIX", "T", "expected BITPIX as one of"),
    ],
)
@pytest.mark.parametrize("survey", ["legacysurvey", "hsc", "sdss", "gaia"])
def test_a_spoilt_header_is_told_by_its_card(
    survey: str, card: str, value: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "spoilt.fits"
    fits.PrimaryHDU(np.ones((20, 20), np.float32)).writeto(file)
    content = bytearray(file.read_bytes())
    at = content.index(f"{card:8}= ".encode())
    content[at + 10 : at + 80] = f"{value:>20}".ljust(70).encode()
    file.write_bytes(content)

    assert expected in only_reason(survey, file)


@pytest.mark.parametrize(
    ("survey", "name", "expected"),
    [
        ("legacysurvey", "legacysurvey_fits_cutouts/temp_small.fits", 1),
        ("legacysurvey", "legacysurvey_fits_cutouts/example_incomplete.fits", "HDU 0: truncated"),
        ("legacysurvey", "desi_spectra/tractor-1054p567.fits", 1),
        ("legacysurvey", "hsc_cosmos_scenes/Cut_HSC.fits", "expected 5 bands in BANDS"),
        ("legacysurvey", "desi_spectra/coadd-4-80613-thru20210324.fits", "got 1 FIBERMAP"),
        ("hsc", "hsc_cosmos_scenes/Cut_HSC.fits", 1),
        ("hsc", "hsc_cosmos_scenes/Cut_HST.fits", "no band: expected HSC-G"),
        ("hsc", "hsc_cosmos_scenes/PSF_HSC.fits", "no celestial WCS"),
        ("hsc", "legacysurvey_fits_cutouts/temp_small.fits", "expected an image of HSC"),
        ("sdss", "sdss_spectra/spec-0266-51602-0013.fits", 1),
        ("sdss", "sdss_spectra/spec-2345-53757-0439.fits", "a sky fibre"),
        ("sdss", "hsc_cosmos_scenes/Cut_HST.fits", "as of a plate (spPlate)"),
        ("desi", "desi_spectra/coadd-1-80693-thru20210204.fits", 5),
        ("desi", "desi_spectra/redrock-4-80613-thru20210324.fits", "expected B_WAVELENGTH"),
        ("desi", "desi_spectra/tractor-1054p567.fits", "expected FIBERMAP, got 0 PRIMARY, 1 "),
        ("gaia", "gaia_xp/XP_CONTINUOUS_RAW.csv", 2),
        ("gaia", "gaia_xp/XP_CONTINUOUS_RAW.fits", 2),
        ("gaia", "gaia_xp/XP_CONTINUOUS_RAW.xml", 2),
        ("gaia", "gaia_xp/calibrator_solution_default.csv", "no bp_coefficients"),
        ("gaia", "catalogues/galaxy10_decals_coord_z.csv", "expected source_id"),
        ("gaia", "catalogues/boss_lrg_lenscat_matches.parquet", "bytes that are no text"),
        ("gaia", "hsc_cosmos_scenes/Cut_HSC.fits", "expected a table with source_id"),
        ("composite", "sdss_multimodal_10/1237648721217716541.jpeg", 1),
        ("composite", "hsc_cosmos_scenes/hsc_cosmos.npz", "expected one uint8 array"),
        ("composite", "gaia_xp/XP_CONTINUOUS_RAW.fits", "not a JPEG or PNG picture"),
        ("multimodal_universe", "catalogues/boss_lrg_lenscat_matches.parquet", "not a known data"),
        ("multimodal_universe", "desi_spectra/tractor-1054p567.fits", "neither HDF5 nor Parquet"),
    ],
)
def test_real_files_are_read_or_refused_in_plain_words(
    survey: str, name: str, expected: int | str, shared_data: Path, tmp_path: Path
) -> None:
    file = tmp_path / Path(name).name  # alone: nothing beside it is joined
    file.symlink_to(shared_data / name)

    batches = list(reader(survey).read(file))

    num = sum(len(batch.observations) for batch in batches)
    told = "; ".join(skipped.reason for batch in batches for skipped in batch.skipped)
    if isinstance(expected, int):
        assert (num, told) == (expected, "")
    else:
        assert num == 0
        assert expected in told
