"""Multimodal Universe files: what is in them is what the surveys' own files give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from numpy import ndarray

from tests.training import hsc_archive
from tests.training.mmu_files import (
    HSC_PER_NMGY,
    Columns,
    batches,
    differing,
    legacy,
    reasons,
    seen,
    spectra,
    write_hdf5,
    write_parquet,
)
from training.observations import Observation
from training.surveys import desi, gaia, hsc, legacysurvey, multimodal_universe, sdss
from training.surveys.coaddition import DESI_GRID_ANGSTROM
from training.surveys.mmu_columns import DATASETS

BY_NATURE = {"fingerprint", "source", "source_part", "release"}


def test_legacy_pixels_are_those_of_the_native_reader(shared_data: Path, tmp_path: Path) -> None:
    with fits.open(shared_data / "legacysurvey_fits_cutouts" / "temp_small.fits") as hdus:
        planes, header = np.asarray(hdus[0].data, np.float32), hdus[0].header.copy()
    ivar = np.random.default_rng(2).uniform(1e3, 1e4, planes.shape).astype(np.float32)
    ivar[:, 100:104, 90:99] = 0
    native_file = tmp_path / "native.fits"
    second = fits.ImageHDU(ivar)
    second.header["IMAGETYP"] = "invvar"
    fits.HDUList([fits.PrimaryHDU(planes, header), second]).writeto(native_file)
    (batch,) = legacysurvey.read(native_file)
    (native,) = batch.observations
    columns = legacy(1, planes.shape[-1])
    columns |= {
        "image_array": planes[None],
        "image_ivar": ivar[None],
        "image_mask": np.ones((1, *planes.shape[1:]), bool),
        "image_band": np.array([[b"des-g", b"des-r", b"des-z"]]),
        "image_scale": np.full((1, 3), 0.262, np.float32),
        "ra": [native.ra_deg],
        "dec": [native.dec_deg],
    }

    (got,) = seen(write_hdf5(tmp_path / "dr10_south_21" / "healpix=1" / "001.hdf5", columns))

    # A viewer cutout has no catalogue: its fluxes are measured in an aperture, its id is its name.
    differ = {name for name in differing(got, native) if not name.startswith(("scal", "cata"))}
    assert differ == BY_NATURE - {"source_part"} | {
        *("source_id", "object_id", "object_mask", "ellipses", "notes", "source_part")
    }
    assert got.release == "dr10_south_21"


def test_sdss_spectra_are_those_of_the_native_reader(shared_data: Path, tmp_path: Path) -> None:
    native: list[Observation] = []
    rows: list[dict[str, Any]] = []
    for file in sdss.list_files(shared_data / "sdss_spectra")[::6]:
        (batch,) = sdss.read(file)
        if not batch.observations:
            continue
        native += batch.observations
        with fits.open(file) as hdus:
            coadd, about = hdus[1].data, hdus[2].data
            rows.append(
                {
                    **{key: np.asarray(coadd[key]) for key in ("flux", "ivar", "loglam")},
                    **{
                        name: about[name][0]
                        for name in ("PLATE", "MJD", "FIBERID", "CLASS", "Z", "Z_ERR", "ZWARNING")
                    },
                    "BESTOBJID": about["BESTOBJID" if "BESTOBJID" in about.names else "OBJID"][0],
                    "SPECTROFLUX": about["SPECTROFLUX"][0],
                    "PLATEQUALITY": b"good",
                }
            )
    longest = max(len(row["flux"]) for row in rows)

    def padded(values: ndarray, **how: Any) -> ndarray:
        return np.pad(values, (0, longest - len(values)), **how)

    columns: Columns = {
        "object_id": np.array([f"{4e17:.0f}{number:02d}".encode() for number in range(len(rows))]),
        "ra": [each.ra_deg for each in native],
        "dec": [each.dec_deg for each in native],
        "spectrum_flux": np.array([padded(row["flux"], mode="edge") for row in rows]),
        "spectrum_ivar": np.array([padded(row["ivar"]) for row in rows]),
        "spectrum_mask": np.array(
            [padded(row["ivar"] <= 1e-6, constant_values=True) for row in rows]
        ),
        "spectrum_lambda": np.array(
            [padded(10.0 ** row["loglam"].astype(float), constant_values=-1) for row in rows],
            np.float32,
        ),
        **{
            name: np.array([row[name] for row in rows])
            for name in ("PLATE", "MJD", "FIBERID", "Z", "Z_ERR", "ZWARNING", "SPECTROFLUX")
        },
        "CLASS": np.array([row["CLASS"].encode() for row in rows]),
        "BESTOBJID": np.array([each.object_id.encode() for each in native]),
    }

    got = seen(write_hdf5(tmp_path / "sdss" / "eboss" / "healpix=3" / "001.hdf5", columns))

    assert len(got) == len(native) > 5
    for mine, theirs in zip(got, native, strict=True):
        assert differing(mine, theirs) <= BY_NATURE | {"notes"}
        assert mine.release == "eboss"


def test_gaia_coefficients_are_those_of_the_native_reader(
    shared_data: Path, tmp_path: Path
) -> None:
    file = shared_data / "gaia_xp" / "XP_CONTINUOUS_RAW.csv"
    native = [each for batch in gaia.read(file) for each in batch.observations]
    assert native
    coefficients, errors = [], []
    for each in native:
        assert each.xp is not None
        assert each.xp.bp is not None
        assert each.xp.rp is not None
        assert each.xp.bp_error is not None
        assert each.xp.rp_error is not None
        coefficients.append(np.concatenate([each.xp.bp, each.xp.rp]))
        errors.append(np.concatenate([each.xp.bp_error, each.xp.rp_error]))
    num = len(native)
    columns: Columns = {
        "source_id": np.array([int(each.source_id) for each in native]),
        "ra": np.linspace(1, 2, num),
        "dec": np.linspace(1, 2, num),
        "coeff": np.array(coefficients),
        "coeff_error": np.array(errors),
        "parallax": np.full(num, -0.5),
        "phot_g_mean_flux": np.full(num, 1000.0),
    }

    got = seen(write_hdf5(tmp_path / "gaia" / "healpix=1" / "001.hdf5", columns))

    for mine, theirs in zip(got, native, strict=True):
        assert not {name for name in differing(mine, theirs) if name.startswith("xp")}
        assert (mine.survey, mine.source_id, mine.object_id) == (
            *("gaia", theirs.source_id, theirs.object_id),
        )
        assert mine.scalars["tok_flux_g_gaia"] == 1000
        assert "tok_parallax" not in mine.scalars
        assert mine.catalogue["parallax_mas"] == -0.5


def test_a_missing_bp_spectrum_is_none(tmp_path: Path) -> None:
    coefficients = np.concatenate([np.full(55, np.nan), np.arange(1, 56)])[None]
    columns = {"source_id": [7], "ra": [1.0], "dec": [2.0], "coeff": coefficients}

    (got,) = seen(write_hdf5(tmp_path / "a.hdf5", columns))

    assert got.xp is not None
    assert got.xp.bp is None
    assert got.xp.rp is not None
    np.testing.assert_array_equal(got.xp.rp, np.arange(1, 56))
    assert "no BP spectrum" in got.notes


def test_desi_wavelengths_are_put_back_on_their_grid(tmp_path: Path) -> None:
    columns = spectra(3, 7781, zwarn="ZWARN")
    columns["spectrum_lambda"] = np.tile(DESI_GRID_ANGSTROM, (3, 1)).astype(np.float32)
    columns["SPECTYPE"] = np.array([b"GALAXY", b"QSO", b"STAR"])
    columns["FLUX_R"] = [3.0, 0.0, -1.0]

    got = seen(write_hdf5(tmp_path / "edr_sv3" / "healpix=1" / "001.hdf5", columns))

    for row, each in enumerate(got):
        assert each.spectrum is not None
        np.testing.assert_array_equal(each.spectrum.wavelength_angstrom, DESI_GRID_ANGSTROM)
        bad = columns["spectrum_mask"][row]
        np.testing.assert_array_equal(each.spectrum.mask, bad)
        np.testing.assert_array_equal(
            each.spectrum.flux, np.where(bad, 0, columns["spectrum_flux"][row])
        )
        assert each.survey == "desi"
    assert got[0].catalogue["spectrum_class"] == "GALAXY"
    assert got[0].scalars["tok_z"] == got[0].catalogue["redshift"] == columns["Z"][0]
    assert got[0].scalars["tok_flux_r"] == 3
    assert "redshift" not in got[1].catalogue
    assert "ZWARN 4: redshift and class left out" in got[1].notes
    assert got[2].catalogue["flux_r_nmgy"] == -1
    assert "tok_flux_r" not in got[2].scalars


def test_desi_spectra_are_those_of_the_native_reader(shared_data: Path, tmp_path: Path) -> None:
    name = "coadd-4-80613-thru20210324.fits"
    file = shared_data / "desi_spectra" / name
    ((native,),) = [batch.observations for batch in desi.read(file)]
    assert native.spectrum is not None
    with fits.open(file) as hdus:
        fibermap = hdus["FIBERMAP"].data
        columns: Columns = {
            key: np.array([fibermap[key][0]])
            for key in (
                *("TARGETID", "EBV", "COADD_FIBERSTATUS", "OBJTYPE"),
                *(f"FLUX_{band}" for band in ("G", "R", "Z", "W1", "W2")),
                *("SHAPE_R", "SHAPE_E1", "SHAPE_E2"),
            )
        }
    columns["OBJTYPE"] = np.char.encode(columns["OBJTYPE"])
    columns |= {
        "object_id": columns["TARGETID"],
        "ra": [native.ra_deg],
        "dec": [native.dec_deg],
        "Z": [native.catalogue["redshift"]],
        "ZERR": [native.catalogue["redshift_error"]],
        "ZWARN": [0],
        "SPECTYPE": np.array([b"GALAXY"]),
        # Where the mask is set the file keeps the flux that the native reader leaves out.
        "spectrum_flux": native.spectrum.flux[None],
        "spectrum_ivar": native.spectrum.ivar[None],
        "spectrum_mask": (native.spectrum.mask | (native.spectrum.ivar <= 1e-6))[None],
        "spectrum_lambda": native.spectrum.wavelength_angstrom[None].astype(np.float32),
    }

    (got,) = seen(write_hdf5(tmp_path / "dr1_main" / "healpix=1" / "001.hdf5", columns))

    assert differing(got, native) <= BY_NATURE
    assert got.release == "dr1_main"


def test_a_desi_target_of_the_legacy_surveys_has_that_object_id(tmp_path: Path) -> None:
    columns = spectra(1, zwarn="ZWARN")
    columns["object_id"] = [(9010 << 42) + (330368 << 22) + 7410]

    (got,) = seen(write_hdf5(tmp_path / "a.hdf5", columns))

    assert got.object_id == "9010-330368-7410"
    assert got.source_id == got.source_part == str(columns["object_id"][0])


def test_hsc_pixels_are_those_of_the_native_reader(tmp_path: Path) -> None:
    files = hsc_archive.write_group(
        tmp_path / "native", flags={(50, 60): "SAT", (51, 60): "NO_DATA", (52, 60): "DETECTED"}
    )
    (batch,) = hsc.read(hsc.list_files(tmp_path / "native")[0])
    (native,) = batch.observations
    pixels: dict[str, list[ndarray]] = {"IMAGE": [], "VARIANCE": [], "MASK": []}
    for file in files.values():
        with fits.open(file) as hdus:
            for name, planes in pixels.items():
                planes.append(np.asarray(hdus[name].data))
    bad_bits = sum(1 << hsc_archive.PLANES[name] for name in ("BAD", "SAT", "NO_DATA"))
    columns: Columns = {
        "object_id": [43158047714999370],
        "ra": [native.ra_deg],
        "dec": [native.dec_deg],
        "image_array": np.array([pixels["IMAGE"]], np.float32),
        "image_ivar": 1 / np.array([pixels["VARIANCE"]], np.float32),
        "image_mask": (np.array([pixels["MASK"]]) & bad_bits) == 0,
        "image_band": np.array([[f"hsc-{band.lower()}".encode() for band in files]]),
        "image_scale": np.full((1, 5), 0.168, np.float32),
        "a_g": [0.1],
    }

    (got,) = seen(write_hdf5(tmp_path / "pdr3_wide" / "healpix=9" / "001.hdf5", columns))

    assert got.image is not None
    assert native.image is not None
    assert got.image.bands == native.image.bands
    assert got.image.mask.sum() == 2 * 5
    np.testing.assert_array_equal(got.image.mask, native.image.mask)
    np.testing.assert_allclose(got.image.flux, native.image.flux, rtol=1e-6)
    np.testing.assert_allclose(got.image.ivar, native.image.ivar, rtol=1e-6)
    assert got.image.pixel_scale_arcsec == native.image.pixel_scale_arcsec


def test_hsc_comes_in_nanomaggies_on_its_own_pixels(tmp_path: Path) -> None:
    num, side = 2, 160
    rng = np.random.default_rng(3)
    counts = rng.normal(5, 1, (num, 5, side, side)).astype(np.float32)
    ivar = rng.uniform(10, 20, counts.shape).astype(np.float32)
    ivar[:, 2, 40:50] = np.finfo(np.float32).max  # nan_to_num(1 / 0) of the builder
    mask = np.ones(counts.shape, bool)
    mask[:, 1, 32:40] = False
    columns: Columns = {
        "object_id": np.array([43158047714999370, 43158047714999371]),
        "ra": [150.0, 151.0],
        "dec": [2.0, 2.1],
        **{"image_array": counts, "image_ivar": ivar, "image_mask": mask},
        "image_band": np.array([[f"hsc-{band}".encode() for band in "grizy"]] * num),
        "image_scale": np.full((num, 5), 0.168, np.float32),
        **{f"a_{band}": np.full(num, 0.05, np.float32) for band in "grizy"},
        **{f"{band}_cmodel_mag": np.full(num, 20.5, np.float32) for band in "grizy"},
        **{f"i_sdssshape_shape{ij}": np.full(num, 0.7, np.float32) for ij in (11, 22, 12)},
    }
    columns["i_cmodel_mag"][1] = np.nan

    one, other = seen(write_hdf5(tmp_path / "pdr3_dud_22.5" / "healpix=9" / "001.hdf5", columns))

    assert one.image is not None
    assert (one.survey, one.release) == ("hsc", "pdr3_dud_22.5")
    assert one.image.bands == ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
    assert one.image.pixel_scale_arcsec == 0.168
    good = ~one.image.mask
    centre = (slice(None), slice(32, 128), slice(32, 128))
    np.testing.assert_allclose(
        one.image.flux[good], (counts[0][centre] / HSC_PER_NMGY)[good], rtol=1e-6
    )
    np.testing.assert_allclose(
        one.image.ivar[good], ivar[0][centre][good] * HSC_PER_NMGY**2, rtol=1e-6
    )
    assert one.image.mask[1, :8].all()
    assert one.image.mask[2, 8:18].all()
    assert one.image.mask.sum() == 8 * 96 + 10 * 96
    assert one.scalars["tok_mag_i"] == 20.5
    assert one.scalars["tok_a_y"] == np.float32(0.05)
    assert one.scalars["tok_shape12"] == np.float32(0.7)
    assert "tok_mag_i" not in other.scalars


def test_neighbours_and_object_mask_move_with_the_crop(tmp_path: Path) -> None:
    columns = legacy(1, 160)
    columns["catalog_X"][0, :5] = [80, 35, 31, 127, 128]
    columns["catalog_Y"][0, :5] = [80, 40, 80, 127, 80]
    columns["catalog_X"][0, 5:] = columns["catalog_Y"][0, 5:] = 80  # of type 0: no source

    (got,) = seen(write_hdf5(tmp_path / "a.hdf5", columns))

    assert got.ellipses is not None
    assert got.object_mask is not None
    np.testing.assert_array_equal(got.ellipses.x, [48, 3, 95])  # from the centre outwards
    np.testing.assert_array_equal(got.ellipses.y, [48, 8, 95])
    np.testing.assert_array_equal(
        got.ellipses.shape_r_arcsec, columns["catalog_SHAPE_R"][0, [0, 1, 3]]
    )
    values = np.array([0, 0.2, 0.4, 0.6, 0.8, 1, 0], np.float32)  # the last is a duplicate
    np.testing.assert_array_equal(
        got.object_mask.value, values[columns["object_mask"][0, 32:128, 32:128]]
    )


def test_in_image_files_true_is_good_and_in_spectrum_files_true_is_bad(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    (image,) = seen(write_hdf5(tmp_path / "image.hdf5", columns))
    assert image.image is not None
    np.testing.assert_array_equal(image.image.mask[2], ~columns["image_mask"][0])
    assert not image.image.flux[image.image.mask].any()
    assert not image.image.ivar[image.image.mask].any()

    columns = spectra(1, zwarn="ZWARNING")
    (spectrum,) = seen(write_hdf5(tmp_path / "spectrum.hdf5", columns))
    assert spectrum.spectrum is not None
    np.testing.assert_array_equal(spectrum.spectrum.mask, columns["spectrum_mask"][0])


def test_a_mask_that_means_the_opposite_is_refused(tmp_path: Path) -> None:
    columns = legacy(1, 96)
    columns["image_mask"] = ~columns["image_mask"]

    (why,) = reasons(write_hdf5(tmp_path / "a.hdf5", columns))

    assert "expected True where a pixel is good" in why


def test_a_simulated_sky_whose_masks_mean_the_opposite_is_refused(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", legacy(1, 96))
    with h5py.File(file, "a") as out:
        out.attrs["survey"] = "simulated"
    assert "read it as 'simulated'" in reasons(file)[0]


def test_galaxy10_is_an_approximate_image_with_a_label(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(20, 40, (2, 256, 256, 3)).astype(np.uint8)
    pixels[:, 100:110, 128] = 200  # north of the centre
    columns: Columns = {
        "object_id": np.array([17, 18]),
        "ra": [10.0, 11.0],
        "dec": [-1.0, 0.25],
        "ans": np.array([5, 1]),
        "redshift": [0.05, 0.25],  # the second is its declination, as in Galaxy10's own table
        "images": pixels,
        "pxscale": np.full(2, 0.262),
    }
    file = write_hdf5(tmp_path / "gz10" / "datafiles" / "healpix=1" / "001-of-001.h5", columns)

    one, other = seen(file)

    assert (one.survey, one.release, one.object_id, one.calibrated) == ("gz10", "", "17", False)
    assert one.image is not None
    bright = np.argwhere(one.image.flux[1] > one.image.flux[1].max() / 2)
    assert (bright[:, 0] > 48).all()  # rows run from south to north
    assert one.catalogue["gz10_label"] == 5
    assert one.catalogue["gz10_class"] == "barred spiral"
    assert one.catalogue["redshift"] == one.scalars["tok_z"] == 0.05
    assert "redshift" not in other.catalogue
    stored = {"ans": "gz10_label", "images": "rgb_image", "pxscale": "rgb_pixel_scale"}
    renamed = {stored.get(name, name): values for name, values in columns.items()}
    again = seen(write_parquet(tmp_path / "Norder=0" / "Npix=0.parquet", renamed))
    for a, b in zip(again, (one, other), strict=True):
        assert differing(a, b) <= BY_NATURE


def test_provabgs_gives_the_numbers_of_a_desi_galaxy(tmp_path: Path) -> None:
    columns: Columns = {
        "object_id": [(9010 << 42) + (330368 << 22) + 7410],
        "ra": np.array([[10.0]]),
        "dec": np.array([[-1.0]]),
        "PROVABGS_LOGMSTAR_BF": np.array([10.5]),
        "PROVABGS_MCMC": np.zeros((1, 100, 13)),
        "Z_HP": [0.21],
        "Z_MW": [0.02],
        "TAGE_MW": [7.5],
        "AVG_SFR": np.array([[0.3]]),
        "MAG_G": [19.0],
        "MAG_R": [-99.0],
    }

    (got,) = seen(write_hdf5(tmp_path / "datafiles" / "healpix=1" / "001.h5", columns))

    assert (got.survey, got.object_id) == ("provabgs", "9010-330368-7410")
    assert got.scalars == {"tok_z": 0.21}
    assert got.catalogue == {
        **{"redshift": 0.21, "redshift_source": "desi", "log10_stellar_mass_msun": 10.5},
        **{"stellar_metallicity": 0.02, "age_gyr": 7.5, "sfr_msun_per_year": 0.3, "mag_g": 19.0},
    }


@pytest.mark.parametrize("list_of_structs", [False, True])
@pytest.mark.parametrize("make", ["legacy", "sdss", "desi"])
def test_parquet_gives_what_hdf5_gives(make: str, list_of_structs: bool, tmp_path: Path) -> None:
    zwarn = {"sdss": "ZWARNING", "desi": "ZWARN"}.get(make, "")
    columns = spectra(zwarn=zwarn) if zwarn else legacy(3, 99)
    from_hdf5 = seen(write_hdf5(tmp_path / "a.hdf5", columns))
    file = tmp_path / "mmu_x" / "dataset" / "Norder=1" / "Dir=0" / "Npix=9.parquet"
    from_parquet = seen(
        write_parquet(file, columns, list_of_structs=list_of_structs, row_group_size=2),
        batch_size=2,
    )

    assert len(from_parquet) == 3
    for one, other in zip(from_parquet, from_hdf5, strict=True):
        assert differing(one, other) <= {"fingerprint", "source", "release"}


@pytest.mark.parametrize(("hub", "trusted"), [(True, [True, False]), (False, [False, True])])
def test_a_flag_of_warning_means_the_opposite_on_the_hub(
    hub: bool, trusted: list[bool], tmp_path: Path
) -> None:
    columns = spectra(2, zwarn="ZWARN")
    columns["ZWARN"] = np.array([True, False])

    got = seen(write_parquet(tmp_path / "a.parquet", columns, hub=hub))

    assert ["redshift" in each.catalogue for each in got] == trusted


@pytest.mark.parametrize("packing", [{}, {"compression": "gzip", "chunks": True}])
def test_batches_chunks_and_reading_one_change_nothing(
    packing: dict[str, Any], tmp_path: Path
) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", legacy(7, 130), **packing)
    whole = seen(file)
    small = batches(file, batch_size=2)

    assert [len(batch.observations) for batch in small][:2] == [2, 2]
    for one, other in zip(whole, (each for b in small for each in b.observations), strict=True):
        assert differing(one, other) == set()
        assert differing(multimodal_universe.read_one(file, one.source_part), one) == set()
    with pytest.raises(ValueError, match=r"a\.hdf5: no object '0421p022-1' in it"):
        multimodal_universe.read_one(file, "0421p022-1")


def test_a_new_row_leaves_the_fingerprints_of_the_others(tmp_path: Path) -> None:
    columns = legacy(4, 96)
    before = [each.fingerprint for each in seen(write_hdf5(tmp_path / "a.hdf5", columns))]
    turned = {name: np.asarray(values)[::-1] for name, values in columns.items()}
    turned["image_array"] = turned["image_array"].copy()
    turned["image_array"][1, 0, 50, 50] += 1e-4

    after = [each.fingerprint for each in seen(write_hdf5(tmp_path / "b.hdf5", turned))][::-1]

    assert [one == other for one, other in zip(before, after, strict=True)] == [
        *(True, True, False, True)
    ]


def test_margins_and_previews_of_a_hats_catalogue_are_not_listed(tmp_path: Path) -> None:
    catalogue, margin = tmp_path / "mmu_desi_edr_sv3", tmp_path / "mmu_desi_edr_sv3_10arcs"
    columns = spectra(zwarn="ZWARN")
    part = Path("dataset", "Norder=1", "Dir=0", "Npix=4.parquet")
    kept = write_parquet(catalogue / part, columns)
    write_parquet(margin / part, columns)
    write_parquet(catalogue / "dataset" / "data_thumbnail.parquet", columns)
    (catalogue / "hats.properties").write_text("#HATS catalog\ndataproduct_type=object\n")
    (margin / "hats.properties").write_text("dataproduct_type=margin\n")

    assert multimodal_universe.list_files(tmp_path) == [kept]
    assert seen(kept)[0].release == "edr_sv3"
    with pytest.raises(ValueError, match="a margin of a HATS catalogue"):
        multimodal_universe.list_files(margin)


def test_columns_in_groups_and_big_endian_are_read(tmp_path: Path) -> None:
    columns = legacy(2, 96)
    plain = seen(write_hdf5(tmp_path / "a.hdf5", columns))
    swapped = {
        name: values.astype(values.dtype.newbyteorder(">")) if values.dtype.kind == "f" else values
        for name, values in columns.items()
    }
    grouped = {
        name.replace("image_", "image.", 1).replace("catalog_", "catalog.", 1): values
        for name, values in swapped.items()
    }
    for one, other in zip(seen(write_hdf5(tmp_path / "b.hdf5", grouped)), plain, strict=True):
        assert differing(one, other) <= {"fingerprint", "source"}


def test_every_token_of_the_table_is_a_stream() -> None:
    from training.modalities import STREAM

    tokens = [scalar.token for each in DATASETS for scalar in each.scalars if scalar.token]
    assert set(tokens) <= STREAM.keys()
    assert len({each.name for each in DATASETS}) == 7
