"""Damaged files: a check says what is wrong or lets the file pass, and does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.training import archive_files
from training.archives import desi, gaia, sdss
from training.archives.legacysurvey import LegacySurvey
from training.archives.multimodal_universe import read_places
from training.archives.positions import Target
from training.surveys import legacysurvey as legacysurvey_reader

Check = Callable[[bytes], object]
TARGET = Target(row=1, name="a", ra_deg=10.0, dec_deg=20.0)

CASES: dict[str, tuple[bytes, Check]] = {
    "legacysurvey": (
        archive_files.cutout(10, 20),
        partial(LegacySurvey(size_px=16).check, TARGET),
    ),
    "sdss": (
        archive_files.spec_lite(266, 51602, 13),
        partial(sdss.check_spectrum, numbers=(266, 51602, 13)),
    ),
    "desi": (archive_files.coadd([7]), partial(desi.check_file, "coadd", targetid=7)),
    "gaia": (archive_files.xp_table([7, 8]), gaia.check_coefficients),
}


@pytest.mark.parametrize("name", CASES)
def test_flipped_bytes_pass_or_are_named(name: str) -> None:
    content, check = CASES[name]
    check(content)
    random = np.random.default_rng(5)
    reasons = []
    for _ in range(60):
        damaged = bytearray(content)
        # Half of the flips in the headers, which are short and where they hurt.
        reach = len(content) if random.random() < 0.5 else 5760
        for place in random.integers(0, reach, random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        try:
            check(bytes(damaged))
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > 5
    assert all(reasons)


@pytest.mark.parametrize("name", CASES)
def test_no_beginning_of_a_file_passes_for_the_whole(name: str) -> None:
    content, check = CASES[name]
    random = np.random.default_rng(6)
    # FITS ends in a block of zeros or blanks: what is cut must reach beyond it.
    for length in random.integers(0, len(content) - 2880, 40):
        if name == "gaia" and length == 0:
            continue  # no content is how DataLink says that it has none
        with pytest.raises(ValueError, match=r"\w"):
            check(content[:length])


def test_a_damaged_hdf5_is_named_or_read(tmp_path: Path) -> None:
    content = archive_files.hdf5(tmp_path, [(1.0, 2.0), (3.0, 4.0)])
    random = np.random.default_rng(7)
    file = tmp_path / "damaged.hdf5"
    reasons = []
    for _ in range(100):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        file.write_bytes(damaged)
        try:
            read_places(file)
        except ValueError as error:
            reasons.append(str(error))
    assert all(reason.startswith("damaged.hdf5: ") for reason in reasons)
    assert reasons
    for length in (0, 100, len(content) // 2):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged\.hdf5"):
            read_places(file)


def test_what_is_fetched_can_be_read(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    body = archive_files.cutout(10, 20, size=96, value=random.normal(0, 1, (4, 96, 96)))
    (tmp_path / "a.fits").write_bytes(body)
    LegacySurvey(size_px=96).check(TARGET, body)
    observation = legacysurvey_reader.read_one(tmp_path / "a.fits", "")
    assert observation.ra_deg == pytest.approx(10, abs=1e-4)
    assert observation.dec_deg == pytest.approx(20, abs=1e-4)
    assert observation.image is not None
    assert observation.image.bands == ("DES-G", "DES-R", "DES-I", "DES-Z")
