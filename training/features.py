"""What a frozen encoder makes of a cohort: a mean vector an object, or every token's output.

Token outputs are large (1.3 MB an object for image, spectrum and photometry at the size of
AION-1-B), so they lie in a file of float16, objects end to end, and memory holds a batch of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from training.cohort import Member, Show, observations_of
from training.encoder import MAX_BATCH, Encoder
from training.modalities import STREAM
from training.tokens import tokenize

_GIB = 2**30

# What the paper's tables call photometry, image and spectrum. Extinction is photometry too: a
# property may need it, though no search does. Redshift is never read.
MODALITIES: dict[str, tuple[str, ...]] = {
    "photometry": tuple(
        key
        for key, stream in STREAM.items()
        if stream.kind == "scalar" and stream.survey in ("legacysurvey", "hsc")
    ),
    "image": tuple(key for key, stream in STREAM.items() if stream.kind == "image"),
    "spectrum": tuple(key for key, stream in STREAM.items() if stream.kind == "spectrum"),
}


@dataclass(frozen=True, slots=True)
class Features:
    """Encoder outputs of objects: one row each, or one a token, objects end to end."""

    values: Float[ndarray, "row dim"]
    starts: Int64[ndarray, " bound"] | None = None  # object i has rows starts[i] to starts[i + 1]

    def __len__(self) -> int:
        return len(self.values) if self.starts is None else len(self.starts) - 1

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    def tokens(
        self, objects: Int64[ndarray, " n"]
    ) -> tuple[Float32[Tensor, "n token dim"], Tensor]:
        """Tokens of some objects as padded rows, and which of them are none (n, token)."""
        assert self.starts is not None
        lengths = self.starts[objects + 1] - self.starts[objects]
        rows = np.zeros((len(objects), int(lengths.max()), self.dim), dtype=np.float32)
        for place, (number, length) in enumerate(zip(objects, lengths, strict=True)):
            start = self.starts[number]
            rows[place, :length] = self.values[start : start + length]
        padding = torch.arange(rows.shape[1])[None] >= torch.from_numpy(lengths)[:, None]
        return torch.from_numpy(rows), padding


def kinds_of(encoder: Encoder, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The encoder's token streams of each modality.

    Raises:
        ValueError: no modality, one that there is not, or one that this encoder does not read.
    """
    if not modalities:
        raise ValueError(f"expected some of the modalities {', '.join(MODALITIES)}, got none")
    kinds = {}
    mine = encoder.transformer.config.domains_in
    for name in modalities:
        if name not in MODALITIES:
            raise ValueError(f"unknown modality {name!r}: expected some of {', '.join(MODALITIES)}")
        kinds[name] = tuple(key for key in MODALITIES[name] if key in mine)
        if not kinds[name]:
            raise ValueError(f"this encoder reads no {name}: it has {', '.join(mine)}")
    return kinds


def embed(
    members: Sequence[Member],
    encoder: Encoder,
    *,
    token_file: Path | None = None,
    show: Show | None = None,
) -> Features:
    """Tokenize and encode all members.

    Args:
        members: Objects.
        encoder: Anything that stays as it is.
        token_file: Where token outputs go; None = mean vectors, in memory.
        show: Called with a stage, objects done, and objects in all.

    Raises:
        ValueError: the encoder is not in float32, or the disk has no room for the token outputs.
        OSError: the file cannot be written.
    """
    if encoder.precision != "float32":
        raise ValueError(f"features are made in float32, this encoder is in {encoder.precision}")
    codes = _tokenize(members, encoder, show)
    lengths = np.array([sum(len(each) for each in mine.values()) for mine in codes])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    dim = encoder.transformer.config.dim  # no light: it is no output of the transformer
    if token_file is None:
        values: ndarray = np.zeros((len(members), dim), dtype=np.float32)
    else:
        _check_room(token_file, int(starts[-1]) * dim * 2, len(members))
        values = np.lib.format.open_memmap(
            token_file, mode="w+", dtype=np.float16, shape=(int(starts[-1]), dim)
        )
    order = np.argsort(lengths, kind="stable")  # objects of one length go through together
    device = encoder.transformer.mask_token.device
    for start in range(0, len(order), MAX_BATCH):
        some = order[start : start + MAX_BATCH].tolist()
        with torch.inference_mode():
            encoded = encoder.transformer.encode_packed(
                [{key: each.to(device) for key, each in codes[row].items()} for row in some]
            )
            if token_file is None:
                values[some] = encoder.transformer.pool(encoded).float().cpu().numpy()
            else:
                outputs = encoder.transformer.pooled_tokens(encoded).cpu()
                parts = torch.split(outputs, lengths[some].tolist())
                for row, part in zip(some, parts, strict=True):
                    values[starts[row] : starts[row + 1]] = part.half().numpy()
        if show is not None:
            show("encoding", start + len(some), len(order))
    return Features(values, None if token_file is None else starts)


def _tokenize(
    members: Sequence[Member], encoder: Encoder, show: Show | None
) -> list[dict[str, Tensor]]:
    codes: list[dict[str, Tensor]] = [{} for _ in members]
    for found in observations_of(members, show):
        wanted = {key for _, takers in found for _, key in takers}
        keys = tuple(key for key in encoder.transformer.config.domains_in if key in wanted)
        made = tokenize([seen for seen, _ in found], encoder.codecs, keys, device=encoder.device)
        for row, (_, takers) in enumerate(found):
            for number, key in takers:
                codes[number][key] = made[key][row]
    return [
        {key: mine[key] for key in encoder.transformer.config.domains_in if key in mine}
        for mine in codes
    ]


def _check_room(file: Path, num_bytes: int, num_objects: int) -> None:
    free = shutil.disk_usage(file.parent).free
    if num_bytes > 0.9 * free:
        fit = int(0.9 * free / num_bytes * num_objects)
        raise ValueError(
            f"token outputs of {num_objects:,} objects take {num_bytes / _GIB:.1f} GiB, "
            f"{file.parent} has {free / _GIB:.1f} GiB free: set TMPDIR to a larger disk, or take "
            f"at most {fit:,} objects (--limit)"
        )
