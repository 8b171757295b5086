"""Observations to tokens: which streams an observation has, and their codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from training.artifact import Codec
from training.image_latents import summarised
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

MAX_BATCH = 8  # objects through the tokenizers at once; more is slower on a CPU (cache)

Tokens = dict[str, dict[int, Int64[Tensor, " token"]]]  # stream -> index of observation -> codes
Summaries = dict[int, Float32[Tensor, " feature"]]  # index of observation -> see image_latents.py


def tokenize(
    observations: Sequence[Observation],
    codecs: Mapping[str, Codec],
    keys: Sequence[str],
    rows: Iterable[int] | None = None,
    *,
    device: str = "cpu",
    at_once: int = MAX_BATCH,
    summaries: Summaries | None = None,
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
        summaries: Gets the summary of each image's feature map, where it is given.

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
                summed: list[Tensor] | None = None if summaries is None else []
                try:
                    codes = _encode(key, seen, codecs[STREAM[key].codec], device, summed)
                except ValueError as error:
                    whose = f" of {seen[0].survey} {seen[0].object_id}" if len(seen) == 1 else ""
                    raise ValueError(f"{key}{whose}: {error}") from error
                tokens.setdefault(key, {}).update(zip(some, codes, strict=True))
                if summaries is not None and summed:
                    summaries.update(zip(some, summed, strict=True))
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


def refuse_uncovered(seen: Observation, codec: SpectrumTokenizer) -> None:
    """Raise ValueError unless some stretch of a spectrum lies on the tokenizer's wavelengths.

    Its tokens would be those of an empty spectrum.
    """
    assert seen.spectrum is not None
    there, grid = seen.spectrum.wavelength_angstrom, codec.grid_angstrom[[0, -1]].tolist()
    if len(there) < 2 or there[-1] < grid[0] or there[0] > grid[1]:
        raise ValueError(
            f"{seen.survey} {seen.object_id}: its spectrum of {len(there)} pixels from "
            f"{there[0]:.1f} to {there[-1]:.1f} Angstrom covers no stretch of the {grid[0]:.1f} to "
            f"{grid[1]:.1f} Angstrom that the encoder reads"
        )


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
    key: str,
    seen: Sequence[Observation],
    codec: Codec,
    device: str,
    summaries: list[Tensor] | None,
) -> Sequence[Int64[Tensor, " _"]]:
    """Tokens of one stream, which every observation has something for; summaries of images."""
    match codec:
        case ImageTokenizer():
            images = image_tokenizer.stack([each.image for each in seen if each.image])
            flux = images.flux_nmgy.to(device).contiguous(memory_format=torch.channels_last)
            maps = codec.features(flux, images.channels.to(device))
            if summaries is not None:
                summaries += summarised(maps).cpu()
            return list(codec.codes_of(maps))
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
