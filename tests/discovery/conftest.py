"""A small real sky: files written here, an untrained encoder of the real architecture, one build.

46 Legacy-like FITS cutouts, 40 of them in a patch at RA 150, Dec 2, with twins 0 and 1 (the same
pixels); two each side of RA 0; two about the north pole; two at Dec -0.2 in the patch's meridian
8 SDSS-like spectra of cutouts 0 to 7, and one of an object without an image
2 colour pictures without a position
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image as Picture

import discovery
from discovery import Sky
from index.building import build
from training import artifact
from training.search_head import SearchHead, SearchHeadConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

NUM_IN_PATCH = 40
NUM_WITH_SPECTRUM = 8
SPECTRUM_ONLY = "1237648721217719999"
PICTURES = ("disc", "edge")


def object_id(number: int) -> str:
    """Nineteen digits, more than a float64 holds."""
    return f"12376487212177165{number:02d}"


def positions() -> dict[str, tuple[float, float]]:
    """ICRS degrees of every object that has a cutout."""
    rng = np.random.default_rng(1)
    places = [
        (150 + 0.02 * (n % 8) + 1e-3 * rng.random(), 2 + 0.02 * (n // 8) + 1e-3 * rng.random())
        for n in range(NUM_IN_PATCH)
    ]
    places += [(0.0003, 10.0), (359.9996, 10.0), (10.0, 89.9995), (200.0, 89.9996)]
    places += [(188.73625, -0.20833), (188.74, -0.20833)]
    return {object_id(n): place for n, place in enumerate(places)}


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of the small sky are."""

    cutouts: Path
    spectra: Path
    pictures: Path
    encoder: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The input of the small sky, and the encoder."""
    folder = tmp_path_factory.mktemp("files")
    made = Files(*(folder / name for name in ("cutouts", "spectra", "pictures", "encoder")))
    for part in (made.cutouts, made.spectra, made.pictures):
        part.mkdir()
    rng = np.random.default_rng(7)
    for n, (name, (ra_deg, dec_deg)) in enumerate(positions().items()):
        shape = 0 if n == 1 else n
        write_cutout(made.cutouts / f"{name}.fits", ra_deg, dec_deg, seed=shape)
    for n in range(NUM_WITH_SPECTRUM):
        name = object_id(n)
        write_spectrum(made.spectra / f"{n}.fits", name, positions()[name], redshift=0.05 * (n + 1))
    write_spectrum(made.spectra / "only.fits", SPECTRUM_ONLY, (150.3, 2.3), redshift=0.7)
    for name in PICTURES:
        pixels = rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(made.pictures / f"{name}.png")
    write_encoder(made.encoder)
    return made


@pytest.fixture(scope="session")
def sky_folder(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sky on disk; tests do not write to it."""
    folder = tmp_path_factory.mktemp("sky") / "small"
    sources = {"legacysurvey": files.cutouts, "sdss": files.spectra, "composite": files.pictures}
    for survey, source in sources.items():
        report = build(folder, [source], survey=survey, encoder=files.encoder, num_workers=0)
        assert not report.skipped
    return folder


@pytest.fixture(scope="session")
def sky(sky_folder: Path) -> Sky:
    """The small sky, open."""
    return discovery.open(sky_folder)


def write_cutout(file: Path, ra_deg: float, dec_deg: float, *, seed: int) -> None:
    """A g, r, z cutout as the Legacy Survey viewer gives it: an inclined disc on noise."""
    rng = np.random.default_rng(seed)
    size = 96
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle, axis_ratio, radius = rng.uniform(0, np.pi), rng.uniform(0.2, 1), rng.uniform(3, 12)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    light = np.exp(-np.hypot(u, v / axis_ratio) / radius)
    flux = [
        rng.uniform(0.05, 2) * light + sigma * rng.standard_normal(light.shape)
        for sigma in (0.004, 0.008, 0.016)
    ]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [(size + 1) / 2] * 2
    wcs.wcs.cdelt = [-0.262 / 3600, 0.262 / 3600]
    header = wcs.to_header()
    header["BANDS"] = "grz"
    header["SURVEY"], header["VERSION"] = "LegacySurvey", "DR9"
    fits.PrimaryHDU(np.stack(flux).astype(np.float32), header).writeto(file)


def write_spectrum(
    file: Path, best_object_id: str, position: tuple[float, float], *, redshift: float
) -> None:
    """A spectrum as SDSS gives it: a slope, one line, noise; and its one-row object table."""
    rng = np.random.default_rng(int(best_object_id) % 997)
    loglam = np.arange(3.58, 3.96, 1e-3)
    line = 5 * np.exp(-(((10**loglam - 5007 * (1 + redshift)) / 15) ** 2))
    flux = 3 + line + 0.2 * rng.standard_normal(len(loglam))
    columns = (("flux", flux, "E"), ("loglam", loglam, "E"), ("ivar", np.full_like(flux, 25), "E"))
    coadd = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, array=array) for name, array, form in columns], name="COADD"
    )
    values: Mapping[str, tuple[str, object]] = {
        "CLASS": ("6A", "GALAXY"), "Z": ("E", redshift), "ZWARNING": ("J", 0),
        "BESTOBJID": ("19A", best_object_id), "PLATE": ("J", 1), "MJD": ("J", 52000),
        "FIBERID": ("J", int(best_object_id) % 1000),
        "PLUG_RA": ("D", position[0]), "PLUG_DEC": ("D", position[1]),
    }  # fmt: skip
    row = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, array=[value]) for name, (form, value) in values.items()],
        name="SPECOBJ",
    )
    fits.HDUList([fits.PrimaryHDU(), coadd, row]).writeto(file)


def write_encoder(folder: Path, *, seed: int = 0) -> None:
    """An encoder of the real architecture, a few thousand weights, never trained."""
    torch.manual_seed(seed)
    scalars = {f"tok_flux_{band}": Domain(vocabulary=16, grid=(1, 1)) for band in "grz"}
    transformer = Transformer(
        TransformerConfig(
            domains_in={
                "tok_image": Domain(vocabulary=1000, grid=(12, 12)),
                "tok_spectrum_sdss": Domain(vocabulary=1024, grid=(273, 1)),
                **scalars,
            },
            dim=32,
            encoder_depth=1,
            decoder_depth=1,
            num_heads=2,
        )
    )
    codecs: dict[str, artifact.Codec] = {
        "image": ImageTokenizer(
            ImageTokenizerConfig(
                hidden=16,
                embedding=4,
                multisurvey=8,
                num_compressions=3,
                num_consecutive=1,
                levels=(8, 5, 5, 5),
                gate_bias=0.0,
                compression_multiplier=100.0,
            )
        ),
        "spectrum": SpectrumTokenizer(
            SpectrumTokenizerConfig(
                encoder_depths=(1, 1, 1, 1),
                encoder_dims=(8, 8, 16, 16),
                decoder_depths=(1, 1, 1, 1),
                decoder_dims=(16, 8, 8, 2),
            )
        ),
    }
    for band in "GRZ":
        scalar = ScalarTokenizer(ScalarTokenizerConfig(num_bins=16, log=True))
        scalar.fit(torch.linspace(0.1, 100, 1000))
        codecs[f"FLUX_{band}"] = scalar
    views = ("image", "spectrum", "joint")
    head = SearchHead(SearchHeadConfig(views=views, dim=32, hidden=32, dropout=0.0))
    artifact.save(folder, transformer=transformer, codecs=codecs, head=head)
