"""SDSS plates: every fibre is what its spec-lite file holds, and fibres on nothing stay out."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from training.observations import Observation, ObservationBatch
from training.surveys import sdss, sdss_plates

PLATE, MJD = 4055, 55359
COEFF0, COEFF1 = 3.55, 1e-4
NUM_PIXELS = 60
FLUX_UNIT = "1E-17 erg/cm^2/s/Ang"
NAME = f"{PLATE:04d}-{MJD}"


def write_plate(
    file: Path,
    flux: np.ndarray,
    ivar: np.ndarray,
    *,
    and_mask: np.ndarray | None = None,
    plug_map: dict[str, tuple[str, Any] | None] | None = None,
    header: dict[str, Any] | None = None,
) -> Path:
    """An spPlate file after the SDSS data model; None leaves a keyword or column out."""
    num_fibres = len(flux)
    columns: dict[str, tuple[str, Any] | None] = {
        "OBJID": ("5J", np.tile([4263, 301, 5, 18, 1], (num_fibres, 1))
                  + np.arange(num_fibres)[:, None] * [0, 0, 0, 0, 1]),
        "RA": ("D", 150 + np.arange(num_fibres) / 100),
        "DEC": ("D", np.full(num_fibres, 2.0)),
        "OBJTYPE": ("16A", np.full(num_fibres, "GALAXY")),
        "FIBERID": ("J", 1 + np.arange(num_fibres)),
        **(plug_map or {}),
    }  # fmt: skip
    primary = fits.PrimaryHDU(flux.astype("f4"))
    said: dict[str, Any] = {
        "PLATEID": PLATE, "MJD": MJD, "RUN2D": "v5_13_0", "BUNIT": FLUX_UNIT, "VACUUM": True,
        "COEFF0": COEFF0, "COEFF1": COEFF1, "CRVAL1": COEFF0, "CD1_1": COEFF1, "DC-FLAG": 1,
        **(header or {}),
    }  # fmt: skip
    primary.header.update({key: value for key, value in said.items() if value is not None})
    mask = np.zeros(flux.shape, np.int32) if and_mask is None else and_mask
    fits.HDUList(
        [
            primary,
            fits.ImageHDU(ivar.astype("f4"), name="IVAR"),
            fits.ImageHDU(mask, name="ANDMASK"),
            fits.ImageHDU(mask, name="ORMASK"),
            fits.ImageHDU(np.ones(flux.shape, "f4"), name="WAVEDISP"),
            fits.BinTableHDU.from_columns(
                [fits.Column(n, c[0], array=c[1]) for n, c in columns.items() if c is not None],
                name="PLUGMAP",
            ),
            fits.ImageHDU(np.ones(flux.shape, "f4"), name="SKY"),
        ]
    ).writeto(file, overwrite=True)
    return file


def write_redshifts(file: Path, rows: list[tuple[int, float, int]], *, plate: int = PLATE) -> Path:
    """An spZbest or spZall table: FIBERID, Z, ZWARNING."""
    file.parent.mkdir(exist_ok=True)
    fibres, z, zwarning = (np.array(column) for column in zip(*rows, strict=True))
    columns = [
        fits.Column("PLATE", "J", array=np.full(len(rows), plate)),
        fits.Column("MJD", "J", array=np.full(len(rows), MJD)),
        fits.Column("FIBERID", "J", array=fibres),
        fits.Column("CLASS", "6A", array=np.full(len(rows), "QSO")),
        fits.Column("Z", "E", array=z),
        fits.Column("Z_ERR", "E", array=np.full(len(rows), 0.5)),
        fits.Column("ZWARNING", "J", array=zwarning),
        fits.Column("PLUG_RA", "D", array=200 + fibres),
        fits.Column("PLUG_DEC", "D", array=np.full(len(rows), -5.0)),
        fits.Column("SPECTROFLUX", "5E", array=np.tile([1, 10, 100, -5, 0], (len(rows), 1))),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(file)
    return file


def plain(tmp_path: Path, num_fibres: int = 3, **changes: Any) -> Path:
    """A plate whose fibre n has flux n."""
    flux = np.ones((num_fibres, NUM_PIXELS)) * np.arange(1, num_fibres + 1)[:, None]
    changes = {"ivar": np.full(flux.shape, 4.0), **changes}
    return write_plate(tmp_path / f"spPlate-{NAME}.fits", flux, changes.pop("ivar"), **changes)


def read_all(file: Path, batch_size: int = 64) -> ObservationBatch:
    batches = list(sdss.read(file, batch_size=batch_size))
    return ObservationBatch(
        tuple(seen for batch in batches for seen in batch.observations),
        tuple(skipped for batch in batches for skipped in batch.skipped),
    )


def fibres(file: Path) -> dict[int, Observation]:
    return {int(seen.source_part): seen for seen in read_all(file).observations}


def test_a_fibre_of_a_plate_is_what_its_spec_lite_file_holds(
    shared_data: Path, tmp_path: Path
) -> None:
    files = [
        file
        for file in sdss.list_files(shared_data / "sdss_spectra")
        if file.name.startswith("spec-3655-55240")
    ]
    lite = [seen for file in files for batch in sdss.read(file) for seen in batch.observations]
    assert len(lite) > 5
    first = 3.5
    flux, ivar = np.zeros((2, 1000, 5200))
    objects = np.zeros((1000, 5), int)
    for file in files:
        fibre = int(file.stem[-4:])
        with fits.open(file) as hdus:
            data, row = hdus[1].data, hdus[2].data[0]
            start = round((float(data["loglam"][0]) - first) / 1e-4)
            flux[fibre - 1, start : start + len(data)] = data["flux"]
            ivar[fibre - 1, start : start + len(data)] = data["ivar"]
            objects[fibre - 1] = [int(row[n]) for n in ("RUN", "RERUN", "CAMCOL", "FIELD", "ID")]
    plate = write_plate(
        tmp_path / "spPlate-3655-55240.fits",
        flux,
        ivar,
        plug_map={"OBJID": ("5J", objects)},
        header={"PLATEID": 3655, "MJD": 55240, "COEFF0": first, "CRVAL1": None, "CD1_1": None},
    )

    found = fibres(plate)

    assert sorted(found) == sorted(int(seen.source_id[-4:]) for seen in lite)
    for expected in lite:
        seen = found[int(expected.source_id[-4:])]
        assert seen.spectrum is not None
        assert expected.spectrum is not None
        np.testing.assert_array_equal(seen.spectrum.flux, expected.spectrum.flux)
        np.testing.assert_array_equal(seen.spectrum.ivar, expected.spectrum.ivar)
        np.testing.assert_array_equal(seen.spectrum.mask, expected.spectrum.mask)
        np.testing.assert_allclose(  # loglam is float32 in spec-lite: 0.003 Angstrom
            seen.spectrum.wavelength_angstrom, expected.spectrum.wavelength_angstrom, rtol=6e-7
        )
        assert (seen.source_id, seen.release) == (expected.source_id, expected.release)
        assert seen.object_id == expected.object_id


def test_the_grid_is_that_of_the_coefficients(tmp_path: Path) -> None:
    ivar = np.full((1, NUM_PIXELS), 4.0)
    ivar[0, [0, 1, 30, 58, 59]] = 0

    spectrum = fibres(plain(tmp_path, 1, ivar=ivar))[1].spectrum

    assert spectrum is not None
    np.testing.assert_allclose(
        spectrum.wavelength_angstrom, 10 ** (COEFF0 + COEFF1 * np.arange(2, 58)), rtol=1e-12
    )
    assert np.flatnonzero(spectrum.mask).tolist() == [28]


def test_redshifts_are_joined_by_fibre(tmp_path: Path) -> None:
    file = plain(tmp_path)
    table = write_redshifts(
        tmp_path / f"spZbest-{NAME}.fits", [(3, 0.3, 0), (1, 0.1, 0), (2, 0.2, 4)]
    )

    found = fibres(file)

    assert sdss.companions(file) == (table,)
    assert found[1].catalogue["redshift"] == pytest.approx(0.1)
    assert found[3].catalogue["redshift"] == pytest.approx(0.3)
    assert found[3].scalars == {"tok_z": pytest.approx(0.3)}
    assert found[3].catalogue["redshift_error"] == 0.5
    assert found[3].catalogue["spectrum_class"] == "QSO"
    assert found[3].catalogue["mag_r"] == 17.5
    assert (found[3].ra_deg, found[3].dec_deg) == (203, -5)
    assert found[2].notes == ("ZWARNING 4: redshift and class left out",)
    assert "redshift" not in found[2].catalogue


def test_all_fits_serve_where_the_best_are_missing_and_runs_lie_below(tmp_path: Path) -> None:
    file = plain(tmp_path, 2)
    rows = [(1, 0.1, 0), (1, 0.9, 0), (2, 0.2, 0), (2, 0.8, 0)]
    every = write_redshifts(tmp_path / "v5_10_0" / f"spZall-{NAME}.fits", rows)
    assert sdss.companions(file) == (every,)
    assert fibres(file)[2].catalogue["redshift"] == pytest.approx(0.2)

    write_redshifts(tmp_path / "v5_10_0" / f"spZbest-{NAME}.fits", [(1, 0.5, 0), (2, 0.5, 0)])
    best = write_redshifts(tmp_path / "v5_13_0" / f"spZbest-{NAME}.fits", [(1, 0.6, 0)])
    assert sdss.companions(file) == (best,)
    found = fibres(file)
    assert found[1].catalogue["redshift"] == pytest.approx(0.6)
    assert found[2].notes == ("no redshift table: redshift and class left out",)


def test_without_redshifts_the_spectra_are_read(tmp_path: Path) -> None:
    file = plain(tmp_path)

    assert sdss.companions(file) == ()
    for fibre, seen in fibres(file).items():
        assert seen.notes == ("no redshift table: redshift and class left out",)
        assert seen.ra_deg == pytest.approx(150 + (fibre - 1) / 100)


@pytest.mark.parametrize("broken", ["other plate", "no table", "damage"])
def test_redshifts_that_cannot_be_used_cost_no_spectrum(broken: str, tmp_path: Path) -> None:
    table = tmp_path / f"spZbest-{NAME}.fits"
    if broken == "other plate":
        write_redshifts(table, [(1, 0.1, 0)], plate=17)
    elif broken == "no table":
        fits.HDUList([fits.PrimaryHDU()]).writeto(table)
    else:
        table.write_bytes(b"nothing of the kind")

    seen = fibres(plain(tmp_path))[1]

    assert any(note.startswith(f"{table.name} could not be used: ") for note in seen.notes)
    assert "redshift" not in seen.catalogue


def test_fibres_on_nothing_are_refused_one_by_one(tmp_path: Path) -> None:
    ivar = np.full((6, NUM_PIXELS), 4.0)
    ivar[2] = 0
    ivar[5] = np.nan
    and_mask = np.zeros((6, NUM_PIXELS), np.int32)
    and_mask[3] = 1  # NOPLUG
    kinds = np.array(["SKY", "GALAXY", "QSO", "GALAXY", "NA", "GALAXY"])
    file = plain(tmp_path, 6, ivar=ivar, and_mask=and_mask, plug_map={"OBJTYPE": ("16A", kinds)})

    batch = read_all(file)

    assert [seen.source_part for seen in batch.observations] == ["2"]
    assert [skipped.reason for skipped in batch.skipped] == [
        "row 0 (fibre 1): a sky fibre: its class and redshift mean nothing",
        "row 2 (fibre 3): no usable pixel: ivar is 0 everywhere",
        "row 3 (fibre 4): the fibre was not plugged",
        "row 4 (fibre 5): the fibre was not plugged",
        "row 5 (fibre 6): no usable pixel: ivar is 0 everywhere",
    ]
    with pytest.raises(ValueError, match=r"spPlate-4055-55359\.fits: a sky fibre"):
        sdss.read_one(file, "1")


def test_a_bad_plate_is_noted(tmp_path: Path) -> None:
    seen = fibres(plain(tmp_path, header={"PLATEQUA": "bad"}))[1]

    assert "plate quality bad" in seen.notes


def test_batches_change_nothing_and_one_fibre_can_be_read_again(tmp_path: Path) -> None:
    file = plain(tmp_path, 5)
    assert [len(batch.observations) for batch in sdss.read(file, batch_size=2)] == [2, 2, 1]

    for seen in read_all(file, 2).observations:
        again = sdss.read_one(file, seen.source_part)
        assert again.fingerprint == seen.fingerprint
        assert again.spectrum is not None
        assert set(again.spectrum.flux.tolist()) == {float(seen.source_part)}
    for part in ("", "0", "6", "two"):
        with pytest.raises(ValueError, match=rf"\.fits: no fibre '{part}': expected 1 to 5"):
            sdss.read_one(file, part)


def test_a_changed_fibre_changes_no_other(tmp_path: Path) -> None:
    before = {fibre: seen.fingerprint for fibre, seen in fibres(plain(tmp_path)).items()}
    ivar = np.full((3, NUM_PIXELS), 4.0)
    ivar[1, 7] = 5

    after = {fibre: seen.fingerprint for fibre, seen in fibres(plain(tmp_path, ivar=ivar)).items()}

    assert {fibre for fibre in before if before[fibre] != after[fibre]} == {2}


def test_redshift_tables_are_not_listed(tmp_path: Path) -> None:
    for name in ("spPlate-1-2.fits", "spZbest-1-2.fits", "spZall-1-2.fits.gz", "spec-1-2-3.fits"):
        (tmp_path / name).touch()

    assert [file.name for file in sdss.list_files(tmp_path)] == [
        "spPlate-1-2.fits",
        "spec-1-2-3.fits",
    ]


def test_a_plate_is_known_by_its_image_whatever_its_name(tmp_path: Path) -> None:
    file = plain(tmp_path).rename(tmp_path / "a.fits")
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))

    for name in (file, packed):
        assert sdss_plates.is_plate(name)
        assert fibres(name)[2].source_id == "4055-55359-0002"
    assert fibres(packed)[2].fingerprint == fibres(file)[2].fingerprint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"header": {"BUNIT": "counts"}}, "unknown unit 'counts'"),
        ({"header": {"AIRORVAC": "air"}}, "in air and in vacuum at once"),
        ({"header": {"COEFF0": 3.6}}, "contradict each other"),
        ({"header": {"COEFF0": None, "CRVAL1": None}}, "expected COEFF0"),
        ({"header": {"COEFF1": -1e-4, "CD1_1": None}}, "not ascending"),
        ({"header": {"DC-FLAG": 0}}, "DC-FLAG says linear wavelengths"),
        ({"header": {"COEFF0": 3600.0, "CRVAL1": None}}, "expected loglam, log10 of Angstrom"),
        ({"ivar": np.ones((3, 9))}, "expected 3 fibres of 60 pixels as in HDU 0, got 3 of 9"),
        ({"plug_map": {"OBJTYPE": None}}, "expected the plug map"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    batch = read_all(plain(tmp_path, **changes))

    assert batch.observations == ()
    assert reason in batch.skipped[0].reason


def test_swapped_axes_are_refused(tmp_path: Path) -> None:
    file = plain(tmp_path)
    with fits.open(file) as hdus:
        for number in (0, 1, 2, 3):
            hdus[number].data = hdus[number].data.T.copy()
        hdus[5].data = hdus[5].data[:3]
        hdus.writeto(file, overwrite=True)

    assert "are the axes swapped?" in read_all(file).skipped[0].reason


def test_air_and_units_are_converted_and_noted(tmp_path: Path) -> None:
    header = {"VACUUM": False, "BUNIT": "1E-16 erg/cm^2/s/Ang"}

    seen = fibres(plain(tmp_path, header=header))[1]

    assert "wavelengths converted from air to vacuum" in seen.notes
    assert seen.spectrum is not None
    assert seen.spectrum.wavelength_angstrom[0] - 10**COEFF0 == pytest.approx(1.014, abs=0.01)
    np.testing.assert_allclose(seen.spectrum.flux, 10, rtol=1e-6)
    np.testing.assert_allclose(seen.spectrum.ivar, 0.04, rtol=1e-6)


@pytest.mark.parametrize("unit", [None, ""])
def test_a_missing_unit_is_taken_as_that_of_sdss_and_noted(
    unit: str | None, tmp_path: Path
) -> None:
    stated = fibres(plain(tmp_path))[2]

    silent = fibres(plain(tmp_path, header={"BUNIT": unit}))[2]

    assert set(silent.notes) - set(stated.notes) == {
        "no unit of flux given: taken as 1e-17 erg/s/cm2/Angstrom"
    }
    assert silent.spectrum is not None
    assert set(silent.spectrum.flux.tolist()) == {2.0}


def test_scaled_integers_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    file = plain(tmp_path)
    with fits.open(file) as hdus:
        hdus[0].scale("int16", bscale=0.01, bzero=2)
        hdus.writeto(file, overwrite=True)

    spectrum = fibres(file)[3].spectrum

    assert spectrum is not None
    np.testing.assert_allclose(spectrum.flux, 3, atol=0.005)


def test_memory_does_not_grow_with_the_plate(tmp_path: Path) -> None:
    flux = np.ones((600, 4000), np.float32)
    file = write_plate(tmp_path / f"spPlate-{NAME}.fits", flux, flux)
    del flux
    assert file.stat().st_size > 50e6

    tracemalloc.start()
    num_read = sum(len(batch.observations) for batch in sdss.read(file, batch_size=8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert num_read == 600
    assert peak < 6e6


@pytest.mark.parametrize(
    "num_flips", [60, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_end_in_spectra_or_reasons(
    num_flips: int, packed: bool, tmp_path: Path
) -> None:
    content = plain(tmp_path).read_bytes()
    content = gzip.compress(content) if packed else content
    table = write_redshifts(tmp_path / f"spZbest-{NAME}.fits", [(1, 0.1, 0), (2, 0.2, 0)])
    redshifts = table.read_bytes()
    file = tmp_path / f"spPlate-{NAME}.fits"
    rng = np.random.default_rng(7)
    for number in range(num_flips):
        for damaged, whole in ((file, content), (table, redshifts)):
            changed = bytearray(whole)
            if damaged == file or number % 2:
                for _ in range(rng.integers(1, 4)):
                    changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            damaged.write_bytes(changed)
        for batch in sdss.read(file):
            assert batch.observations or batch.skipped
            for seen in batch.observations:
                again = sdss.read_one(file, seen.source_part)
                assert again.fingerprint == seen.fingerprint


def test_truncated_plates_are_refused(tmp_path: Path) -> None:
    file = plain(tmp_path)
    with fits.open(file) as hdus:
        needed = hdus[5].fileinfo()["datLoc"] + hdus[5].header["NAXIS1"] * 3
    content = file.read_bytes()
    for length in np.linspace(0, needed - 1, 40).astype(int):
        file.write_bytes(content[:length])
        batch = read_all(file)
        assert batch.observations == ()
        assert batch.skipped[0].reason
