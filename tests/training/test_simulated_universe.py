"""One draw through every instrument, and the Multimodal Universe written of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from training.observations import Observation
from training.sky.starlight import StarSurface
from training.surveys import multimodal_universe, simulated
from training.surveys.gaia_spectra import seen_by_gaia
from training.surveys.simulated import SkyConfig, clear_sky
from training.surveys.simulated_drawing import draw_seen
from training.surveys.simulated_sky import plan
from training.surveys.simulated_universe import simulate_universe

SKY = clear_sky(
    num_objects=8, seed=4, star=0.5, spiral=0.25, edge_on=0.0, irregular=0.0, lenticular=0.0,
    spectrum_fraction=0.5, xp_fraction=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def universe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_universe(SKY, tmp_path_factory.mktemp("universe") / "mmu", num_workers=1)


def columns(universe: Path, survey: str) -> dict[str, np.ndarray]:
    files = sorted((universe / survey).rglob("healpix=*/*.hdf5"))
    assert files
    parts = []
    for file in files:
        with h5py.File(file) as rows:
            parts.append({name: rows[name][:] for name in rows})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_every_survey_holds_the_objects_that_it_saw(universe: Path) -> None:
    layout = plan(SKY)
    ids = {survey: set(columns(universe, survey)["simulated_id"]) for survey in
           ("legacysurvey", "sdss", "desi", "gaia")}  # fmt: skip

    assert len(ids["legacysurvey"]) == 8
    assert ids["sdss"] == ids["desi"]
    assert len(ids["sdss"]) == layout.has_spectrum.sum() == 4
    assert len(ids["gaia"]) == layout.has_xp.sum() == 4
    assert ids["sdss"] | ids["gaia"] <= ids["legacysurvey"]


def test_columns_are_those_of_the_multimodal_universe(universe: Path) -> None:
    image = columns(universe, "legacysurvey")
    assert image["image_array"].shape == (8, 4, 96, 96)
    assert set(image["image_band"].ravel()) == {b"DES-G", b"DES-R", b"DES-I", b"DES-Z"}
    assert image["image_mask"].mean() > 0.5  # True = good
    assert not image["image_ivar"][~image["image_mask"]].any()
    assert image["catalog_X"].shape == image["catalog_SHAPE_R"].shape == (8, 20)
    assert np.abs(image["catalog_X"][:, 0] - 47.5).max() < 2  # nearest to the centre first
    assert {0, 1} < set(np.unique(image["object_mask"])) <= {0, 1, 3, 5}
    assert {"EBV", "SHAPE_R", "SHAPE_E1", "SHAPE_E2", "FLUX_W1", "TYPE", "healpix"} <= set(image)
    desi = columns(universe, "desi")
    assert desi["spectrum_flux"].shape == (4, 7781)
    assert {"spectrum_lsf_sigma", "ZERR", "ZWARN", "FLUX_G"} <= set(desi)
    assert desi["object_id"].dtype == np.int64  # a TARGETID
    sdss = columns(universe, "sdss")
    assert sdss["spectrum_flux"].shape == (4, 3840)
    assert {"Z_ERR", "ZWARNING", "SPECTROFLUX", "VDISP"} <= set(sdss)
    assert columns(universe, "gaia")["coeff"].shape == (4, 110)


def test_what_is_handed_over_is_what_the_files_hold(universe: Path) -> None:
    drawn = {o.object_id: o for o in simulated.draw(SKY)}
    found: list[Observation] = []
    for file in multimodal_universe.list_files(universe / "legacysurvey"):
        for batch in multimodal_universe.read(file):
            assert not batch.skipped
            found += batch.observations
    assert len(found) == len(drawn)
    for read in found:
        made = drawn[read.source_id]
        assert made.object_mask is not None
        assert read.object_mask is not None
        np.testing.assert_array_equal(read.object_mask.value, made.object_mask.value)
        assert made.ellipses is not None
        assert read.ellipses is not None
        for name in ("x", "y", "shape_e1", "shape_e2", "shape_r_arcsec"):
            np.testing.assert_array_equal(
                getattr(read.ellipses, name), getattr(made.ellipses, name)
            )
        infrared = [{k for k in o.scalars if k.startswith("tok_flux_w")} for o in (read, made)]
        assert infrared[0] == infrared[1]
        assert "tok_flux_w1" in infrared[0]
        for key, value in read.scalars.items():
            assert made.scalars[key] == value, key


def test_stars_move_and_stand_where_gaia_says(universe: Path) -> None:
    gaia = columns(universe, "gaia")
    drawn = {o.object_id: o for o in simulated.draw(SKY)}

    for row, name in enumerate(gaia["simulated_id"]):
        made = drawn[name.decode()]
        assert made.scalars["tok_ra"] == gaia["ra"][row]
        for column in ("pmra", "pmdec"):
            assert made.catalogue[f"{column}_mas_per_yr"] == gaia[column][row] != 0


def test_dust_of_the_milky_way_dims_all_that_is_measured() -> None:
    dusty, clear = replace(SKY, galactic_ebv_mag=0.3), SKY
    index = next(
        k
        for k, kind in enumerate(plan(SKY).kinds)
        if kind == "star" and plan(SKY).has_spectrum[k] and plan(SKY).has_xp[k]
    )
    (through,) = draw_seen(dusty, plan(dusty), [index])
    (bare,) = draw_seen(clear, plan(clear), [index])

    assert bare.ebv_mag == 0
    assert 0.05 < through.ebv_mag < 1.5
    dimmer_mag = 2.5 * np.log10(bare.flux_nmgy / through.flux_nmgy) / through.ebv_mag
    # legacysurvey.org/dr10/catalogs: A / E(B-V) in griz
    np.testing.assert_allclose(dimmer_mag, [3.214, 2.165, 1.592, 1.211], rtol=0.15)
    assert bare.gaia is not None
    assert through.gaia is not None
    assert through.gaia.flux_bp / through.gaia.flux_rp < bare.gaia.flux_bp / bare.gaia.flux_rp
    assert through.gaia.parallax_mas == bare.gaia.parallax_mas  # it is no farther away


def test_a_folder_that_exists_is_left_alone(universe: Path) -> None:
    with pytest.raises(ValueError, match="expected a new folder"):
        simulate_universe(SKY, universe)


def test_an_interrupted_universe_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_universe(SKY, tmp_path / "mmu", num_workers=1, progress=stop)

    assert not list(tmp_path.iterdir())


def test_instruments_see_the_same_object(universe: Path) -> None:
    sdss, desi = columns(universe, "sdss"), columns(universe, "desi")
    order = [list(desi["simulated_id"]).index(one) for one in sdss["simulated_id"]]

    np.testing.assert_array_equal(sdss["Z"], desi["Z"][order])
    for row, other in enumerate(order):
        # in broad steps both spectra have one shape
        steps = np.arange(5000, 9000, 500)
        means = []
        for spectra, k in ((sdss, row), (desi, other)):
            good = ~spectra["spectrum_mask"][k]
            wave, flux = spectra["spectrum_lambda"][k][good], spectra["spectrum_flux"][k][good]
            means.append([flux[np.abs(wave - step) < 200].mean() for step in steps])
        noise = 0.25 + 0.05 * np.abs(means[0])
        assert (np.abs(np.subtract(means[0], means[1])) < noise).all()


def test_the_spectrograph_changes_nothing_else() -> None:
    layout = plan(SKY)
    index = int(np.flatnonzero(layout.has_spectrum)[0])
    (sdss,) = draw_seen(SKY, layout, [index])
    (both,) = draw_seen(SKY, layout, [index], spectrographs=("desi", "sdss"))

    np.testing.assert_array_equal(sdss.image.flux, both.image.flux)
    np.testing.assert_array_equal(sdss.flux_nmgy, both.flux_nmgy)
    np.testing.assert_array_equal(sdss.spectra["sdss"].flux, both.spectra["sdss"].flux)
    assert set(both.spectra) == {"desi", "sdss"}


def test_stars_come_back_from_disk_with_their_xp_coefficients(tmp_path: Path) -> None:
    folder = simulated.simulate(SKY, tmp_path / "sky", num_workers=1)
    (file,) = simulated.list_files(folder)
    (batch,) = simulated.read(file)
    drawn = list(simulated.draw(SKY))

    assert [o.fingerprint for o in batch.observations] == [o.fingerprint for o in drawn]
    with_xp = [o for o in batch.observations if o.xp is not None]
    assert len(with_xp) == 4
    assert all("tok_flux_bp_gaia" in o.scalars for o in with_xp)


def test_xp_coefficients_tell_temperature_and_brightness() -> None:
    def seen(kelvin: float, mag: float) -> tuple[float, float]:
        view = seen_by_gaia(
            StarSurface(temperature_k=kelvin), mag_r=mag, rng=np.random.default_rng(1)
        )
        assert view.xp.bp is not None
        assert view.xp.bp_error is not None
        assert np.abs(view.xp.bp).max() > 20 * np.median(view.xp.bp_error)
        return view.flux_bp / view.flux_rp, float(np.abs(view.xp.bp).max())

    colours = [seen(kelvin, 15.0)[0] for kelvin in (3500.0, 5000.0, 7000.0, 12000.0)]
    assert (np.diff(colours) > 0).all()
    assert seen(6000.0, 14.0)[1] == pytest.approx(10**0.4 * seen(6000.0, 15.0)[1], rel=0.02)


def test_the_default_sky_has_the_fractions_of_the_evaluation_sets() -> None:
    counts = Counter(plan(SkyConfig(num_objects=10_000)).kinds)

    assert counts["spiral"] + counts["barred"] == 2600
    assert counts["merger"] + counts["shell"] == 200
    assert counts["lens"] + counts["group_lens"] == 10
    assert set(counts) >= {"ring", "quasar", "star", "irregular", "elliptical"}
