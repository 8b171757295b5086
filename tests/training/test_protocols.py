"""The paper's protocols end to end, on small files and a small encoder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.training.mmu_files import Columns, legacy, spectra, write_hdf5
from training import encoder, published
from training.encoder import Encoder
from training.features import MODALITIES
from training.protocols import PROTOCOLS, Measured, measure

NUM = 24
PLACES = {"ra": np.linspace(1, 359, NUM), "dec": np.linspace(-60, 60, NUM)}


def images() -> Columns:
    """Galaxies of one size whose flux in the table says the class."""
    columns = legacy(NUM, side=96) | PLACES
    brightness = np.where(np.arange(NUM) % 2, 1.0, 30.0)
    columns |= {f"FLUX_{band}": brightness.astype(np.float32) for band in "GRIZ"}
    return columns | {"SHAPE_R": np.ones(NUM, np.float32)}


def classes() -> Columns:
    return {
        "object_id": np.arange(1, NUM + 1),
        **PLACES,
        "gz10_label": np.arange(NUM) % 2 * 5,
        "redshift": np.full(NUM, 0.05),
    }


def properties() -> Columns:
    flux = np.where(np.arange(NUM) % 2, 1.0, 30.0)
    rng = np.random.default_rng(5)
    return {
        "object_id": (9010 << 42) + (330368 << 22) + np.arange(NUM),
        **PLACES,
        "LOG_MSTAR": 10 + np.log10(flux),
        "PROVABGS_MCMC": np.zeros((NUM, 1, 13)),
        "Z_HP": rng.uniform(0.1, 0.4, NUM),
        "Z_MW": np.where(np.arange(NUM) == 3, 0.0, 0.01 * flux),
        "TAGE_MW": rng.uniform(1, 10, NUM),
        "AVG_SFR": rng.uniform(0.1, 10, NUM),
    }


def write(folder: Path, name: str, columns: Columns) -> Path:
    return write_hdf5(folder / name / "datafiles" / "healpix=1" / "001-of-001.hdf5", columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("universe")
    write(made, "legacysurvey", images())
    write(made, "gz10", classes())
    write(made, "desi_provabgs", properties())
    return made


def linear(sources: list[Path], protocol: str, encoder: Encoder, **how: object) -> Measured:
    return measure(sources, protocol, encoder, probe="linear", **how)  # type: ignore[arg-type]


def test_morphology_is_found_across_files(folder: Path, small_encoder: Encoder) -> None:
    stages: list[tuple[str, int, int]] = []
    found = linear(
        [folder],
        "morphology",
        small_encoder,
        modalities=["photometry"],
        show=lambda *stage: stages.append(stage),
    )
    assert found.scores["class"].mean == 1.0
    assert found.scores["class"].spread == 0.0
    assert (found.num_objects, found.num_test, found.repeats) == (NUM, 5, 3)
    assert found.chance == {"class": 0.5}
    assert found.published == {}
    assert [name for name, done, total in stages if done == total] == [
        "reading", "tokenizing", "encoding", "learning",
    ]  # fmt: skip


def test_properties_are_those_of_provabgs(folder: Path, small_encoder: Encoder) -> None:
    found = linear([folder], "properties", small_encoder, modalities=["photometry"])
    assert found.published == published.GALAXY_PROPERTIES["photometry",]
    assert list(found.scores) == ["redshift", "log_mass", "age", "log_z_mw", "log_ssfr"]
    assert found.scores["log_mass"].mean > 0.95  # the flux says it
    assert found.scores["redshift"].mean < 0.3  # drawn at random
    assert found.scores["log_z_mw"].num_objects == NUM - 1
    values = PROTOCOLS["properties"].known(
        {"log10_stellar_mass_msun": 10.0, "sfr_msun_per_year": 0.1, "stellar_metallicity": 0.02}
    )
    assert values == pytest.approx(
        {"log_mass": 10.0, "log_ssfr": -11.0, "log_z_mw": math.log10(0.02)}
    )
    assert PROTOCOLS["properties"].known({"log10_stellar_mass_msun": 0.0, "age_gyr": 5.0}) == {}


def test_an_attentive_head_reads_tokens_and_leaves_no_file(
    folder: Path, small_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = measure(
        [folder], "properties", small_encoder, probe="attentive", modalities=["photometry"],
        repeats=1,
    )  # fmt: skip
    assert found.scores["log_mass"].mean > 0.9
    assert found.scores["log_mass"].spread is None
    assert list(tmp_path.glob("skykin-*")) == []


def test_the_order_of_rows_and_files_changes_nothing(
    folder: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    order = np.random.default_rng(0).permutation(NUM)
    for name, columns in (("legacysurvey", images()), ("desi_provabgs", properties())):
        write(tmp_path, name, {key: np.asarray(each)[order] for key, each in columns.items()})
    one = linear([folder / "legacysurvey", folder / "desi_provabgs"], "properties", small_encoder)
    assert one.modalities == ("photometry", "image")
    assert one.published == published.GALAXY_PROPERTIES["photometry", "image"]
    other = linear([tmp_path / "desi_provabgs", tmp_path], "properties", small_encoder)
    assert one.num_objects == other.num_objects == NUM
    for target, score in one.scores.items():
        assert other.scores[target].mean == pytest.approx(score.mean, rel=1e-3, abs=1e-3)


def test_a_redshift_is_never_read(small_encoder: Encoder) -> None:
    assert "tok_z" in small_encoder.transformer.config.domains_in
    assert all("tok_z" not in streams for streams in MODALITIES.values())


def test_flagged_redshifts_and_stars_are_left_out(small_encoder: Encoder, tmp_path: Path) -> None:
    columns = spectra(NUM, num_pixels=200, zwarn="ZWARN") | PLACES
    columns["ZWARN"] = np.where(np.arange(NUM) < 3, 4, 0)
    columns["SPECTYPE"] = np.where(np.arange(NUM) < 5, b"STAR", b"GALAXY")
    file = write(tmp_path, "desi", columns)
    found = linear([file], "redshift", small_encoder, modalities=["spectrum"], repeats=1)
    assert found.num_objects == NUM - 5
    assert found.left_out == {"no trusted redshift": 5}
    limited = linear([file], "redshift", small_encoder, modalities=["spectrum"], limit=12)
    assert limited.num_objects == 12
    assert limited.left_out["beyond the limit"] == NUM - 5 - 12


@pytest.mark.parametrize(
    ("sources", "protocol", "how", "message"),
    [
        (["legacysurvey"], "morphology", {}, "gz10_label.*got 0.*24 with no gz10_label"),
        (["gz10"], "properties", {}, "PROVABGS.*got 0"),
        (["desi_provabgs"], "redshift", {}, "24 with no photometry and no image"),
        ([""], "shape", {}, "'shape'.*morphology, properties, redshift"),
        ([""], "redshift", {"modalities": ["sound"]}, "'sound'.*photometry, image, spectrum"),
        ([""], "redshift", {"modalities": []}, "got none"),
        ([""], "redshift", {"limit": 3}, "10 objects or more, got 3"),
        ([""], "redshift", {"repeats": 0}, "1 split or more"),
    ],
)
def test_what_cannot_be_measured_is_told(
    folder: Path, small_encoder: Encoder, sources: list[str], protocol: str,
    how: dict[str, object], message: str,
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=message):
        linear([folder / name for name in sources], protocol, small_encoder, **how)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(NUM, 5), "two classes or more.*barred spiral: 24"),
        (np.where(np.arange(NUM) < 2, 1, 5), "merging: 2, barred spiral: 22"),
    ],
)
def test_one_class_alone_is_told(
    folder: Path, small_encoder: Encoder, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    file = write(tmp_path, "gz10", classes() | {"gz10_label": labels})
    with pytest.raises(ValueError, match=message):
        linear([folder / "legacysurvey", file], "morphology", small_encoder)


def test_too_few_objects_and_files_of_other_kinds_are_told(
    small_encoder: Encoder, tmp_path: Path
) -> None:
    few = write(tmp_path, "desi", spectra(3, num_pixels=200, zwarn="ZWARN"))
    with pytest.raises(ValueError, match=r"needs 10 objects or more.*got 2"):
        linear([few], "redshift", small_encoder, modalities=["spectrum"])
    strange = write_hdf5(tmp_path / "strange.hdf5", {"object_id": [1], "colour": [0.5]})
    with pytest.raises(ValueError, match=r"no object could be read.*not a known data set"):
        linear([strange], "redshift", small_encoder)


def test_an_encoder_in_another_precision_is_refused(folder: Path, encoder_folder: Path) -> None:
    rough = encoder.load(encoder_folder, precision="bfloat16")
    with pytest.raises(ValueError, match="made in float32, this encoder is in bfloat16"):
        linear([folder], "morphology", rough)


def test_a_known_size_stands_beside_its_own_published_row(small_encoder: Encoder) -> None:
    config = small_encoder.transformer.config
    rows = published.rows_beside(published.REDSHIFT, ("photometry", "image"), config)
    assert {model: row["redshift"] for model, row in rows.items()} == {
        "aion-base": 0.93, "aion-large": 0.94, "aion-xlarge": 0.94,
    }  # fmt: skip
    base = type(config)(domains_in=config.domains_in, dim=768, num_heads=12, encoder_depth=12)
    alone = published.rows_beside(published.GALAXY_PROPERTIES, ("photometry",), base)
    assert alone == {"aion-base": published.GALAXY_PROPERTIES["photometry",]["aion-base"]}
    assert published.rows_beside(published.REDSHIFT, ("spectrum",), base) == {}
