"""Tokens of many observations: made once by the frozen tokenizers, then kept as small integers.

Training reads the same objects many times, and tokenizing costs more than a training step; so the
tokens are written once to a shard, in which a missing stream is marked, never filled.
"""

from __future__ import annotations

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt16
from numpy import ndarray
from torch import Tensor

from training.artifact import Codec
from training.modalities import STREAM
from training.observations import Image, Observation, Spectrum
from training.tokenizers import image as image_tokenizer
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.transformer_config import Domain

MAX_BATCH = 8  # objects through the tokenizers at once; more is slower on a CPU (cache)

Tokens = dict[str, dict[int, Int64[Tensor, " token"]]]  # stream -> index of observation -> codes


def tokenize(
    observations: Sequence[Observation],
    codecs: Mapping[str, Codec],
    keys: Sequence[str],
    rows: Iterable[int] | None = None,
) -> Tokens:
    """Tokens of every given stream, for all observations or those at `rows`.

    Args:
        observations: What was seen.
        codecs: Tokenizers by codec name, for each of `keys`.
        keys: Token streams to make. Images go to the stream of their bands, spectra to that of
            their survey or to the one that there is, since they share one tokenizer.
        rows: Indices into `observations`.
    """
    chosen = sorted(range(len(observations)) if rows is None else set(rows))
    tokens: Tokens = defaultdict(dict)
    with torch.inference_mode():
        for start in range(0, len(chosen), MAX_BATCH):
            some = [(row, observations[row]) for row in chosen[start : start + MAX_BATCH]]
            images: dict[str, dict[int, Image]] = defaultdict(dict)
            spectra: dict[str, dict[int, Spectrum]] = defaultdict(dict)
            for row, seen in some:
                image_key, spectrum_key = key_of_image(keys, seen), key_of_spectrum(keys, seen)
                if image_key is not None and seen.image is not None:
                    images[image_key][row] = seen.image
                if spectrum_key is not None and seen.spectrum is not None:
                    spectra[spectrum_key][row] = seen.spectrum
            for image_key, mine in images.items():
                image_codec = codecs[STREAM[image_key].codec]
                assert isinstance(image_codec, ImageTokenizer)
                stacked = image_tokenizer.stack(list(mine.values()))
                flux = stacked.flux_nmgy.contiguous(memory_format=torch.channels_last)
                codes = image_codec.encode(flux, stacked.channels)
                tokens[image_key].update(zip(mine, codes, strict=True))
            for spectrum_key, these in spectra.items():
                spectrum_codec = codecs[STREAM[spectrum_key].codec]
                assert isinstance(spectrum_codec, SpectrumTokenizer)
                padded = spectrum_tokenizer.stack(list(these.values()))
                codes = spectrum_codec.encode(
                    padded.flux, padded.ivar, padded.mask, padded.wavelength_angstrom
                )
                tokens[spectrum_key].update(zip(these, codes, strict=True))
        for key in keys:
            values = {
                row: observations[row].scalars[key]
                for row in chosen
                if key in observations[row].scalars
            }
            if values and STREAM[key].kind in ("scalar", "grid"):
                scalar_codec = codecs[STREAM[key].codec]
                assert not isinstance(scalar_codec, ImageTokenizer | SpectrumTokenizer)
                codes = scalar_codec.encode(torch.tensor(list(values.values())))
                tokens[key].update(zip(values, codes, strict=True))
    return dict(tokens)


def key_of_image(keys: Sequence[str], seen: Observation) -> str | None:
    """The stream that takes the image of an observation, None where there is none.

    A model that never saw a survey's bands cannot read them, so another image stream will not do.
    """
    if seen.image is None:
        return None
    key = "tok_image_hsc" if seen.image.bands[0].startswith("HSC") else "tok_image"
    return key if key in keys else None


def key_of_spectrum(keys: Sequence[str], seen: Observation) -> str | None:
    """The stream that takes the spectrum of an observation, None where there is none."""
    if seen.spectrum is None:
        return None
    own = f"tok_spectrum_{seen.survey}"
    return own if own in keys else next((k for k in keys if STREAM[k].kind == "spectrum"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShard:
    """Tokens of many rows; rows of one object (its copies) share an object number."""

    tokens: Mapping[str, UInt16[ndarray, "row _"]]  # stream -> codes, 0 where absent
    present: Mapping[str, Bool[ndarray, " row"]]
    objects: Int64[ndarray, " row"]
    made_from: str = ""  # what tells whether the shard is stale, e.g. a hash of the tokenizers

    def __len__(self) -> int:
        return len(self.objects)

    def write(self, file: Path) -> None:
        """Write as npz, whole or not at all."""
        arrays = {"objects": self.objects, "made_from": np.array(self.made_from)}
        arrays.update({f"tokens/{key}": codes for key, codes in self.tokens.items()})
        arrays.update({f"present/{key}": flags for key, flags in self.present.items()})
        partial = file.with_name(file.name + ".partial")
        with partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        os.replace(partial, file)

    @classmethod
    def read(cls, file: Path) -> TokenShard:
        """Read a shard. ValueError names a file that is not one."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            tokens = {
                name.removeprefix("tokens/"): codes
                for name, codes in arrays.items()
                if name.startswith("tokens/")
            }
            present = {key: arrays[f"present/{key}"] for key in tokens}
            return cls(
                tokens=tokens,
                present=present,
                objects=arrays["objects"],
                made_from=str(arrays["made_from"]),
            )
        except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"{file}: not a token shard ({error})") from error


def pack(
    observations: Sequence[Observation],
    objects: Sequence[int],
    codecs: Mapping[str, Codec],
    domains: Mapping[str, Domain],
) -> TokenShard:
    """Tokenize observations into a shard.

    Args:
        observations: One a row; several may be copies of one object.
        objects: Number of the object of each observation.
        codecs: Tokenizers by codec name.
        domains: Streams of the model, for their lengths.
    """
    made = tokenize(observations, codecs, tuple(domains))
    tokens, present = {}, {}
    for key, domain in domains.items():
        codes = np.zeros((len(observations), domain.num_tokens), dtype=np.uint16)
        there = np.zeros(len(observations), dtype=bool)
        for row, values in made.get(key, {}).items():
            codes[row] = values.numpy()
            there[row] = True
        tokens[key], present[key] = codes, there
    return TokenShard(tokens=tokens, present=present, objects=np.array(objects, dtype=np.int64))


def concatenate(shards: Sequence[TokenShard], *, made_from: str = "") -> TokenShard:
    """One shard of many; their object numbers must already be distinct.

    Raises:
        ValueError: there is no shard.
    """
    if not shards:
        raise ValueError("there is nothing to tokenize")
    keys = tuple(shards[0].tokens)
    return TokenShard(
        tokens={key: np.concatenate([shard.tokens[key] for shard in shards]) for key in keys},
        present={key: np.concatenate([shard.present[key] for shard in shards]) for key in keys},
        objects=np.concatenate([shard.objects for shard in shards]),
        made_from=made_from,
    )
