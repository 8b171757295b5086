"""Files of small surveys written here, and an untrained encoder of the real architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from numpy import ndarray

from index.building import BuildReport, build
from training import artifact
from training import encoder as encoders
from training.observations import Image, Observation, Spectrum
from training.search_head import SearchHead, SearchHeadConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

Builder = Callable[..., BuildReport]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of a few thousand weights, never trained."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    write_encoder(folder, seed=0)
    return folder


@pytest.fixture
def into(encoder: Path) -> Builder:
    """Build in this process with the tiny encoder: into(sky, source, survey, ...)."""

    def run(sky: Path, source: Path, survey: str, **options: object) -> BuildReport:
        settings = {"encoder": encoder, "num_workers": 0} | options
        return build(sky, [source], survey=survey, **settings)  # type: ignore[arg-type]

    return run


def write_encoder(folder: Path, *, seed: int, head_seed: int = 0) -> None:
    """Write a tiny artefact; another seed gives another encoder, another head_seed another head."""
    torch.manual_seed(seed)
    domains = {
        "tok_image": Domain(vocabulary=1000, grid=(12, 12)),
        "tok_spectrum_sdss": Domain(vocabulary=1024, grid=(273, 1)),
        **{f"tok_flux_{band}": Domain(vocabulary=16, grid=(1, 1)) for band in "grz"},
    }
    config = TransformerConfig(
        domains_in=domains, dim=32, encoder_depth=1, decoder_depth=1, num_heads=2
    )
    codecs: dict[str, artifact.Codec] = {
        "image": ImageTokenizer(
            ImageTokenizerConfig(
                hidden=16, embedding=4, multisurvey=8, num_compressions=3, num_consecutive=1,
                levels=(8, 5, 5, 5), gate_bias=0.0, compression_multiplier=100.0,
            )
        ),
        "spectrum": SpectrumTokenizer(
            SpectrumTokenizerConfig(
                encoder_depths=(1, 1, 1, 1), encoder_dims=(8, 8, 16, 16),
                decoder_depths=(1, 1, 1, 1), decoder_dims=(16, 8, 8, 2),
            )
        ),
    }  # fmt: skip
    for band in "GRZ":
        scalar = ScalarTokenizer(ScalarTokenizerConfig(num_bins=16, log=True))
        scalar.fit(torch.linspace(0.1, 100, 1000))
        codecs[f"FLUX_{band}"] = scalar
    transformer = Transformer(config)
    torch.manual_seed(head_seed)
    views = ("image", "spectrum", "joint")
    head = SearchHead(SearchHeadConfig(views=views, dim=32, hidden=32, dropout=0.0))
    artifact.save(folder, transformer=transformer, codecs=codecs, head=head)
    # Untrained vectors lie close together; the head spreads them, so that a mix-up shows.
    embedded = encoders.load(folder).embed([_any_observation(n) for n in range(12)])
    for i, view in enumerate(views):
        some = torch.from_numpy(embedded.vectors[np.array(embedded.views) == view])
        head.mean[i], head.std[i] = some.mean(dim=0), some.std(dim=0)
    artifact.save_head(folder, head)


def _any_observation(number: int) -> Observation:
    rng = np.random.default_rng(number)
    flux = _disc(rng).astype(np.float32)
    bad = np.zeros(flux.shape, bool)
    wavelength = np.linspace(3800, 9100, 300)
    line = (rng.uniform(1, 9) + rng.standard_normal(300)).astype(np.float32)
    return Observation(
        survey="", release="", source_id="", object_id="", fingerprint="", source="",
        image=Image(flux, np.full_like(flux, 1e4), bad, ("DES-G", "DES-R", "DES-Z")),
        spectrum=Spectrum(line, np.ones_like(line), np.zeros(300, bool), wavelength),
        scalars={f"tok_flux_{band}": float(rng.uniform(1, 90)) for band in "grz"},
    )  # fmt: skip


def _disc(rng: np.random.Generator) -> ndarray:
    """Three planes: an inclined disc on noise, nanomaggies per pixel."""
    y, x = np.mgrid[:96, :96] - 47.5
    light = np.exp(-np.hypot(x, y / rng.uniform(0.2, 1)) / rng.uniform(3, 12))
    planes = [rng.uniform(0.05, 2) * light + 0.01 * rng.standard_normal(x.shape) for _ in "grz"]
    return np.stack(planes)


def write_cutout(
    file: Path,
    seed: int,
    *,
    position: tuple[float, float] = (150.0, 2.0),
    release: str = "DR9",
) -> Path:
    """A g, r, z cutout as the Legacy Survey viewer gives it: an inclined disc on noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flux = _disc(np.random.default_rng(seed))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = list(position)
    wcs.wcs.crpix = [48.5, 48.5]
    wcs.wcs.cdelt = [-0.262 / 3600, 0.262 / 3600]
    header = wcs.to_header()
    header["BANDS"], header["SURVEY"], header["VERSION"] = "grz", "LegacySurvey", release
    content = fits.PrimaryHDU(flux.astype(np.float32), header)
    content.writeto(file, overwrite=True)
    return file


def write_spectrum(
    file: Path,
    object_id: str,
    *,
    fiber: int = 1,
    redshift: float = 0.1,
    zwarning: int = 0,
    position: tuple[float, float] = (150.0, 2.0),
) -> Path:
    """A spectrum as SDSS gives it; `object_id` is its photometric object, BESTOBJID."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(fiber)
    loglam = np.arange(3.58, 3.96, 1e-3)
    line = 5 * np.exp(-(((10**loglam - 5007 * (1 + redshift)) / 15) ** 2))
    flux = 3 + line + 0.2 * rng.standard_normal(len(loglam))
    arrays = {"flux": flux, "loglam": loglam, "ivar": np.full_like(flux, 25)}
    coadd = fits.BinTableHDU.from_columns(
        [fits.Column(name, "E", array=array) for name, array in arrays.items()], name="COADD"
    )
    values: dict[str, tuple[str, object]] = {
        "CLASS": ("6A", "GALAXY"), "Z": ("E", redshift), "ZWARNING": ("J", zwarning),
        "BESTOBJID": ("19A", object_id), "PLATE": ("J", 1), "MJD": ("J", 52000),
        "FIBERID": ("J", fiber), "PLUG_RA": ("D", position[0]), "PLUG_DEC": ("D", position[1]),
    }  # fmt: skip
    row = fits.BinTableHDU.from_columns(
        [fits.Column(name, form, array=[value]) for name, (form, value) in values.items()],
        name="SPECOBJ",
    )
    fits.HDUList([fits.PrimaryHDU(), coadd, row]).writeto(file, overwrite=True)
    return file
