"""A sky of Gaia XP coefficients in Multimodal Universe files, and a cheap, real encoder.

What the nightly costs beside embedding shows only where embedding is cheap. So an object is a row
of 110 numbers, its file holds many, and the encoder is a transformer of one layer and random
weights, in an artefact like any other. Files lie by HEALPix cell, one a cell, as those of the
Multimodal Universe do; rows are drawn from the number of their file and of its edition alone.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy import units
from cdshealpix.nested import healpix_to_lonlat
from numpy import ndarray

from training import artifact
from training.observations import NUM_XP_COEFFICIENTS
from training.search_head import SearchHead, SearchHeadConfig
from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

SURVEY = "multimodal_universe"  # whose reader reads it
VIEW = "xp"
MIN_ROWS = 400  # of a file
_NUM_COEFFICIENTS = 2 * NUM_XP_COEFFICIENTS
_NUM_TRAITS = 12  # independent numbers behind the coefficients of an object
_NUM_BINS = 64


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a simulated sky, one a HEALPix cell."""

    folder: Path
    num_objects: int
    seed: int = 0

    @property
    def order(self) -> int:
        """Of the cells: the finest whose files have MIN_ROWS."""
        order = 0
        while self.num_objects // (12 * 4 ** (order + 1)) >= MIN_ROWS:
            order += 1
        return order

    @property
    def num_files(self) -> int:
        return 12 * 4**self.order

    def num_rows(self, cell: int) -> int:
        """Rows of the file of a cell."""
        return self.num_objects // self.num_files + (cell < self.num_objects % self.num_files)

    def path(self, cell: int, *, part: int = 1) -> Path:
        """Where the file of a cell lies; other parts hold other objects of the cell."""
        return self.folder / "gaia" / "dr3" / f"healpix={cell}" / f"{part:03d}.parquet"

    def write_all(self) -> None:
        """Write the file of every cell."""
        for cell in range(self.num_files):
            self.write(cell)

    def write(self, cell: int, *, part: int = 1, edition: int = 0) -> None:
        """Write a file; another edition has the same objects with other coefficients."""
        file = self.path(cell, part=part)
        file.parent.mkdir(parents=True, exist_ok=True)
        num = self.num_rows(cell)
        where = np.random.default_rng((self.seed, cell, part))
        inside = 4 ** (29 - self.order)  # cells of order 29
        ra, dec = healpix_to_lonlat(cell * inside + where.integers(inside, size=num), 29)
        drawn = np.random.default_rng((self.seed, cell, part, edition))
        ids = [f"{cell:06d}{part:03d}{row:07d}" for row in range(num)]
        values = coefficients(drawn, num)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), _NUM_COEFFICIENTS)
        columns = {
            "object_id": pa.array(ids),
            "ra": pa.array(ra.to_value(units.deg)),
            "dec": pa.array(dec.to_value(units.deg)),
            "coeff": lists,
            # which the encoder does not read, but predicates do
            "phot_g_mean_mag": pa.array(drawn.uniform(10, 21, num)),
            "parallax": pa.array(drawn.exponential(1.0, num)),
        }
        pq.write_table(pa.table(columns), file)

    def remove(self, cell: int) -> None:
        """Remove the folder of a cell; an empty one would count as a disk that is not mounted."""
        shutil.rmtree(self.path(cell).parent)


def coefficients(rng: np.random.Generator, num: int) -> ndarray:
    """Coefficients (num, 110) float32: a few traits of each object, and noise."""
    mixing = np.random.default_rng(0).normal(size=(_NUM_TRAITS, _NUM_COEFFICIENTS))
    falls = 100.0 / (1 + np.arange(_NUM_COEFFICIENTS) % NUM_XP_COEFFICIENTS)
    traits = rng.normal(size=(num, _NUM_TRAITS))
    noise = 0.1 * rng.normal(size=(num, _NUM_COEFFICIENTS))
    return ((traits @ mixing + noise) * falls).astype(np.float32)


def write_encoder(folder: Path) -> None:
    """An encoder of BP coefficients with random weights, whose head spreads what it gives."""
    torch.manual_seed(0)
    sample = torch.from_numpy(coefficients(np.random.default_rng(1), 4096))
    tokenizer = MultiScalarTokenizer(MultiScalarTokenizerConfig(num_bins=_NUM_BINS))
    tokenizer.fit(sample[:, :NUM_XP_COEFFICIENTS])
    config = TransformerConfig(
        domains_in={"tok_xp_bp": Domain(vocabulary=_NUM_BINS, grid=(NUM_XP_COEFFICIENTS, 1))},
        dim=32, encoder_depth=1, decoder_depth=1, num_heads=1, mlp_ratio=1.0,
    )  # fmt: skip
    transformer = Transformer(config)
    head = SearchHead(SearchHeadConfig(views=(VIEW,), dim=config.dim, hidden=0, dropout=0.0))
    with torch.no_grad():
        tokens = tokenizer.encode(sample[:, :NUM_XP_COEFFICIENTS])
        encoded = transformer.encode_packed([{"tok_xp_bp": each} for each in tokens])
        pooled = transformer.pool(encoded)
    head.mean[0], head.std[0] = pooled.mean(dim=0), pooled.std(dim=0)
    artifact.save(folder, transformer=transformer, codecs={"bp_coefficients": tokenizer}, head=head)
