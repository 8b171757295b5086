"""Sources around an object to tokens and back: the catalogue stream of AION-1.

Five tokens a source (X, Y, SHAPE_E1, SHAPE_E2, SHAPE_R), nearest to the image centre first. The
five share one vocabulary, each with its own range of codes. The transformer's vocabulary starts
with 204 codes of its own (4 special ones and 200 sentinels) and pads with 0; the released codec
counts from 0 and pads with 9999, and leaves the shift to its caller. Here `encode` and `decode`
speak the transformer's language; `to_raw` and `from_raw` translate.

Source: the released package polymathic-aion 0.0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from training.observations import IMAGE_SIZE, Ellipses
from training.tokenizers.quantizers import QuantileQuantizer
from training.tokenizers.scalar import refuse_nan

NUM_QUANTITIES = 5  # a source: x, y, e1, e2, r
VOCABULARY_OFFSET = 204  # codes that the transformer keeps for itself
PADDING = 0  # the transformer's code for no source


@dataclass(frozen=True, slots=True, kw_only=True)
class EllipsesTokenizerConfig:
    """Bins of the ellipse stream. The defaults are the released AION-1."""

    num_bins: int = 1024  # of each shape
    reservoir_size: int = 100_000  # values of the fit that are kept beside each table
    raw_padding: int = 9999  # the released codec's code for no source
    num_tokens: int = 50  # that the transformer has room for: ten sources

    def __post_init__(self) -> None:
        if self.num_bins < 2 or self.num_tokens < NUM_QUANTITIES or self.reservoir_size < 0:
            raise ValueError(
                f"expected 2 num_bins, {NUM_QUANTITIES} num_tokens and a reservoir_size of 0 or "
                f"more, got {self.num_bins}, {self.num_tokens} and {self.reservoir_size}"
            )
        if self.num_tokens % NUM_QUANTITIES:
            raise ValueError(f"num_tokens must be divisible by 5, got {self.num_tokens}")
        if 0 <= self.raw_padding < 2 * IMAGE_SIZE + 3 * self.num_bins:
            raise ValueError(f"raw_padding must not be a code, got {self.raw_padding}")


@dataclass(frozen=True, slots=True)
class EllipseTensors:
    """A batch of sources; rows with fewer are padded at the end with present False."""

    values: Float[Tensor, "b source 5"]  # x, y (pixels), e1, e2, r (arcsec)
    present: Bool[Tensor, "b source"]


def stack(ellipses: Sequence[Ellipses]) -> EllipseTensors:
    """Put any numbers of sources into one batch."""
    longest = max((len(sources.x) for sources in ellipses), default=0)
    values = np.zeros((len(ellipses), longest, NUM_QUANTITIES), dtype=np.float32)
    present = np.zeros((len(ellipses), longest), dtype=bool)
    for row, sources in enumerate(ellipses):
        columns = (
            sources.x, sources.y, sources.shape_e1, sources.shape_e2, sources.shape_r_arcsec
        )  # fmt: skip
        values[row, : len(sources.x)] = np.stack(columns, axis=1)
        present[row, : len(sources.x)] = True
    return EllipseTensors(torch.from_numpy(values), torch.from_numpy(present))


def unstack(tensors: EllipseTensors) -> tuple[Ellipses, ...]:
    """The sources of each row, nearest to the image centre first."""
    found = []
    for values, present in zip(tensors.values.numpy(), tensors.present.numpy(), strict=True):
        sources = values[present]
        offset = sources[:, :2] - (IMAGE_SIZE - 1) / 2
        x, y, e1, e2, r = sources[np.argsort(np.hypot(*offset.T), kind="stable")].T
        found.append(Ellipses(x=x, y=y, shape_e1=e1, shape_e2=e2, shape_r_arcsec=r))
    return tuple(found)


class EllipsesTokenizer(nn.Module):
    """Encode sources as a sequence of codes of the transformer's vocabulary."""

    offsets: Tensor  # (5,): first raw code of each quantity
    counts: Tensor  # (5,): codes of each quantity

    def __init__(self, config: EllipsesTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        counts = torch.tensor([IMAGE_SIZE, IMAGE_SIZE] + 3 * [config.num_bins])
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("offsets", counts.cumsum(0) - counts, persistent=False)
        self.shape_e1 = _table(config)
        self.shape_e2 = _table(config)
        self.shape_r = _table(config)

    @property
    def num_codes(self) -> int:
        """Size of the transformer's vocabulary, its own codes included."""
        return VOCABULARY_OFFSET + 2 * IMAGE_SIZE + 3 * self.config.num_bins

    def fit(self, sources: EllipseTensors) -> None:
        """Learn the bins of the shapes from the sources that are present."""
        for table, column in zip(
            self._tables(), sources.values[sources.present].T[2:], strict=True
        ):
            table.fit(column)

    def encode(self, sources: EllipseTensors) -> Int64[Tensor, "b n"]:
        """Give the tokens of the first sources of each row; 0 where there are fewer.

        Positions are rounded to the nearest pixel of the image.

        Raises:
            ValueError: a value of a source that is present is NaN, or lies outside the image.
        """
        raw = self.raw_codes(sources)[:, : self.num_tokens]
        missing = self.num_tokens - raw.shape[1]
        raw = nn.functional.pad(raw, (0, missing), value=self.config.raw_padding)
        return self.from_raw(raw)

    def decode(self, tokens: Int64[Tensor, "b n"]) -> EllipseTensors:
        """Give the sources; one with a code that is not of its quantity is not present.

        The values of codes that are of no use are -1, as in the released codec.
        """
        return self.decode_raw(self.to_raw(tokens))

    def raw_codes(self, sources: EllipseTensors) -> Int64[Tensor, "b raw"]:
        """Codes as the released codec numbers them, five for each source; see `encode`."""
        present = sources.present
        values = torch.where(present[..., None], sources.values, 0.0)
        refuse_nan(values)
        pixels = values[..., :2].round().long()
        if ((pixels < 0) | (pixels >= IMAGE_SIZE)).any():
            raise ValueError(f"expected sources in pixels 0 to {IMAGE_SIZE - 1}, got one outside")
        shapes = [
            t.encode(v) for t, v in zip(self._tables(), values[..., 2:].unbind(-1), strict=True)
        ]
        codes = torch.cat([pixels, torch.stack(shapes, dim=-1)], dim=-1) + self.offsets
        return torch.where(present[..., None], codes, self.config.raw_padding).flatten(1)

    def decode_raw(self, raw: Int64[Tensor, "b raw"]) -> EllipseTensors:
        """Give the sources of codes as the released codec numbers them; see `decode`."""
        whole = raw.shape[1] // NUM_QUANTITIES * NUM_QUANTITIES
        codes = raw[:, :whole].reshape(len(raw), -1, NUM_QUANTITIES) - self.offsets
        usable = (codes >= 0) & (codes < self.counts)
        codes = torch.where(usable, codes, 0)
        shapes = [
            t.decode(c) for t, c in zip(self._tables(), codes[..., 2:].unbind(-1), strict=True)
        ]
        values = torch.cat([codes[..., :2].float(), torch.stack(shapes, dim=-1)], dim=-1)
        return EllipseTensors(torch.where(usable, values, -1.0), usable.all(dim=-1))

    def from_raw(self, raw: Int64[Tensor, "b raw"]) -> Int64[Tensor, "b raw"]:
        """Translate codes of the released codec to the transformer's."""
        return torch.where(raw == self.config.raw_padding, PADDING, raw + VOCABULARY_OFFSET)

    def to_raw(self, tokens: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Translate codes of the transformer to the released codec's; its own become padding."""
        return torch.where(
            tokens < VOCABULARY_OFFSET, self.config.raw_padding, tokens - VOCABULARY_OFFSET
        )

    def _tables(self) -> tuple[QuantileQuantizer, QuantileQuantizer, QuantileQuantizer]:
        return self.shape_e1, self.shape_e2, self.shape_r


def _table(config: EllipsesTokenizerConfig) -> QuantileQuantizer:
    return QuantileQuantizer(config.num_bins, reservoir_size=config.reservoir_size)
