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
from jaxtyping import Bool, Float32, Int64, UInt16
from numpy import ndarray
from torch import Tensor

from training.artifact import Codec
from training.modalities import STREAM
from training.observations import Observation
from training.tokenizers import ellipses as ellipses_tokenizer
from training.tokenizers import field as field_tokenizer
from training.tokenizers import image as image_tokenizer
from training.tokenizers import spectrum as spectrum_tokenizer
from training.tokenizers.ellipses import PADDING, EllipsesTokenizer, EllipseTensors
from training.tokenizers.field import FieldTokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.scalar import GridTokenizer, ScalarTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.tokenizers.xp import MultiScalarTokenizer
from training.transformer_config import Domain

MAX_BATCH = 8  # objects through the tokenizers at once; more is slower on a CPU (cache)

Tokens = dict[str, dict[int, Int64[Tensor, " token"]]]  # stream -> index of observation -> codes


def tokenize(
    observations: Sequence[Observation],
    codecs: Mapping[str, Codec],
    keys: Sequence[str],
    rows: Iterable[int] | None = None,
    *,
    device: str = "cpu",
    at_once: int = MAX_BATCH,
) -> Tokens:
    """Tokens of every given stream, for all observations or those at `rows`.

    A stream has one length for all objects, except `catalog`: five tokens a source, no padding.

    Args:
        observations: What was seen.
        codecs: Tokenizers by codec name, for each of `keys`, on `device`.
        keys: Token streams to make, see `streams_of`.
        rows: Indices into `observations`.
        device: Where tokens are made and left.
        at_once: Objects through a network at once.

    Raises:
        ValueError: a tokenizer refuses what was seen.
    """
    chosen = sorted(range(len(observations)) if rows is None else set(rows))
    members: dict[str, list[int]] = defaultdict(list)
    for row in chosen:
        for key in streams_of(keys, observations[row]):
            members[key].append(row)
    tokens: Tokens = {}
    with torch.inference_mode():
        for key in keys:  # in this order, whatever the first object has
            mine = members.get(key, [])
            step = at_once if STREAM[key].kind in _NETWORKS else max(len(mine), 1)
            for start in range(0, len(mine), step):
                some = mine[start : start + step]
                seen = [observations[row] for row in some]
                codes = _encode(key, seen, codecs[STREAM[key].codec], device)
                tokens.setdefault(key, {}).update(zip(some, codes, strict=True))
    return tokens


_NETWORKS = ("image", "spectrum", "field")  # tokenized by a network, the others by a table


def streams_of(keys: Sequence[str], seen: Observation) -> tuple[str, ...]:
    """Those of some streams that an observation has something for, in the order of `keys`.

    Images go to the stream of their bands; spectra to that of their survey, or to the one that
    there is, since they share one tokenizer.
    """
    image, spectrum = key_of_image(keys, seen), key_of_spectrum(keys, seen)

    def has(key: str) -> bool:
        match STREAM[key].kind:
            case "image":
                return key == image
            case "spectrum":
                return key == spectrum
            case "field":
                return seen.object_mask is not None
            case "ellipses":
                return seen.ellipses is not None and len(seen.ellipses.x) > 0
            case "multi_scalar":
                return _coefficients(key, seen) is not None
            case "scalar" | "grid":
                return key in seen.scalars

    return tuple(key for key in keys if has(key))


def below_range(
    observations: Iterable[Observation], codecs: Mapping[str, Codec], keys: Sequence[str]
) -> dict[str, int]:
    """How many values of each scalar stream lie below all that its tokenizer tells apart.

    Such are negative parallaxes and fluxes: in a logarithmic stream they all get one code.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for seen in observations:
        for key in keys:
            if key in seen.scalars:
                values[key].append(seen.scalars[key])
    counts = {}
    for key, mine in values.items():
        codec = codecs[STREAM[key].codec]
        if isinstance(codec, ScalarTokenizer):
            there = torch.tensor(mine, device=codec.quantizer.table.device)
            counts[key] = int(codec.below_range(there).sum())
    return {key: count for key, count in counts.items() if count}


def _encode(
    key: str, seen: Sequence[Observation], codec: Codec, device: str
) -> Sequence[Int64[Tensor, " _"]]:
    """Tokens of one stream, which every observation has something for."""
    match codec:
        case ImageTokenizer():
            images = image_tokenizer.stack([each.image for each in seen if each.image])
            flux = images.flux_nmgy.to(device).contiguous(memory_format=torch.channels_last)
            return list(codec.encode(flux, images.channels.to(device)))
        case SpectrumTokenizer():
            spectra = spectrum_tokenizer.stack([each.spectrum for each in seen if each.spectrum])
            return list(
                codec.encode(
                    spectra.flux.to(device),
                    spectra.ivar.to(device),
                    spectra.mask.to(device),
                    spectra.wavelength_angstrom.to(device),
                )
            )
        case FieldTokenizer():
            masks = field_tokenizer.stack([each.object_mask for each in seen if each.object_mask])
            return list(codec.encode(masks.to(device)))
        case EllipsesTokenizer():
            sources = ellipses_tokenizer.stack([each.ellipses for each in seen if each.ellipses])
            on_device = EllipseTensors(sources.values.to(device), sources.present.to(device))
            return [codes[codes != PADDING] for codes in codec.encode(on_device)]
        case MultiScalarTokenizer():
            coefficients = np.array([_coefficients(key, each) for each in seen])
            return list(codec.encode(torch.from_numpy(coefficients).to(device)))
        case ScalarTokenizer() | GridTokenizer():
            values = torch.tensor([each.scalars[key] for each in seen], device=device)
            return list(codec.encode(values))


def _coefficients(key: str, seen: Observation) -> Float32[ndarray, " 55"] | None:
    if seen.xp is None:
        return None
    return seen.xp.bp if STREAM[key].quantity == "bp" else seen.xp.rp


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
    own = f"tok_spectrum_{seen.spectrum.survey or seen.survey}"
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
            codes[row, : len(values)] = values.numpy()
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
