"""DESI spectra: three arms become one grid, redshifts come by TARGETID, bad fibres stay out."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from training.observations import Observation, ObservationBatch
from training.surveys import desi, legacysurvey
from training.surveys.coaddition import DESI_GRID_ANGSTROM, coadd, common_grid, first_pixel
from training.surveys.desi_targets import object_id
from training.surveys.wavelengths import air_to_vacuum, refractive_index

GALAXY = 39633345008634465  # RELEASE 9011, BRICKID 607466, OBJID 2657
FLUX_UNIT = "10**-17 erg/(s cm2 Angstrom)"
IVAR_UNIT = "10**+34 (s2 cm4 Angstrom2) / erg2"
GRIDS = {  # as desispec writes them
    "B": 3600 + 0.8 * np.arange(2751),
    "R": 5760 + 0.8 * np.arange(2326),
    "Z": 7520 + 0.8 * np.arange(2881),
}
FIBERMAP: dict[str, tuple[str, Any]] = {
    "OBJTYPE": ("3A", "TGT"), "COADD_FIBERSTATUS": ("J", 0), "TARGET_RA": ("D", 150.5),
    "TARGET_DEC": ("D", 2.25), "EBV": ("E", 0.05), "FLUX_G": ("E", 10.0), "FLUX_R": ("E", 100.0),
    "FLUX_Z": ("E", -5.0), "FLUX_W1": ("E", 0.0), "FLUX_W2": ("E", np.nan),
    "SHAPE_R": ("E", 1.5), "SHAPE_E1": ("E", 0.1), "SHAPE_E2": ("E", -0.2),
}  # fmt: skip


def target_id(number: int) -> int:
    """A TARGETID of DR9, brick 1000."""
    return 9010 << 42 | 1000 << 22 | number


def write(
    file: Path,
    targets: list[int],
    *,
    columns: dict[str, tuple[str, Any] | None] | None = None,
    header: dict[str, Any] | None = None,
    arms: str = "BRZ",
    grids: dict[str, np.ndarray] | None = None,
    images: dict[str, np.ndarray] | None = None,
    units: dict[str, str | None] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """A file of spectra as desispec.io.write_spectra lays it out.

    Args:
        file: Where to write it.
        targets: TARGETID of each row.
        columns: FIBERMAP columns with another value (one for all rows, or a list), or left out.
        header: Keywords of the primary header.
        arms: Which arms to write.
        grids: Wavelengths by arm.
        images: HDU name -> pixels; others are 1 (flux, plus the row), 4 (ivar), 0 (mask).
        units: HDU name -> BUNIT, None leaves it out.
        without: HDUs to leave out.
    """
    num_rows = len(targets)
    given = {**FIBERMAP, **(columns or {})}
    table = [fits.Column("TARGETID", "K", array=np.array(targets))]
    for name, cell in given.items():
        if cell is not None:
            values = cell[1] if isinstance(cell[1], list) else [cell[1]] * num_rows
            table.append(fits.Column(name, cell[0], array=np.array(values)))
    primary = fits.PrimaryHDU()
    primary.header.update(header or {"DEPNAM00": "SPECPROD", "DEPVER00": "iron"})
    hdus = [primary, fits.BinTableHDU.from_columns(table, name="FIBERMAP")]
    for arm in arms:
        grid = (grids or GRIDS)[arm]
        made = {
            f"{arm}_WAVELENGTH": grid,
            f"{arm}_FLUX": np.ones((num_rows, len(grid)), "f4") + np.arange(num_rows)[:, None],
            f"{arm}_IVAR": np.full((num_rows, len(grid)), 4, "f4"),
            f"{arm}_MASK": np.zeros((num_rows, len(grid)), np.uint32),
        }
        written = {"WAVELENGTH": "Angstrom", "FLUX": FLUX_UNIT, "IVAR": IVAR_UNIT}
        for name, pixels in made.items():
            if name in without:
                continue
            hdu = fits.ImageHDU((images or {}).get(name, pixels), name=name)
            unit = (units or {}).get(name, written.get(name.split("_")[1]))
            if unit is not None:
                hdu.header["BUNIT"] = unit
            hdus.append(hdu)
    fits.HDUList(hdus).writeto(file, overwrite=True)
    return file


def write_redrock(
    file: Path, rows: list[tuple[int, float, int, str]], *, name: str = "REDSHIFTS"
) -> Path:
    """A redshift table: TARGETID, Z, ZWARN, SPECTYPE."""
    targets, z, zwarn, spectype = (np.array(column) for column in zip(*rows, strict=True))
    columns = [
        fits.Column("TARGETID", "K", array=targets),
        fits.Column("Z", "D", array=z),
        fits.Column("ZERR", "D", array=np.full(len(z), 1e-4)),
        fits.Column("ZWARN", "K", array=zwarn),
        fits.Column("SPECTYPE", "6A", array=spectype),
    ]
    table = fits.BinTableHDU.from_columns(columns, name=name)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(file)
    return file


def read_all(file: Path, batch_size: int = 64) -> ObservationBatch:
    batches = list(desi.read(file, batch_size=batch_size))
    return ObservationBatch(
        tuple(seen for batch in batches for seen in batch.observations),
        tuple(skipped for batch in batches for skipped in batch.skipped),
    )


def only(file: Path) -> Observation:
    batch = read_all(file)
    assert batch.skipped == ()
    (seen,) = batch.observations
    return seen


def only_reason(file: Path) -> str:
    batch = read_all(file)
    assert batch.observations == ()
    (skipped,) = batch.skipped
    assert skipped.file == str(file)
    return skipped.reason


def assert_same(one: Observation, other: Observation) -> None:
    assert one.spectrum is not None
    assert other.spectrum is not None
    for name in ("flux", "ivar", "mask", "wavelength_angstrom"):
        np.testing.assert_array_equal(getattr(one.spectrum, name), getattr(other.spectrum, name))
    assert one.fingerprint == other.fingerprint
    assert (one.scalars, one.catalogue, one.notes) == (other.scalars, other.catalogue, other.notes)
    assert (one.object_id, one.source_part) == (other.object_id, other.source_part)


# -- real files


def test_a_real_galaxy_has_the_redshift_and_photometry_of_its_tables(shared_data: Path) -> None:
    folder = shared_data / "desi_spectra"
    file = folder / "coadd-4-80613-thru20210324.fits"
    with fits.open(folder / "tractor-1054p567.fits") as hdus:
        tractor = hdus[1].data[0]
        legacy_id = "-".join(str(tractor[name]) for name in ("RELEASE", "BRICKID", "OBJID"))
        flux = {band: float(tractor[f"FLUX_{band.upper()}"]) for band in ("g", "r", "z", "w1")}
        ebv, radius = float(tractor["EBV"]), float(tractor["SHAPE_R"])

    seen = only(file)

    assert (seen.source_id, seen.source_part) == (str(GALAXY), str(GALAXY))
    assert seen.object_id == legacy_id == "9011-607466-2657"
    assert (seen.survey, seen.release) == ("desi", "iron")
    assert (seen.ra_deg, seen.dec_deg) == pytest.approx((105.48977, 56.66930), abs=1e-5)
    assert seen.catalogue["redshift"] == pytest.approx(0.3687, abs=5e-5)
    assert seen.catalogue["redshift_error"] == pytest.approx(1.18e-6, rel=1e-2)
    assert seen.catalogue["redshift_source"] == "desi"
    assert seen.catalogue["spectrum_class"] == "GALAXY"
    assert seen.scalars["tok_z"] == seen.catalogue["redshift"]
    for band, value in flux.items():
        assert seen.scalars[f"tok_flux_{band}"] == pytest.approx(value, rel=1e-6)
    assert seen.scalars["tok_ebv"] == pytest.approx(ebv, rel=1e-6)
    assert seen.scalars["tok_shape_r"] == seen.catalogue["radius_arcsec"]
    assert seen.catalogue["radius_arcsec"] == pytest.approx(radius, rel=1e-6)
    assert seen.notes == ()
    assert desi.companions(file) == (folder / "redrock-4-80613-thru20210324.fits",)
    assert_same(desi.read_one(file, str(GALAXY)), seen)


@pytest.mark.parametrize(
    "name", ["coadd-4-80613-thru20210324.fits", "coadd-1-80693-thru20210204.fits"]
)
def test_real_arms_become_one_grid_pixel_by_pixel(name: str, shared_data: Path) -> None:
    file = shared_data / "desi_spectra" / name
    with fits.open(file) as hdus:
        arms = {
            arm: tuple(
                np.array(hdus[f"{arm}_{kind}"].data, np.float64)
                for kind in ("WAVELENGTH", "FLUX", "IVAR", "MASK")
            )
            for arm in "BRZ"
        }
        targets = hdus["FIBERMAP"].data["TARGETID"].tolist()

    observations = read_all(file).observations

    assert [int(seen.source_id) for seen in observations] == targets
    for row, seen in enumerate(observations):
        # Independently: every measurement goes to the tenth of an Angstrom it was made at.
        sums: dict[int, list[float]] = {}
        for wavelength, flux, ivar, mask in arms.values():
            for w, f, i, m in zip(wavelength, flux[row], ivar[row], mask[row], strict=True):
                total = sums.setdefault(round(w * 10), [0.0, 0.0])
                if m == 0 and i > 0:
                    total[0] += f * i
                    total[1] += i
        tenths = sorted(sums)
        assert len(tenths) == 7781
        expected_ivar = np.array([sums[tenth][1] for tenth in tenths])
        expected_flux = np.array([sums[tenth][0] for tenth in tenths]) / expected_ivar
        assert seen.spectrum is not None
        np.testing.assert_allclose(
            seen.spectrum.wavelength_angstrom, np.array(tenths) / 10, atol=1e-6
        )
        np.testing.assert_allclose(seen.spectrum.ivar, expected_ivar, rtol=1e-6)
        np.testing.assert_allclose(seen.spectrum.flux, expected_flux, rtol=2e-6, atol=1e-6)
        # Where one arm alone looks, nothing at all is changed.
        np.testing.assert_array_equal(seen.spectrum.flux[:2700], arms["B"][1][row][:2700])
        assert not seen.spectrum.mask.any()


def test_a_real_trimmed_file_has_no_redshifts_and_says_so(shared_data: Path) -> None:
    batch = read_all(shared_data / "desi_spectra" / "coadd-1-80693-thru20210204.fits")

    assert batch.skipped == ()
    assert [seen.object_id for seen in batch.observations] == [
        "9011-658596-1954", "9011-658597-1890", "9011-658596-3487", "9011-658597-2852",
        "9011-658805-1644",
    ]  # fmt: skip
    for seen in batch.observations:
        assert seen.release == "fuji"
        assert seen.notes == ("no redshift table: redshift and class left out",)
        assert not seen.scalars
        assert not seen.catalogue


def test_a_real_folder_gives_its_coadds(shared_data: Path) -> None:
    files = desi.list_files(shared_data / "desi_spectra")

    assert [file.name[:8] for file in files] == ["coadd-1-", "coadd-4-"]


def test_the_photometry_and_the_spectrum_of_a_galaxy_are_one_object(shared_data: Path) -> None:
    folder = shared_data / "desi_spectra"
    (batch,) = list(legacysurvey.read(folder / "tractor-1054p567.fits"))
    (source,) = batch.observations

    seen = only(folder / "coadd-4-80613-thru20210324.fits")

    assert source.object_id == seen.object_id
    assert source.ra_deg == pytest.approx(seen.ra_deg, abs=1e-7)
    assert source.scalars["tok_flux_r"] == pytest.approx(seen.scalars["tok_flux_r"])


# -- ids


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (GALAXY, "9011-607466-2657"),
        (39089837499744649, "39089837499744649"),  # RELEASE 8888: a secondary target
        (9999 << 42 | 5 << 22 | 1, str(9999 << 42 | 5 << 22 | 1)),  # a target of opportunity
        (9010 << 42 | 1 << 22, "9010-1-0"),
        (9010 << 42 | 5, str(9010 << 42 | 5)),  # no brick 0
        (9010 << 42 | 662175 << 22 | 5, str(9010 << 42 | 662175 << 22 | 5)),
        (1 << 58 | GALAXY, str(1 << 58 | GALAXY)),  # a mock
        (2 << 60 | GALAXY, str(2 << 60 | GALAXY)),  # from Gaia DR2
        (616088 << 30, str(616088 << 30)),
    ],
)
def test_targets_of_the_legacy_surveys_have_their_ids(target: int, expected: str) -> None:
    assert object_id(target) == expected


@given(st.integers(0, (1 << 22) - 1), st.integers(1, 662174), st.sampled_from([8000, 9012, 10005]))
def test_ids_of_the_legacy_surveys_survive_packing(objid: int, brick: int, release: int) -> None:
    packed = release * 2**42 + brick * 2**22 + objid

    assert object_id(packed) == f"{release}-{brick}-{objid}"


# -- coaddition


def test_overlapping_pixels_are_weighted_by_inverse_variance(tmp_path: Path) -> None:
    flux = {"B_FLUX": np.full((1, 2751), 2, "f4"), "R_FLUX": np.full((1, 2326), 5, "f4")}
    ivar = {"B_IVAR": np.full((1, 2751), 3, "f4"), "R_IVAR": np.full((1, 2326), 1, "f4")}

    spectrum = only(write(tmp_path / "a.fits", [target_id(1)], images=flux | ivar)).spectrum

    assert spectrum is not None
    overlap = (spectrum.wavelength_angstrom > 5759.9) & (spectrum.wavelength_angstrom < 5800.1)
    assert overlap.sum() == 51
    assert set(spectrum.flux[overlap].tolist()) == {(2 * 3 + 5 * 1) / 4}
    assert set(spectrum.ivar[overlap].tolist()) == {4.0}
    before = spectrum.wavelength_angstrom < 5759.9
    assert set(spectrum.flux[before].tolist()) == {2.0}
    assert set(spectrum.ivar[before].tolist()) == {3.0}


@given(seed=st.integers(0, 999))
def test_coadding_conserves_weighted_flux_and_adds_inverse_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        (
            first_pixel(DESI_GRID_ANGSTROM, grid),
            rng.normal(size=len(grid)).astype(np.float32),
            rng.uniform(0, 2, len(grid)).astype(np.float32) * (rng.random(len(grid)) > 0.1),
        )
        for grid in GRIDS.values()
    ]

    spectrum = coadd(parts, DESI_GRID_ANGSTROM)

    weighted = sum(float((f.astype(float) * i).sum()) for _, f, i in parts)
    assert float((spectrum.flux.astype(float) * spectrum.ivar).sum()) == pytest.approx(
        weighted, abs=1e-3
    )
    assert spectrum.ivar.sum(dtype=float) == pytest.approx(
        sum(float(i.sum(dtype=float)) for _, _, i in parts), rel=1e-6
    )
    np.testing.assert_array_equal(spectrum.mask, spectrum.ivar == 0)


def test_masked_pixels_have_no_weight_and_are_bad_where_no_arm_is_good(tmp_path: Path) -> None:
    mask = {"B_MASK": np.zeros((1, 2751), np.uint32)}
    mask["B_MASK"][0, [10, 2720]] = [1, 2**31]  # the second lies in the overlap with R
    flux = {"B_FLUX": np.ones((1, 2751), "f4"), "R_FLUX": np.full((1, 2326), 9, "f4")}
    flux["B_FLUX"][0, [10, 20, 30]] = [7, np.nan, np.inf]
    ivar = {"B_IVAR": np.full((1, 2751), 4, "f4")}
    ivar["B_IVAR"][0, [40, 50, 60]] = [0, -1, np.nan]

    spectrum = only(write(tmp_path / "a.fits", [target_id(1)], images=mask | flux | ivar)).spectrum

    assert spectrum is not None
    assert np.flatnonzero(spectrum.mask).tolist() == [10, 20, 30, 40, 50, 60]
    assert (spectrum.flux[spectrum.mask] == 0).all()
    assert (spectrum.ivar[spectrum.mask] == 0).all()
    assert (spectrum.flux[2720], spectrum.ivar[2720]) == (9, 4)


def test_the_primary_header_may_have_any_name(tmp_path: Path) -> None:
    header = {"EXTNAME": "COADD", "SPECPROD": "loa"}

    assert only(write(tmp_path / "a.fits", [target_id(1)], header=header)).release == "loa"


def test_a_missing_arm_leaves_its_pixels_without_information(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "a.fits", [target_id(1)], arms="BZ"))

    assert seen.notes[0] == "no arm R in the file"
    assert seen.spectrum is not None
    assert len(seen.spectrum.flux) == 7781
    masked = seen.spectrum.wavelength_angstrom[seen.spectrum.mask]
    assert (masked[0], masked[-1]) == pytest.approx((5800.8, 7519.2))


def test_other_grids_are_joined_where_they_are_aligned() -> None:
    blue, red = np.arange(4000.0, 5000.5, 0.5), np.arange(4900.0, 6000.5, 0.5)

    grid = common_grid([red, blue])

    np.testing.assert_allclose(grid, np.arange(4000.0, 6000.5, 0.5))
    with pytest.raises(ValueError, match="not aligned"):
        common_grid([blue, red + 0.2])
    with pytest.raises(ValueError, match=r"a gap from 5000\.0 to 5200\.0"):
        common_grid([blue, red + 300])


# -- redshifts


def test_redshifts_are_joined_by_targetid_and_never_by_row(tmp_path: Path) -> None:
    targets = [target_id(number) for number in (5, 3, 9, 7)]
    file = write(tmp_path / "coadd-main-dark-1.fits", targets)
    write_redrock(
        tmp_path / "redrock-main-dark-1.fits",
        [
            (target_id(3), 0.3, 0, "GALAXY"),
            (target_id(7), 0.7, 4, "GALAXY"),
            (target_id(5), 5.0, 0, "QSO"),
            (target_id(3), 3.3, 0, "STAR"),
        ],
    )

    batch = read_all(file)

    five, three, nine, seven = batch.observations
    assert (five.catalogue["redshift"], five.catalogue["spectrum_class"]) == (5.0, "QSO")
    assert (three.catalogue["redshift"], three.scalars["tok_z"]) == (0.3, 0.3)
    assert nine.notes == ("not in the redshift table: redshift and class left out",)
    assert seven.notes == ("ZWARN 4 (SMALL_DELTA_CHI2): redshift and class left out",)
    for seen in (nine, seven):
        assert "tok_z" not in seen.scalars
        assert not {"redshift", "redshift_source", "spectrum_class"} & seen.catalogue.keys()
    (skipped,) = batch.skipped
    assert skipped.file.endswith("redrock-main-dark-1.fits")
    assert skipped.reason == f"row 3 (TARGETID {target_id(3)}): the TARGETID came before"


def test_older_zbest_tables_are_read_too(tmp_path: Path) -> None:
    file = write(tmp_path / "spectra-0-70502-20201215.fits.gz", [target_id(1)])
    write_redrock(
        tmp_path / "zbest-0-70502-20201215.fits", [(target_id(1), 1.5, 0, "QSO")], name="ZBEST"
    )

    assert only(file).catalogue["redshift"] == 1.5
    assert desi.companions(file) == (tmp_path / "zbest-0-70502-20201215.fits",)


def test_a_redshift_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "coadd-a.fits", [target_id(1)])
    write_redrock(tmp_path / "redrock-a.fits", [(target_id(1), np.nan, 0, "STAR")])

    assert only(file).notes == ("Z is not a number: redshift and class left out",)


def test_a_broken_redshift_table_costs_the_redshifts_and_not_the_spectra(tmp_path: Path) -> None:
    file = write(tmp_path / "coadd-a.fits", [target_id(1)])
    (tmp_path / "redrock-a.fits").write_bytes(b"nothing of the kind")

    batch = read_all(file)

    (seen,) = batch.observations
    assert seen.notes[0].startswith("redrock-a.fits could not be used: not a FITS file")
    assert "redshift" not in seen.catalogue
    assert batch.skipped[0].file == str(tmp_path / "redrock-a.fits")


# -- which rows are targets


@pytest.mark.parametrize(
    ("target", "columns", "reason"),
    [
        (-77, {}, "the TARGETID is not positive"),
        (target_id(1), {"OBJTYPE": ("3A", "SKY")}, "no target: OBJTYPE SKY"),
        (target_id(1), {"OBJTYPE": ("3A", "BAD")}, "no target: OBJTYPE BAD"),
        (1 << 59 | target_id(1), {"OBJTYPE": None}, "no target: OBJTYPE SKY, by its TARGETID"),
        (
            target_id(1),
            {"COADD_FIBERSTATUS": ("J", 1 << 9 | 1 << 16)},
            "COADD_FIBERSTATUS 66048: BADPOSITION, BADFIBER",
        ),
        (
            target_id(1),
            {"COADD_FIBERSTATUS": ("J", -(2**31))},
            "COADD_FIBERSTATUS 2147483648: bit 31",
        ),
    ],
)
def test_what_is_no_good_target_is_refused(
    target: int, columns: dict[str, tuple[str, Any] | None], reason: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.fits", [target], columns=columns)

    assert only_reason(file).startswith(f"row 0 (TARGETID {target}): {reason}")
    with pytest.raises(ValueError, match=r"a\.fits: row 0 \(TARGETID"):
        desi.read_one(file, str(target))


def test_good_rows_among_bad_ones_are_read(tmp_path: Path) -> None:
    targets = [target_id(1), -5, target_id(2), target_id(1), target_id(4)]
    status = ("J", [0, 0, 0, 0, 512])
    ivar = {f"{arm}_IVAR": np.ones((5, len(GRIDS[arm])), "f4") for arm in "BRZ"}
    for pixels in ivar.values():
        pixels[2] = 0
    file = write(tmp_path / "a.fits", targets, columns={"COADD_FIBERSTATUS": status}, images=ivar)

    batch = read_all(file)

    assert [seen.source_part for seen in batch.observations] == [str(target_id(1))]
    assert batch.observations[0].spectrum is not None
    assert batch.observations[0].spectrum.flux[0] == 1  # of row 0, not of its repetition
    assert {skipped.reason.split(":")[0][:5]: skipped.reason for skipped in batch.skipped} == {
        "row 1": "row 1 (TARGETID -5): the TARGETID is not positive: the fibre was on no target",
        "row 2": f"row 2 (TARGETID {target_id(2)}): no usable pixel: ivar is 0 everywhere, "
        "or all are masked",
        "row 3": f"row 3 (TARGETID {target_id(1)}): the TARGETID came before",
        "row 4": f"row 4 (TARGETID {target_id(4)}): COADD_FIBERSTATUS 512: BADPOSITION",
    }
    assert_same(desi.read_one(file, str(target_id(1))), batch.observations[0])
    with pytest.raises(ValueError, match=r"a\.fits: row 2 .*no usable pixel"):
        desi.read_one(file, str(target_id(2)))
    for part in ("", "abc", "12345", "--5"):
        with pytest.raises(ValueError, match=rf"a\.fits: no TARGETID '{part}'"):
            desi.read_one(file, part)


def test_a_repeated_target_is_the_first_of_its_rows_whose_fibre_was_good(tmp_path: Path) -> None:
    targets = [target_id(1), target_id(2), target_id(1), target_id(1)]
    columns: dict[str, tuple[str, Any] | None] = {
        "COADD_FIBERSTATUS": ("J", [512, 0, 0, 0]),
        "FLUX_R": ("E", [1.0, 2.0, 3.0, 4.0]),
    }
    file = write(tmp_path / "a.fits", targets, columns=columns)

    for batch_size in (1, 64):
        batch = read_all(file, batch_size)
        assert {seen.source_part: seen.scalars["tok_flux_r"] for seen in batch.observations} == {
            str(target_id(1)): 3, str(target_id(2)): 2,
        }  # fmt: skip
        assert [skipped.reason for skipped in batch.skipped] == [
            f"row 0 (TARGETID {target_id(1)}): COADD_FIBERSTATUS 512: BADPOSITION",
            f"row 3 (TARGETID {target_id(1)}): the TARGETID came before",
        ]
    seen = desi.read_one(file, str(target_id(1)))
    assert seen.spectrum is not None
    assert set(seen.spectrum.flux.tolist()) == {3.0}  # of row 2


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_a_file_without_any_inverse_variance_gives_no_spectrum(
    value: float, tmp_path: Path
) -> None:
    images = {f"{arm}_IVAR": np.full((2, len(GRIDS[arm])), value, "f4") for arm in "BRZ"}
    file = write(tmp_path / "a.fits", [target_id(1), target_id(2)], images=images)

    batch = read_all(file)

    assert batch.observations == ()
    assert [skipped.reason for skipped in batch.skipped] == [
        f"row {row} (TARGETID {target_id(row + 1)}): no usable pixel: ivar is 0 everywhere, "
        "or all are masked"
        for row in (0, 1)
    ]


def test_exposures_of_a_target_are_coadded_but_those_of_bad_fibres(tmp_path: Path) -> None:
    one, two = target_id(1), target_id(2)
    columns = {
        "COADD_FIBERSTATUS": None,
        "FIBERSTATUS": ("J", [0, 0, 512, 0, 0]),
        "EXPID": ("J", [11, 11, 12, 12, 12]),
        "FIBER": ("J", [100, 200, 100, 200, 200]),
    }
    ivar = {
        f"{arm}_IVAR": np.repeat(np.array([[1], [3], [1], [1], [1]], "f4"), len(GRIDS[arm]), axis=1)
        for arm in "BRZ"
    }
    file = write(
        tmp_path / "spectra-main-dark-7.fits",
        [one, two, one, two, two],
        columns=columns,
        images=ivar,
    )

    for batch_size in (1, 2, 64):
        batch = read_all(file, batch_size)
        first, second = batch.observations
        assert first.spectrum is not None
        assert second.spectrum is not None
        assert (first.source_part, second.source_part) == (str(one), str(two))
        assert set(first.spectrum.flux.tolist()) == {1.0}
        assert "coadded from 2 exposures" in second.notes
        # rows 1 and 3 have flux 2 and 4, ivar 3 and 1
        assert set(second.spectrum.flux[:2000].tolist()) == {(2 * 3 + 4 * 1) / 4}
        assert set(second.spectrum.ivar[:2000].tolist()) == {4.0}
        assert [skipped.reason for skipped in batch.skipped] == [
            f"row 2 (TARGETID {one}): FIBERSTATUS 512: BADPOSITION",
            f"row 4 (TARGETID {two}): the same exposure came before",
        ]
        assert_same(desi.read_one(file, str(two)), second)


def test_photometry_is_left_out_where_it_was_not_measured(tmp_path: Path) -> None:
    seen = only(write(tmp_path / "a.fits", [target_id(1)]))

    assert seen.catalogue == {
        "flux_g_nmgy": 10.0, "mag_g": 20.0, "flux_r_nmgy": 100.0, "mag_r": 17.5,
        "flux_z_nmgy": -5.0, "radius_arcsec": 1.5,
    }  # fmt: skip
    assert seen.scalars == pytest.approx(
        {
            "tok_flux_g": 10.0, "tok_flux_r": 100.0, "tok_shape_r": 1.5, "tok_shape_e1": 0.1,
            "tok_shape_e2": -0.2, "tok_ebv": 0.05,
        },
        rel=1e-6,
    )  # fmt: skip


def test_a_missing_position_is_none_and_said(tmp_path: Path) -> None:
    columns: dict[str, tuple[str, Any] | None] = {
        "TARGET_RA": ("D", np.nan),
        "TARGET_DEC": ("D", np.nan),
    }

    seen = only(write(tmp_path / "a.fits", [target_id(1)], columns=columns))

    assert (seen.ra_deg, seen.dec_deg) == (None, None)
    assert "no position in the FIBERMAP" in seen.notes


# -- rows and files


def test_batches_change_nothing_and_hold_at_most_their_size(tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits", [target_id(number) for number in range(1, 8)])
    expected = read_all(file).observations

    sizes = [len(batch.observations) for batch in desi.read(file, batch_size=3)]

    assert sizes == [3, 3, 1]
    for one, other in zip(expected, read_all(file, 3).observations, strict=True):
        assert_same(one, other)
        assert_same(one, desi.read_one(file, other.source_part))


def test_a_new_row_changes_the_fingerprint_of_no_other(tmp_path: Path) -> None:
    def fingerprints(file: Path) -> dict[str, str]:
        return {seen.source_part: seen.fingerprint for seen in read_all(file).observations}

    images = {"B_FLUX": np.arange(3, dtype="f4")[:, None] * np.ones((3, 2751), "f4")}
    plain = {f"{arm}_FLUX": np.ones((3, len(GRIDS[arm])), "f4") for arm in "RZ"} | images
    targets = [target_id(number) for number in (1, 2, 3)]
    before = fingerprints(write(tmp_path / "a.fits", targets, images=plain))
    turned = {name: pixels[::-1] for name, pixels in plain.items()}

    assert fingerprints(write(tmp_path / "b.fits", targets[::-1], images=turned)) == before

    plain["Z_FLUX"][1, 5] = 2
    after = fingerprints(write(tmp_path / "c.fits", targets, images=plain))
    assert {part for part in before if before[part] != after[part]} == {str(target_id(2))}

    write_redrock(tmp_path / "redrock-d.fits", [(target_id(3), 0.5, 0, "QSO")])
    joined = fingerprints(write(tmp_path / "coadd-d.fits", targets, images=plain))
    assert {part for part in after if after[part] != joined[part]} == {str(target_id(3))}


def test_spectra_are_left_out_where_their_coadd_lies_beside_them(tmp_path: Path) -> None:
    for name in (
        "coadd-a.fits", "spectra-a.fits.gz", "spectra-b.fits", "redrock-a.fits", "zbest-b.fits",
        "tractor-a.fits",
    ):  # fmt: skip
        (tmp_path / name).touch()

    assert [file.name for file in desi.list_files(tmp_path)] == ["coadd-a.fits", "spectra-b.fits"]
    assert desi.list_files(tmp_path / "spectra-a.fits.gz") == [tmp_path / "spectra-a.fits.gz"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits", [target_id(number) for number in range(1, 161)])
    assert file.stat().st_size > 20e6

    tracemalloc.start()
    num_read = sum(len(batch.observations) for batch in desi.read(file, batch_size=8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert num_read == 160
    assert peak < 6e6


@pytest.mark.parametrize("packed", ["gzip", "rice"])
def test_compressed_files_are_read_alike(packed: str, tmp_path: Path) -> None:
    targets = [target_id(1), target_id(2)]
    file = write(tmp_path / "a.fits", targets)
    other = tmp_path / "b.fits.gz"
    if packed == "gzip":
        other.write_bytes(gzip.compress(file.read_bytes()))
    else:
        with fits.open(file) as hdus:
            kept = [
                fits.CompImageHDU(hdu.data, hdu.header, compression_type="RICE_1", quantize_level=0)
                if hdu.name.endswith("_MASK")
                else hdu
                for hdu in hdus
            ]
            fits.HDUList(kept).writeto(other)

    for one, same in zip(read_all(file).observations, read_all(other).observations, strict=True):
        assert_same(one, same)


def test_scaled_integers_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits", [target_id(1)])
    with fits.open(file) as hdus:
        hdus["B_FLUX"].data = np.linspace(-2, 30, 2751, dtype="f4")[None]
        hdus["B_FLUX"].scale("int16", bscale=0.001, bzero=14)
        hdus.writeto(tmp_path / "scaled.fits")

    spectrum = only(tmp_path / "scaled.fits").spectrum

    assert spectrum is not None
    np.testing.assert_allclose(spectrum.flux[:2700], np.linspace(-2, 30, 2751)[:2700], atol=0.00051)

    fits.setval(tmp_path / "scaled.fits", "BSCALE", value=1e308, ext=("B_FLUX", 1))
    spectrum = only(tmp_path / "scaled.fits").spectrum

    assert spectrum is not None
    assert spectrum.mask[: 2751 - 51].mean() > 0.99  # beyond every number: bad, not infinite


# -- units


def test_other_units_of_flux_are_converted(tmp_path: Path) -> None:
    units: dict[str, str | None] = {}
    for arm in "BRZ":
        units |= {f"{arm}_FLUX": "10**-16 erg/(s cm2 Angstrom)", f"{arm}_IVAR": None}

    spectrum = only(write(tmp_path / "a.fits", [target_id(1)], units=units)).spectrum

    assert spectrum is not None
    np.testing.assert_allclose(spectrum.flux, 10)  # twice the same light in an overlap
    np.testing.assert_allclose(spectrum.ivar[:2000], 0.04, rtol=1e-6)


def test_a_missing_unit_is_taken_as_desis_own_and_noted(tmp_path: Path) -> None:
    units: dict[str, str | None] = {f"{arm}_FLUX": None for arm in "BRZ"}

    seen = only(write(tmp_path / "a.fits", [target_id(1)], units=units))

    assert seen.notes[0] == "no unit of flux given: taken as 1e-17 erg/s/cm2/Angstrom"
    assert seen.spectrum is not None
    assert seen.spectrum.flux[0] == 1


def test_nanometres_are_converted(tmp_path: Path) -> None:
    grids = {arm: grid / 10 for arm, grid in GRIDS.items()}
    units: dict[str, str | None] = {f"{arm}_WAVELENGTH": "nm" for arm in "BRZ"}

    spectrum = only(write(tmp_path / "a.fits", [target_id(1)], grids=grids, units=units)).spectrum

    assert spectrum is not None
    np.testing.assert_array_equal(spectrum.wavelength_angstrom, DESI_GRID_ANGSTROM)


def test_air_is_converted_to_vacuum(tmp_path: Path) -> None:
    header = {"AIRORVAC": "air"}
    in_air = {arm: grid / refractive_index(grid) for arm, grid in GRIDS.items()}

    on_grid = only(write(tmp_path / "a.fits", [target_id(1)], header=header, grids=in_air))
    shifted = only(write(tmp_path / "b.fits", [target_id(1)], header=header))

    for seen in (on_grid, shifted):
        assert seen.notes[0] == "wavelengths converted from air to vacuum"
        assert seen.spectrum is not None
        assert len(seen.spectrum.flux) == 7781
    assert on_grid.spectrum is not None
    assert shifted.spectrum is not None
    np.testing.assert_array_equal(on_grid.spectrum.wavelength_angstrom, DESI_GRID_ANGSTROM)
    np.testing.assert_allclose(
        shifted.spectrum.wavelength_angstrom, air_to_vacuum(DESI_GRID_ANGSTROM), atol=1e-6
    )


def reversed_red() -> dict[str, np.ndarray]:
    return GRIDS | {"R": GRIDS["R"][::-1]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"units": {"B_FLUX": "counts"}}, "HDU 3 B_FLUX: unknown unit 'counts'"),
        ({"units": {"B_FLUX": "mag"}}, "expected a flux density such as 1e-17 erg"),
        ({"units": {"B_IVAR": FLUX_UNIT}}, "HDU 3 B_FLUX: the unit of the inverse variance"),
        ({"units": {"B_WAVELENGTH": "nm"}}, "expected wavelengths between 3500 and 10000"),
        ({"units": {"B_WAVELENGTH": "Hz"}}, "unknown wavelength unit 'Hz'"),
        ({"header": {"AIRORVAC": "air", "VACUUM": True}}, "in air and in vacuum at once"),
        ({"grids": reversed_red()}, "HDU 6 R_WAVELENGTH: wavelengths are not ascending"),
        ({"grids": GRIDS | {"R": GRIDS["R"] + 0.3}}, "not aligned where they overlap"),
        ({"grids": GRIDS | {"R": GRIDS["R"] * np.nan}}, "NaN or infinity"),
        ({"images": {"Z_FLUX": np.ones((2881, 2), "f4")}}, "(are the axes swapped?)"),
        ({"images": {"Z_IVAR": np.ones((3, 2881), "f4")}}, "expected 2 rows, as in FIBERMAP"),
        ({"images": {"Z_FLUX": np.ones((2, 3, 2881), "f4")}}, "expected an image of one or two"),
        ({"without": ("R_IVAR",)}, "no HDU R_IVAR"),
        ({"without": ("R_WAVELENGTH",)}, "R_FLUX without the wavelengths of its arm"),
        ({"without": ("R_MASK",)}, "only B and Z of B and R and Z have a mask"),
        ({"arms": ""}, "no usable HDU: expected B_WAVELENGTH"),
        ({"columns": {"FLUX_R": ("8A", "bright")}}, "column FLUX_R: expected numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits", [target_id(1), target_id(2)], **changes)

    assert reason in only_reason(file)
    with pytest.raises(ValueError, match=r"a\.fits: "):
        desi.read_one(file, str(target_id(1)))


def test_a_file_without_a_fibermap_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(3), name="B_WAVELENGTH")]).writeto(file)

    assert only_reason(file) == ("no usable HDU: expected FIBERMAP, got 0 PRIMARY, 1 B_WAVELENGTH")


# -- damage


def survives(file: Path) -> int:
    """Read a damaged file; whatever comes is sound. Returns how many spectra came."""
    num_read = 0
    for batch in desi.read(file):
        for skipped in batch.skipped:
            assert skipped.reason
            assert skipped.file.startswith(str(file.parent))
        for seen in batch.observations:
            num_read += 1
            assert seen.spectrum is not None
            assert len(seen.spectrum.flux) >= 2000
            assert desi.read_one(file, seen.source_part).fingerprint == seen.fingerprint
    return num_read


def flip(content: bytes, rng: np.random.Generator, *, within: tuple[int, int]) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        damaged[rng.integers(*within)] ^= 1 << rng.integers(8)
    return bytes(damaged)


@pytest.mark.parametrize(
    "num_flips", [40, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_end_in_a_spectrum_or_a_reason(
    num_flips: int, packed: bool, tmp_path: Path
) -> None:
    targets = [target_id(1), target_id(2)]
    content = write(tmp_path / "whole.fits", targets, arms="Z").read_bytes()
    redrock = write_redrock(tmp_path / "redrock-a.fits", [(target_id(1), 0.5, 0, "QSO")])
    table = redrock.read_bytes()
    content = gzip.compress(content, 1) if packed else content
    file = tmp_path / ("coadd-a.fits.gz" if packed else "coadd-a.fits")
    rng = np.random.default_rng(5)
    num_read = []
    for number in range(num_flips):
        # Headers and tables are a small part of the bytes, and the part where damage matters.
        end = len(content) if packed or number % 3 == 0 else 12000
        file.write_bytes(flip(content, rng, within=(0, end)))
        redrock.write_bytes(flip(table, rng, within=(0, len(table))) if number % 2 else table)
        num_read.append(survives(file))

    assert max(num_read) == len(targets)
    assert min(num_read) == 0  # some damage is refused


def test_truncated_files_are_refused_or_lack_whole_arms(tmp_path: Path) -> None:
    targets = [target_id(1), target_id(2)]
    content = write(tmp_path / "whole.fits", targets).read_bytes()
    file = tmp_path / "coadd-a.fits"
    for length in np.linspace(0, len(content) - 2880, 60).astype(int):
        file.write_bytes(content[:length])
        for batch in desi.read(file):
            assert all("no arm" in seen.notes[0] for seen in batch.observations)
            assert batch.observations or batch.skipped


def test_a_file_that_is_shortened_while_it_is_read_is_truncated(tmp_path: Path) -> None:
    file = write(tmp_path / "a.fits", [target_id(number) for number in range(1, 9)])
    batches = desi.read(file, batch_size=2)
    first = next(batches)

    with file.open("r+b") as stream:  # which another program may do
        stream.truncate(2880)
    (last,) = list(batches)

    assert [seen.source_part for seen in first.observations] == [
        str(target_id(number)) for number in (1, 2)
    ]
    assert last.observations == ()
    assert last.skipped[0].reason == "HDU 3 B_FLUX: truncated while it was read"
