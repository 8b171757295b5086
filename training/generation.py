"""Missing streams of an object from those that it has: samples, and posteriors of single numbers.

Random-order autoregression: the asked tokens, of one stream or several, are put in a random order;
a part of them is drawn given all that is known, becomes known itself, and so on. Tokens of one step
are drawn independently of each other, so more steps give better joint samples. A posterior of a
stream of one token needs no drawing: one step gives the probability of every code.

Source: arXiv 2510.17960 (random-order autoregression, ROAR).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy.random import Generator
from torch import Tensor

from training.artifact import Codec, fits
from training.densities import Densities, bin_edges
from training.modalities import STREAM
from training.observations import Observation
from training.sampling import SamplingConfig, draw, log_probabilities, random_numbers
from training.tokenizers.scalar import GridTokenizer, ScalarTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.tokens import tokenize
from training.transformer import DecoderMask, Transformer, is_sequence

Streams = Mapping[str, Int[Tensor, " _"]]  # of one object: stream -> its codes
DEFAULT_BATCH = 32  # samples through the transformer at once


def observed(
    observations: Sequence[Observation],
    codecs: Mapping[str, Codec],
    keys: Sequence[str],
    *,
    device: str = "cpu",
) -> list[dict[str, Int64[Tensor, " _"]]]:
    """Tokens of those of some streams that each observation has something for.

    Raises:
        ValueError: a tokenizer refuses what was seen.
    """
    made = tokenize(observations, codecs, keys, device=device)
    return [
        {key: made[key][row] for key in keys if row in made.get(key, {})}
        for row in range(len(observations))
    ]


def generate(
    transformer: Transformer,
    objects: Sequence[Streams],
    asked: Sequence[str],
    config: SamplingConfig | None = None,
    *,
    codecs: Mapping[str, Codec] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Int64[Tensor, "object sample token"]]:
    """Draw the asked streams of every object, given the streams that it has.

    Objects may have different streams. The same seed, tokens and name give the same sample, in
    whatever batch and place, but for a token at which two codes are as near as float32 rounding.

    Args:
        transformer: Of an encoder; its device is where the work is done.
        objects: Codes of the streams of each, see `observed`.
        asked: Streams to draw, all in one go.
        config: How; None = the defaults of SamplingConfig.
        codecs: Tokenizers by codec name, at least of what is asked: their vocabularies are checked,
            and no code is drawn that they cannot decode.
        names: What tells the random numbers of an object from those of another; None = its tokens,
            so that objects of equal tokens get equal samples.
        batch_size: Samples through the transformer at once.
        progress: Called with samples done and samples in all.

    Returns:
        Codes of each asked stream.

    Raises:
        ValueError: there is no object, or one without any stream; a stream is not in the model,
            cannot be drawn, or is asked for where it is given; a code is beyond the vocabulary; or
            a tokenizer has another vocabulary than the model.
    """
    config = SamplingConfig() if config is None else config
    known = _Known.of(transformer, objects, asked, codecs)
    if names is not None and len(names) != len(objects):
        raise ValueError(f"expected {len(objects)} names, one an object, got {len(names)}")
    called = [_digest(each) for each in objects] if names is None else names
    layout, device = transformer.layout, known.ids.device
    keys = tuple(key for key in layout.keys if key in asked)  # the order given changes nothing
    queue = torch.cat([torch.arange(layout.total)[layout.slice(key)] for key in keys])
    rows = torch.arange(len(objects)).repeat_interleave(config.num_samples)
    order = known.shown.sum(dim=1).cpu()[rows].argsort(stable=True)  # little padding
    drawn = torch.empty(len(rows), layout.total, dtype=torch.long)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        numbers = [
            random_numbers(config.seed, called[row // config.num_samples], row % config.num_samples)
            for row in some.tolist()
        ]
        mixed = torch.stack(
            [queue[torch.from_numpy(rng.permutation(len(queue)))] for rng in numbers]
        )
        line = known.rows(rows[some].to(device))
        _fill(transformer, line, mixed.to(device), keys, config, numbers)
        drawn[some] = line.ids.cpu()
        if progress is not None:
            progress(start + len(some), len(order))
    by_object = drawn.reshape(len(objects), config.num_samples, layout.total)
    return {key: by_object[..., layout.slice(key)] - layout.id_start[key] for key in asked}


def posterior(
    transformer: Transformer,
    objects: Sequence[Streams],
    key: str,
    codec: Codec,
    *,
    mask: DecoderMask = "training",
    batch_size: int = DEFAULT_BATCH,
) -> Densities:
    """The distribution of one number of every object, given the streams that it has, in one step.

    Args:
        transformer: Of an encoder.
        objects: Codes of the streams of each, see `observed`.
        key: A stream of one token, such as tok_z.
        codec: Its tokenizer, whose bins the densities have.
        mask: Who sees whom in the decoder.
        batch_size: Objects at once.

    Raises:
        ValueError: the stream is not of one number, or as `generate`.
    """
    if not isinstance(codec, GridTokenizer | ScalarTokenizer):
        raise ValueError(f"{key} is not one number: expected a stream of kind scalar or grid")
    scores = code_scores(
        transformer, objects, key, codecs={STREAM[key].codec: codec}, mask=mask,
        batch_size=batch_size,
    )[:, : codec.num_codes]  # fmt: skip
    mass = scores.double().softmax(dim=-1).numpy()
    return Densities(bin_edges(codec), mass, smooth=True)


@torch.no_grad()
def code_scores(
    transformer: Transformer,
    objects: Sequence[Streams],
    key: str,
    *,
    codecs: Mapping[str, Codec] | None = None,
    mask: DecoderMask = "training",
    batch_size: int = DEFAULT_BATCH,
) -> Float[Tensor, "object code"]:
    """Logits of every code of a stream of one token, given the streams that each object has.

    Raises:
        ValueError: the stream has several tokens, a score is not finite, or as `generate`.
    """
    known = _Known.of(transformer, objects, (key,), codecs)
    if transformer.layout.num_tokens[key] != 1:
        raise ValueError(
            f"{key} has {transformer.layout.num_tokens[key]} tokens, whose joint distribution no "
            "single step gives: draw samples of it"
        )
    order = known.shown.sum(dim=1).argsort(stable=True)
    scores = torch.empty(len(objects), transformer.config.domains_in[key].vocabulary)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        line = known.rows(some)
        where = torch.full((len(some), 1), transformer.layout.start[key], device=some.device)
        states = _states(transformer, line, where, mask)[:, 0]
        scores[some.cpu()] = transformer.logits(key, states).float().cpu()
    if not torch.isfinite(scores).all():
        raise ValueError(f"the model gave NaN or infinite scores of {key}")
    return scores


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of some objects, one line of the model's layout each."""

    ids: Int64[Tensor, "row position"]  # layout ids, 0 where not shown
    shown: Bool[Tensor, "row position"]
    num_codes: Int64[Tensor, " position"]  # codes that may be drawn there

    @classmethod
    def of(
        cls,
        transformer: Transformer,
        objects: Sequence[Streams],
        asked: Sequence[str],
        codecs: Mapping[str, Codec] | None,
    ) -> _Known:
        """Check everything that is given, and lay it out."""
        _check_asked(transformer, asked)
        if not objects:
            raise ValueError("expected objects, got none")
        layout, domains = transformer.layout, transformer.config.domains_in
        ids = torch.zeros(len(objects), layout.total, dtype=torch.long)
        shown = torch.zeros(len(objects), layout.total, dtype=torch.bool)
        for row, streams in enumerate(objects):
            if not streams:
                raise ValueError(f"object {row} has no stream to start from")
            for key, codes in streams.items():
                transformer.check(key, len(codes))
                if key in asked:
                    raise ValueError(f"{key} is asked for, but object {row} has it already")
                low, high = int(codes.min()), int(codes.max())
                if low < 0 or high >= domains[key].vocabulary:
                    raise ValueError(
                        f"object {row} has codes {low} to {high} of {key}, the model "
                        f"{domains[key].vocabulary}: they are of another encoder's tokenizer"
                    )
                start = layout.start[key]
                ids[row, start : start + len(codes)] = codes.cpu() + layout.id_start[key]
                shown[row, start : start + len(codes)] = True
        given = {key for streams in objects for key in streams}
        limits = _num_codes(transformer, asked, sorted(given), codecs)
        device = transformer.mask_token.device
        return cls(ids.to(device), shown.to(device), limits.to(device))

    def rows(self, rows: Int[Tensor, " n"]) -> _Known:
        return _Known(self.ids[rows], self.shown[rows], self.num_codes)


