"""Gaia: one source is the same in every format, ids keep every digit, and damage has a reason."""

from __future__ import annotations

import gzip
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning

from training.observations import NUM_XP_COEFFICIENTS, Observation, ObservationBatch
from training.surveys import Reader, gaia
from training.surveys.gaia_table import Row, read_header
from training.surveys.xp import calibrated_spectrum

PROXIMA, OTHER, FAINT = "5853498713190525696", "5762406957886626816", "5405570973190252288"
XP_FILES = tuple(f"XP_CONTINUOUS_RAW.{ending}" for ending in ("csv", "ecsv", "fits", "xml"))
FORMATS = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable"}
UNITS = {
    "ra": "deg",
    "dec": "deg",
    "ref_epoch": "yr",
    "parallax": "mas",
    "pmra": "mas/yr",
    "pmdec": "mas/yr",
    "phot_g_mean_flux": "electron/s",
    "phot_bp_mean_mag": "mag",
    "radial_velocity": "km/s",
}
SOURCES: dict[str, list[Any]] = {
    "source_id": [int(PROXIMA), int(PROXIMA) + 1, 7],
    "ra": [217.392, 10.0, 20.0],
    "dec": [-62.676, 5.0, -5.0],
    "ref_epoch": [2016.0, 2016.0, 2016.0],
    "parallax": [768.066, -0.25, 1.5],
    "pmra": [-3781.741, 1.0, 2.0],
    "pmdec": [769.465, -1.0, -2.0],
    "phot_g_mean_flux": [4.8e6, 100.0, 1000.0],
    "phot_bp_mean_mag": [11.373, 20.0, 18.0],
    "ruwe": [1.2, 1.0, 1.1],
    "radial_velocity": [-22.3, np.nan, 5.0],
}