def _check_asked(transformer: Transformer, asked: Sequence[str]) -> None:
    if not asked:
        raise ValueError("expected streams to draw, got none")
    if len(set(asked)) != len(asked):
        raise ValueError(f"a stream is asked for twice: {', '.join(asked)}")
    for key in asked:
        if key not in transformer.config.asked:
            known = ", ".join(transformer.config.asked)
            raise ValueError(f"this model cannot be asked for {key!r}, only for {known}")
        if is_sequence(key):
            raise ValueError(
                f"{key} cannot be drawn: the model learns neither its first code nor its end"
            )


def _num_codes(
    transformer: Transformer,
    asked: Sequence[str],
    given: Sequence[str],
    codecs: Mapping[str, Codec] | None,
) -> Int64[Tensor, " position"]:
    """For every position the number of codes that its tokenizer can decode."""
    layout, domains = transformer.layout, transformer.config.domains_in
    limits = torch.zeros(layout.total, dtype=torch.long)
    for key in (*asked, *given):
        limits[layout.slice(key)] = domains[key].vocabulary
        name = STREAM[key].codec
        if codecs is None or (key in given and name not in codecs):
            continue
        if name not in codecs:
            raise ValueError(f"no tokenizer {name!r} for {key}, there are {', '.join(codecs)}")
        codec = codecs[name]
        if not fits(key, domains[key], codec):
            raise ValueError(
                f"the tokenizer of {key} has {codec.num_codes} codes and {codec.num_tokens} "
                f"tokens, the model {domains[key].vocabulary} and {domains[key].num_tokens}"
            )
        limits[layout.slice(key)] = codec.num_codes
        if isinstance(codec, SpectrumTokenizer):
            limits[layout.start[key]] = codec.config.normalisation_bins
            limits[layout.start[key] + 1 : layout.slice(key).stop] = codec.quantizer.num_codes
    return limits


@torch.no_grad()
def _fill(
    transformer: Transformer,
    line: _Known,
    queue: Int64[Tensor, "row asked"],
    keys: Sequence[str],
    config: SamplingConfig,
    numbers: Sequence[Generator],
) -> None:
    """Draw the tokens at the queued positions, in that order, into the line."""
    layout = transformer.layout
    start = 0
    for count in config.tokens_per_step(queue.shape[1]):
        where = queue[:, start : start + count].sort(dim=1).values
        start += count
        states = _states(transformer, line, where, config.mask)
        stream = transformer.stream_of_position[where]  # (row, asked)
        codes = torch.empty_like(where)
        for key in keys:
            mine = stream == layout.keys.index(key)
            if not bool(mine.any()):
                continue
            scores = transformer.logits(key, states[mine])
            codes_there = torch.arange(scores.shape[1], device=scores.device)
            chances = log_probabilities(
                scores,
                temperature=config.temperature,
                top_p=config.top_p,
                allowed=codes_there < line.num_codes[where[mine]][:, None],
            )
            noise = _noise(numbers, mine.sum(dim=1).tolist(), scores.shape[1])
            codes[mine] = draw(chances, noise.to(chances.device)) + layout.id_start[key]
        line.ids.scatter_(1, where, codes)
        line.shown.scatter_(1, where, True)


def _noise(
    numbers: Sequence[Generator], counts: Sequence[int], num_codes: int
) -> Float[Tensor, "n code"]:
    """Exponential noise of each row's own, for as many tokens as it draws."""
    parts = [
        rng.standard_exponential((count, num_codes), dtype=np.float32)
        for rng, count in zip(numbers, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts))


@torch.no_grad()
def _states(
    transformer: Transformer,
    line: _Known,
    where: Int64[Tensor, "row asked"],
    mask: DecoderMask,
) -> Float[Tensor, "row asked dim"]:
    """Decoder states at some positions, given all that is shown."""
    longest = int(line.shown.sum(dim=1).max())
    positions = (~line.shown).int().argsort(dim=1, stable=True)[:, :longest]  # shown ones first
    valid = line.shown.gather(1, positions)
    # an encoder loaded in bfloat16 keeps its matrices in it
    half = any(weight.dtype == torch.bfloat16 for weight in transformer.encoder.parameters())
    with torch.autocast(where.device.type, torch.bfloat16, enabled=half):
        encoded = transformer.encode_selected(line.ids.gather(1, positions), positions, valid)
        everyone = torch.ones_like(where, dtype=torch.bool)
        return transformer.decode(encoded, where, everyone, mask=mask).float()


def _digest(streams: Streams) -> str:
    """A name for an object of these tokens."""
    digest = hashlib.sha256()
    for key in sorted(streams):
        digest.update(f"{key} {len(streams[key])} ".encode())
        digest.update(streams[key].cpu().numpy().astype(np.int64).tobytes())
    return digest.hexdigest()