def ending_of(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[2]


def write_sources(
    file: Path,
    *,
    changes: dict[str, list[Any] | None] | None = None,
    units: dict[str, str] | None = None,
) -> Path:
    """A source table; changes give columns other values, None leaves one out."""
    columns = {name: v for name, v in {**SOURCES, **(changes or {})}.items() if v is not None}
    table = Table({name: np.array(values) for name, values in columns.items()})
    for name, unit in {**UNITS, **(units or {})}.items():
        if name in table.colnames:
            # FITS knows no electrons; what astropy would leave out is written over below.
            electrons = ending_of(file) == "fits" and unit == "electron/s"
            table[name].unit = "ct/s" if electrons else unit or None
    ending = ending_of(file)
    kwargs = {"delimiter": ","} if ending == "ecsv" else {}
    plain = file.with_name(file.name.removesuffix(".gz"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # about electron / s in a VOTable
        table.write(plain, format=FORMATS[ending], overwrite=True, **kwargs)
    plain.write_bytes(plain.read_bytes().replace(b"'count s-1' ", b"'electron/s'"))
    if file != plain:
        file.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return file


def write_xp(
    file: Path,
    ids: list[int],
    *,
    num_coefficients: int = NUM_XP_COEFFICIENTS,
    changes: dict[str, list[Any]] | None = None,
) -> Path:
    """An XP table without correlations, random coefficients by id."""
    rng = [np.random.default_rng(each) for each in ids]
    columns: dict[str, Any] = {"source_id": np.array(ids)}
    for arm, basis in (("bp", 56), ("rp", 57)):
        columns[f"{arm}_basis_function_id"] = np.full(len(ids), basis, np.int16)
        columns[f"{arm}_coefficients"] = np.array([r.normal(size=num_coefficients) for r in rng])
        columns[f"{arm}_coefficient_errors"] = np.array(
            [r.uniform(0.1, 1, num_coefficients) for r in rng], np.float32
        )
    columns |= {name: np.array(values) for name, values in (changes or {}).items()}
    ending = file.suffix.removeprefix(".")
    if ending == "csv":
        text = {
            name: [f"({', '.join(map(repr, row.tolist()))})" for row in values]
            if values.ndim == 2
            else values
            for name, values in columns.items()
        }
        pd.DataFrame(text).to_csv(file, index=False)
    else:
        kwargs = {"delimiter": ","} if ending == "ecsv" else {}
        Table(columns).write(file, format=FORMATS[ending], overwrite=True, **kwargs)
    return file


def everything(file: Path, *, batch_size: int = 64) -> ObservationBatch:
    batches = list(gaia.read(file, batch_size=batch_size))
    return ObservationBatch(
        tuple(o for batch in batches for o in batch.observations),
        tuple(s for batch in batches for s in batch.skipped),
    )


def observations(file: Path) -> dict[str, Observation]:
    read = everything(file)
    assert read.skipped == ()
    return {observation.source_id: observation for observation in read.observations}


def reasons(file: Path) -> list[str]:
    read = everything(file)
    assert {skipped.file for skipped in read.skipped} <= {str(file)}
    return [skipped.reason for skipped in read.skipped]


def assert_same(one: Observation, other: Observation) -> None:
    for name in ("source_id", "object_id", "fingerprint", "source_part", "scalars", "catalogue"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.xp is None) == (other.xp is None)
    if one.xp is not None and other.xp is not None:
        for name in ("bp", "rp", "bp_error", "rp_error"):
            np.testing.assert_array_equal(getattr(one.xp, name), getattr(other.xp, name))


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a real file in a folder of its own, so that nothing is beside it."""

    def copy(name: str) -> Path:
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes((shared_data / "gaia_xp" / name).read_bytes())
        return folder / name

    return copy


def test_the_module_is_a_reader() -> None:
    assert isinstance(gaia, Reader)


def test_every_format_gives_the_coefficients_that_astropy_reads(
    real: Callable[[str], Path],
) -> None:
    with fits.open(real("XP_CONTINUOUS_RAW.fits")) as hdus:
        table = hdus[1].data
        for name in XP_FILES:
            seen = observations(real(name))
            assert list(seen) == [PROXIMA, OTHER]
            for row, observation in zip(table, seen.values(), strict=True):
                xp = observation.xp
                assert xp is not None
                for arm in ("bp", "rp"):
                    np.testing.assert_array_equal(
                        getattr(xp, arm), row[f"{arm}_coefficients"].astype(np.float32)
                    )
                    np.testing.assert_array_equal(
                        getattr(xp, f"{arm}_error"), row[f"{arm}_coefficient_errors"]
                    )
                assert (observation.survey, observation.release) == ("gaia", "DR3")
                assert observation.object_id == observation.source_id == str(row["source_id"])
                assert observation.ra_deg is None


def test_the_same_row_has_the_same_fingerprint_in_every_format(
    real: Callable[[str], Path],
) -> None:
    prints = {tuple(o.fingerprint for o in observations(real(name)).values()) for name in XP_FILES}
    assert len(prints) == 1
    assert len(set(prints.pop())) == 2


def test_a_missing_arm_is_none_and_said(real: Callable[[str], Path]) -> None:
    seen = observations(real("XP_CONTINUOUS_RAW_with_missing_BP.csv"))

    assert list(seen) == [PROXIMA, FAINT, OTHER]
    xp = seen[FAINT].xp
    assert xp is not None
    assert xp.bp is None
    assert xp.bp_error is None
    assert xp.rp is not None
    assert xp.rp[0] == pytest.approx(38.18018501664883, rel=1e-7)
    assert "no BP coefficients" in seen[FAINT].notes
    assert "no BP coefficients" not in seen[OTHER].notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("XP_SPECTRA_RAW_mini.csv", "no bp_coefficients and rp_coefficients in it"),
        ("XP_SPECTRA_RAW_mini.fits", "no bp_coefficients and rp_coefficients in it"),
        ("XP_SPECTRA_RAW_mini.xml", "no bp_coefficients and rp_coefficients in it"),
        ("SPSS_mini.csv", "no bp_coefficients and rp_coefficients in it"),
        ("calibrator_solution_default.csv", "no bp_coefficients and rp_coefficients in it"),
        ("calibrator_solution_default_sampling.csv", "expected source_id with bp_coefficients"),
    ],
)
def test_other_tables_are_refused(name: str, expected: str, real: Callable[[str], Path]) -> None:
    (reason,) = reasons(real(name))

    assert expected in reason


def test_the_bulk_download_is_read(real: Callable[[str], Path], tmp_path: Path) -> None:
    ecsv = real("XP_CONTINUOUS_RAW.ecsv")
    expected = observations(ecsv)
    file = tmp_path / "XpContinuousMeanSpectrum_000000-003111.csv.gz"
    lines = ecsv.read_text().splitlines(keepends=True)
    cells = lines[-1].split(",")
    lines.append(",".join([FAINT, cells[1], *["null"] * 12, lines[-1].partition(']",53,1.0,')[2]]))
    file.write_bytes(gzip.compress("".join(lines).encode()))

    seen = observations(file)

    assert list(seen) == [PROXIMA, OTHER, FAINT]
    for source_id, observation in expected.items():
        assert_same(seen[source_id], observation)
    xp = seen[FAINT].xp
    assert xp is not None
    assert xp.bp is None


@pytest.mark.parametrize("ending", [*FORMATS, "csv.gz", "fits.gz", "vot.gz"])
def test_source_tables_of_every_format_give_the_same(ending: str, tmp_path: Path) -> None:
    seen = observations(write_sources(tmp_path / f"sources.{ending}"))

    assert list(seen) == [PROXIMA, str(int(PROXIMA) + 1), "7"]
    proxima, negative = seen[PROXIMA], seen[str(int(PROXIMA) + 1)]
    assert (proxima.ra_deg, proxima.dec_deg) == (217.392, -62.676)
    assert proxima.scalars == pytest.approx(
        {
            "tok_ra": 217.392,
            "tok_dec": -62.676,
            "tok_parallax": 768.066,
            "tok_flux_g_gaia": 4.8e6,
            "tok_flux_bp_gaia": 10 ** ((25.3385422158 - 11.373) / 2.5),
        }
    )
    assert proxima.catalogue == pytest.approx(
        {
            "mag_gaia_g": 25.6873668671 - 2.5 * np.log10(4.8e6),
            "mag_bp": 11.373,
            "parallax_mas": 768.066,
            "pmra_mas_per_yr": -3781.741,
            "pmdec_mas_per_yr": 769.465,
            "ruwe": 1.2,
            "radial_velocity_km_per_s": -22.3,
            "position_epoch_year": 2016.0,
        }
    )
    assert proxima.release == "DR3"
    assert "position of epoch 2016.0" in proxima.notes
    assert proxima.xp is None
    assert "tok_parallax" not in negative.scalars
    assert negative.catalogue["parallax_mas"] == -0.25
    assert "parallax -0.250 mas is not positive: no scalar of it" in negative.notes
    assert "radial_velocity_km_per_s" not in negative.catalogue
    unstated = "units are not stated: those of the archive are taken" in proxima.notes
    assert unstated == ("csv" in ending and "ecsv" not in ending)


@pytest.mark.parametrize("ending", FORMATS)
def test_ids_keep_every_digit(ending: str, tmp_path: Path) -> None:
    ids = [2**53 + 1, 2**63 - 1, 6917528997577384321]
    file = write_xp(tmp_path / f"xp.{ending}", ids)
    write_sources(tmp_path / f"a.{ending}", changes={"source_id": ids})

    seen = observations(file)

    assert list(seen) == [str(each) for each in ids]
    assert [o.scalars["tok_ra"] for o in seen.values()] == SOURCES["ra"]


@pytest.mark.parametrize("value", [float(PROXIMA), 1.5])
def test_ids_that_went_through_floating_point_are_refused(value: float, tmp_path: Path) -> None:
    for ending in FORMATS:
        file = write_sources(
            tmp_path / f"{value}.{ending}", changes={"source_id": [value, value, 7.5]}
        )
        assert all("expected source_id as a positive whole" in reason for reason in reasons(file))
        assert len(reasons(file)) == 3


@pytest.mark.parametrize("sources_name", ["a.vot", "z.csv"])
def test_a_source_table_is_joined_whatever_the_order_of_the_names(
    sources_name: str, tmp_path: Path
) -> None:
    xp = write_xp(tmp_path / "m.fits", [int(PROXIMA), 9])
    alone = observations(xp)[PROXIMA]
    sources = write_sources(tmp_path / sources_name)

    assert gaia.companions(xp) == (sources,)
    assert gaia.companions(sources) == (xp,)
    assert gaia.list_files(tmp_path) == sorted([xp, sources])
    assert gaia.list_files(sources) == sorted([xp, sources])
    assert gaia.list_files(xp) == [xp]
    with_xp, others = observations(xp), observations(sources)
    assert list(with_xp) == [PROXIMA, "9"]
    assert list(others) == [str(int(PROXIMA) + 1), "7"]
    joined = with_xp[PROXIMA]
    assert joined.xp is not None
    assert joined.scalars["tok_parallax"] == pytest.approx(768.066)
    assert joined.ra_deg == 217.392
    assert joined.fingerprint != alone.fingerprint
    assert with_xp["9"].scalars == {}
    assert_same(gaia.read_one(xp, PROXIMA), joined)


def test_files_of_other_cells_of_the_bulk_download_are_no_companions(tmp_path: Path) -> None:
    xp = write_xp(tmp_path / "XpContinuousMeanSpectrum_000000-003111.csv", [7])
    mine = write_sources(tmp_path / "GaiaSource_000000-003111.csv")
    write_sources(tmp_path / "GaiaSource_003112-005263.csv")

    assert gaia.companions(xp) == (mine,)


def test_a_broken_source_table_is_said_and_the_coefficients_are_read(tmp_path: Path) -> None:
    xp = write_xp(tmp_path / "xp.csv", [7])
    write_sources(tmp_path / "sources.csv", units={"parallax": "W"})
    sources = write_sources(tmp_path / "sources.ecsv", units={"parallax": "W"})
    (tmp_path / "sources.csv").unlink()

    seen = observations(xp)["7"]

    assert seen.xp is not None
    assert f"source table {sources.name} left out: column parallax: expected mas" in seen.notes[0]


def test_a_release_is_called_by_its_name(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "legacysurvey_catalogues_bricks"
    files = sorted(folder.glob("gaia-chunk-*.fits"))
    assert len(files) == 4
    for file in files:
        copy = tmp_path / file.name
        copy.write_bytes(file.read_bytes())
        with fits.open(file) as hdus:
            table = hdus[1].data
            seen = observations(copy)
            assert list(seen) == [str(each) for each in table["source_id"]]
            for row, observation in zip(table, seen.values(), strict=True):
                assert observation.release == "DR2"
                assert observation.object_id == f"Gaia DR2 {row['source_id']}"
                assert observation.ra_deg == row["ra"]
                assert observation.catalogue["position_epoch_year"] == 2015.5
                assert observation.catalogue["mag_gaia_g"] == row["phot_g_mean_mag"]
                assert not [key for key in observation.scalars if "flux" in key]
                assert ("tok_parallax" in observation.scalars) == bool(row["parallax"] > 0)
                assert "photometry in the passbands of DR2: no scalars of it" in observation.notes


def test_sources_of_another_release_are_not_joined(tmp_path: Path) -> None:
    xp = write_xp(tmp_path / "xp.csv", [7])
    write_sources(tmp_path / "sources.csv", changes={"ref_epoch": [2015.5] * 3})

    assert observations(xp)["7"].scalars == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"designation": [f"Gaia DR3 {PROXIMA}", "Gaia DR2 8", "Gaia DR3 7"]}, "designation"),
        ({"designation": [f"Gaia DR3 {PROXIMA}", f"Gaia DR2 {int(PROXIMA) + 1}", ""]}, "2015.5"),
        ({"ref_epoch": [2016.0, 2000.0, 2016.0]}, "expected ref_epoch 2016.0"),
        ({"ra": [1.0, 360.1, 3.0]}, "expected ra_deg in [0, 360)"),
        ({"ra": [1.0, -0.1, 3.0]}, "expected ra_deg in [0, 360)"),
        ({"dec": [1.0, 90.5, 3.0]}, "dec_deg in [-90, 90]"),
        ({"ra": [1.0, np.nan, 3.0]}, "both coordinates of the position or none"),
        ({"ra": [1.0, np.inf, 3.0]}, "finite"),
        ({"source_id": [int(PROXIMA), int(PROXIMA), 7]}, "the id of row 1 again"),
        ({"source_id": [int(PROXIMA), -5, 7]}, "positive whole number"),
        ({"phot_g_mean_mag": [8.984, 15.0, 18.187]}, "phot_g_mean_mag says 15.000"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "fits"])
def test_a_bad_row_is_skipped_and_the_others_are_read(
    ending: str, changes: dict[str, list[Any] | None], expected: str, tmp_path: Path
) -> None:
    file = write_sources(tmp_path / f"sources.{ending}", changes=changes)

    read = everything(file)

    assert [o.source_id for o in read.observations] == [PROXIMA, "7"]
    (skipped,) = read.skipped
    assert skipped.file == str(file)
    assert skipped.reason.startswith("row 2")
    assert expected in skipped.reason


def test_a_source_without_position_is_read_and_said(tmp_path: Path) -> None:
    file = write_sources(tmp_path / "s.csv", changes={"ra": [np.nan] * 3, "dec": [np.nan] * 3})

    seen = observations(file)[PROXIMA]

    assert seen.ra_deg is None
    assert "no position" in seen.notes
    assert seen.scalars.keys() == {"tok_parallax", "tok_flux_g_gaia", "tok_flux_bp_gaia"}


@pytest.mark.parametrize("ending", ["ecsv", "fits", "vot"])
def test_units_are_converted(ending: str, tmp_path: Path) -> None:
    expected = observations(write_sources(tmp_path / f"a.{ending}"))
    changed = write_sources(
        tmp_path / f"b.{ending}",
        changes={
            "parallax": [each / 1000 for each in SOURCES["parallax"]],
            "ra": [np.radians(each) for each in SOURCES["ra"]],
            "radial_velocity": [1000 * each for each in SOURCES["radial_velocity"]],
        },
        units={"parallax": "arcsec", "ra": "rad", "radial_velocity": "m/s"},
    )

    for source_id, seen in observations(changed).items():
        assert seen.scalars == pytest.approx(expected[source_id].scalars)
        assert seen.catalogue == pytest.approx(expected[source_id].catalogue)


@pytest.mark.parametrize("ending", ["ecsv", "fits", "vot"])
@pytest.mark.parametrize(
    ("column", "unit"), [("phot_g_mean_flux", "W"), ("parallax", "mag"), ("pmra", "mas")]
)
def test_a_unit_of_something_else_is_refused(
    ending: str, column: str, unit: str, tmp_path: Path
) -> None:
    file = write_sources(tmp_path / f"sources.{ending}", units={column: unit})

    (reason,) = reasons(file)

    assert reason == f"column {column}: expected {UNITS[column]}, got {unit!r}"


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("phot_g_mean_flux", "'electron'.s**-1"),
        ("phot_g_mean_flux", "e-/s"),
        ("pmra", "mas.yr**-1"),
        ("ra", "Angle[deg]"),
        ("radial_velocity", "km.s**-1"),
    ],
)
def test_units_as_the_archive_writes_them_are_known(column: str, unit: str, tmp_path: Path) -> None:
    file = write_sources(tmp_path / "sources.fits")
    expected = observations(file)[PROXIMA]
    with fits.open(file) as hdus:
        number = hdus[1].columns.names.index(column) + 1
    start = file.read_bytes().index(f"TUNIT{number:<3}= ".encode())
    content = bytearray(file.read_bytes())
    text = unit.replace("'", "''")
    content[start : start + 80] = f"TUNIT{number:<3}= '{text}'".ljust(80).encode()
    file.write_bytes(content)
    assert read_header(file).units[column] == unit

    assert_same(observations(file)[PROXIMA], expected)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"num_coefficients": 54}, "expected 55 bp_coefficients, got 54"),
        ({"changes": {"bp_basis_function_id": [56, 12]}}, "bp_basis_function_id 56, got 12"),
        ({"changes": {"rp_n_parameters": [55, 54]}}, "expected rp_n_parameters 55, got 54"),
    ],
)
@pytest.mark.parametrize("ending", FORMATS)
def test_coefficients_that_mean_something_else_are_refused(
    ending: str, kwargs: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    for reason in reasons(write_xp(tmp_path / f"xp.{ending}", [5, 7], **kwargs)):
        assert expected in reason
        assert reason.startswith("row ")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused(ending: str, value: float, tmp_path: Path) -> None:
    good = np.ones((2, NUM_XP_COEFFICIENTS))
    bad = good.copy()
    bad[1, 3] = value

    file = write_xp(tmp_path / f"xp.{ending}", [5, 7], changes={"rp_coefficients": bad.tolist()})

    assert reasons(file) == ["row 2 (source_id 7): RP coefficients hold NaN or infinity"]
    assert list(o.source_id for o in everything(file).observations) == ["5"]


def test_rows_come_in_batches_before_the_end_is_reached(tmp_path: Path) -> None:
    file = write_xp(tmp_path / "xp.csv", list(range(1, 151)))
    with file.open("a") as text:
        text.write('151,56,"(1.0, 2')

    batches = list(gaia.read(file, batch_size=64))

    assert [len(batch.observations) for batch in batches] == [64, 64, 22]
    assert [len(batch.skipped) for batch in batches] == [0, 0, 1]
    assert "unexpected end of data" in batches[-1].skipped[0].reason


@pytest.mark.parametrize("num", [1, 2])
def test_columns_without_a_name_such_as_row_numbers_are_stepped_over(
    num: int, tmp_path: Path
) -> None:
    for name in ("xp", "sources"):
        (tmp_path / name).mkdir()
    plain = [
        write_xp(tmp_path / "xp" / "a.csv", [5, 7, 9]),
        write_sources(tmp_path / "sources" / "a.csv"),
    ]
    for file in plain:
        expected = observations(file)
        for _ in range(num):  # as pandas saves a table, and one that it saved before
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
            table.columns = ["" if name.startswith("Unnamed") else name for name in table.columns]
            table.to_csv(file)

        assert file.read_text().startswith("," * num)
        assert observations(file).keys() == expected.keys()
        for source_id, seen in observations(file).items():
            assert_same(seen, expected[source_id])


def test_a_text_that_ends_without_a_line_break_is_said(tmp_path: Path) -> None:
    file = write_sources(tmp_path / "sources.csv")
    file.write_bytes(file.read_bytes()[:-2])

    notes = [o.notes for o in everything(file).observations]

    cut = "the file ends in this row without a line break: it may be cut short"
    assert [cut in each for each in notes] == [False, False, True]


def test_one_new_line_changes_one_row(tmp_path: Path) -> None:
    before = observations(write_xp(tmp_path / "xp.csv", [5, 7, 9]))
    after = observations(write_xp(tmp_path / "xp.csv", [9, 11, 7, 5]))

    for source_id, observation in before.items():
        assert_same(after[source_id], observation)
    changed = np.ones((3, NUM_XP_COEFFICIENTS)).tolist()
    other = observations(
        write_xp(tmp_path / "xp.csv", [5, 7, 9], changes={"rp_coefficients": changed})
    )
    assert not {o.fingerprint for o in other.values()} & {o.fingerprint for o in before.values()}


@pytest.mark.parametrize("ending", FORMATS)
def test_one_source_again_is_as_it_was_read(ending: str, tmp_path: Path) -> None:
    file = write_xp(tmp_path / f"xp.{ending}", [5, 7, 9])
    write_sources(tmp_path / f"sources.{ending}")

    for source_id, observation in observations(file).items():
        assert_same(gaia.read_one(file, source_id), observation)
    for missing in ("8", "", "x", "-1"):
        with pytest.raises(ValueError, match=f"{file}.*no source '{missing}'"):
            gaia.read_one(file, missing)


def test_an_error_of_the_archive_is_told(tmp_path: Path) -> None:
    file = tmp_path / "answer.vot"
    file.write_text(
        '<?xml version="1.0"?><VOTABLE version="1.4"><RESOURCE type="results">'
        '<INFO name="QUERY_STATUS" value="ERROR">quota exceeded</INFO></RESOURCE></VOTABLE>'
    )

    assert reasons(file) == ["the archive answered with an error: quota exceeded"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty file"),
        (b"PAR1\xff\xfe", "bytes that are no text"),
        (b"source_id,bp_coefficients,rp_coefficients\n", "the table has no rows"),
        (b"<html><body>503</body></html>", "expected source_id with"),
        (b"\x89PNG\r\n\x1a\n", "bytes that are no text"),
        (b"x" * (2 << 20), "a line of more than"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(content)

    (reason,) = reasons(file)

    assert expected in reason


def _damaged(content: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    if seed % 5 == 0:
        return content[: rng.integers(len(content))]
    flipped = bytearray(content)
    # Half of the flips lie in the first part, where headers and columns are described.
    reach = len(content) if seed % 2 else min(len(content), 9000)
    for place in rng.integers(reach, size=rng.integers(1, 4)):
        flipped[place] ^= 1 << int(rng.integers(8))
    return bytes(flipped)


def _check_damage(file: Path, original: bytes, seeds: range) -> None:
    good = {o.fingerprint for o in everything(file).observations}
    checked = original[:2] == b"\x1f\x8b"
    for seed in seeds:
        file.write_bytes(_damaged(original, seed))
        read = everything(file)
        assert read.observations or read.skipped
        assert {skipped.file for skipped in read.skipped} <= {str(file)}
        assert all(skipped.reason for skipped in read.skipped)
        for seen in read.observations:
            assert seen.source == str(file)
            assert not checked or seen.fingerprint in good


@pytest.mark.parametrize("name", [*XP_FILES, "XP_CONTINUOUS_RAW_with_missing_BP.csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_real_file_is_read_or_refused(
    name: str, packed: bool, real: Callable[[str], Path]
) -> None:
    file = real(name)
    content = file.read_bytes()
    if packed:
        content = gzip.compress(content, mtime=0)
        file.write_bytes(content)

    # The header of an ecsv is YAML, which takes a while.
    _check_damage(file, content, range(40 if name.endswith("ecsv") else 200))


@pytest.mark.slow
@pytest.mark.parametrize("name", XP_FILES)
def test_much_damage_is_read_or_refused(name: str, real: Callable[[str], Path]) -> None:
    file = real(name)
    _check_damage(file, file.read_bytes(), range(1000, 4000))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_damaged_source_table_is_read_or_refused(ending: str, tmp_path: Path) -> None:
    file = write_sources(tmp_path / f"sources.{ending}")

    _check_damage(file, file.read_bytes(), range(200))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_source_table_gives_no_wrong_row(ending: str, tmp_path: Path) -> None:
    file = write_sources(tmp_path / f"sources.{ending}")
    content = file.read_bytes()
    good = {o.source_id: o.fingerprint for o in everything(file).observations}
    for length in np.linspace(0, len(content) - 3, 40).astype(int):
        file.write_bytes(content[:length])
        for seen in everything(file).observations:
            warned = any("may be cut short" in note for note in seen.notes)
            assert warned or good[seen.source_id] == seen.fingerprint


def test_calibrated_flux_is_the_one_of_gaiaxpy(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = shared_data / "gaia_xp"

    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    published = pd.read_csv(folder / "calibrator_solution_default.csv").set_index("source_id")
    spectra = {name: calibrated_spectrum(folder / name, PROXIMA) for name in XP_FILES}
    spectra["other"] = calibrated_spectrum(folder / XP_FILES[0], OTHER)
    faint = calibrated_spectrum(folder / "XP_CONTINUOUS_RAW_with_missing_BP.csv", FAINT)
    assert faint.wavelength_angstrom[faint.mask].max() < 6500
    assert (faint.ivar[~faint.mask] > 0).all()
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []

    from gaiaxpy import calibrate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # GaiaXPy 2.1.5 with pandas 3
        direct = calibrate(folder / XP_FILES[0], save_file=False)[0].set_index("source_id")
    for name, spectrum in spectra.items():
        source_id = int(OTHER if name == "other" else PROXIMA)
        flux, error = direct.loc[source_id, "flux"], direct.loc[source_id, "flux_error"]
        to_ours = (units.W / units.m**2 / units.nm).to("1e-17 erg s-1 cm-2 AA-1")
        np.testing.assert_allclose(spectrum.flux, flux * to_ours, rtol=1e-5)
        np.testing.assert_allclose(spectrum.ivar, (error * to_ours) ** -2.0, rtol=1e-5)
        np.testing.assert_array_equal(spectrum.wavelength_angstrom, np.arange(3360, 10201, 20.0))
        assert not spectrum.mask.any()
        told = str(published.loc[source_id, "flux"]).strip("()").split(",")
        np.testing.assert_allclose(spectrum.flux, np.array(told, float) * 1e19, rtol=2e-3)


def test_calibrated_flux_needs_errors_and_correlations(tmp_path: Path) -> None:
    file = write_xp(tmp_path / "xp.csv", [5])

    with pytest.raises(ValueError, match=r"xp.csv: bp_coefficient_correlations: expected 1485"):
        calibrated_spectrum(file, "5")
    with pytest.raises(ValueError, match="no source '6'"):
        calibrated_spectrum(file, "6")


def test_whole_numbers_with_missing_ones_are_read_without_a_warning() -> None:
    cells = np.ma.masked_array(np.arange(3, dtype=np.int16), mask=[False, True, False])

    got = Row(1, {"bp_coefficients": cells}).array_of("bp_coefficients")

    np.testing.assert_array_equal(got, [0, np.nan, 2])


def test_what_is_no_number_in_an_array_is_named() -> None:
    for cell in ("(1.0, 6r.1)", np.array([1 + 2j])):
        with pytest.raises(ValueError, match=r"expected numbers, got '(6r\.1|\[1\.\+2\.j\])'"):
            Row(1, {"bp_coefficients": cell}).array_of("bp_coefficients")
