"""A decoder that learns to tell single numbers, redshift above all, from whole streams.

Masked modelling shows parts of an object and asks for hundreds of tokens, of which a redshift is
one. Here the encoder stays as it is, so what it makes of an object is computed once
(kept_outputs.py), and a step costs the decoder alone. Some tokens of hidden streams are asked for
too, so that the decoder does not forget them.

It is a departure from AION-1, which trains encoder and decoder together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from training.kept_outputs import Kept, Rows, Show, keep, open_rows
from training.modalities import STREAM
from training.objective import freeze_encoder, freeze_unused, parameter_groups
from training.precision import quick_autocast
from training.schedule import rate_share
from training.shards import TokenSet
from training.transformer import Encoded, Transformer, is_sequence

LeftOut = Annotated[float, Field(ge=0, lt=1)]


@checked_dataclass(
    frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
)
class DecoderFitConfig:
    """How a decoder is trained on kept outputs."""

    asked: tuple[str, ...] = ("tok_z",)  # streams of one token, which are never shown
    contexts: int = Field(default=2, gt=0)  # of each row; each shows some kinds of stream, whole
    max_rows: int = Field(default=20_000, gt=1)  # kept in memory at 2 bytes x width x tokens shown
    # What the ranked probability score of asked numbers counts beside their nats: one code off is
    # better than a hundred, of which nats know nothing. In units of a hundredth of all codes.
    rank_weight: float = Field(default=0.0, ge=0)
    num_others: int = Field(default=8, ge=0)  # tokens of hidden streams that are asked for besides
    # Kind of stream -> up to what share of its shown tokens a step leaves out: or a decoder learns
    # images by heart. One that never saw a kind whole is less sure of it than it could be, so
    # after this share of the steps all tokens are there.
    max_left_out: dict[str, LeftOut] = field(default_factory=dict)
    left_out_until: float = Field(default=1.0, ge=0, le=1)
    steps: int = Field(default=5000, gt=0)
    batch_size: int = Field(default=64, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_share: float = Field(default=0.02, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    validation_share: float = Field(default=0.05, ge=0, lt=1)  # of the objects, never trained on
    num_threads: int = Field(default=2, gt=0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class DecoderReport:
    """What a fit reached."""

    rows: int
    steps: int
    seconds: float
    loss: float  # nats of what was asked, over the last tenth of the steps
    # Kinds of stream shown, as in "image+scalar" -> nats of each asked stream, held-out objects.
    held_out: Mapping[str, Mapping[str, float]]


def fit_decoder(
    transformer: Transformer,
    sets: Sequence[TokenSet],
    config: DecoderFitConfig,
    *,
    progress: Show = lambda what, share: None,
) -> DecoderReport:
    """Train the decoder in place, where it is; what vectors depend on stays as it is.

    Args:
        transformer: Of an encoder.
        sets: Tokens of objects.
        config: What is asked for, how long and how fast.
        progress: Told what is being done, and its share.

    Raises:
        ValueError: a stream cannot be asked for or has several tokens, no row has it and
            something to show beside it, or max_left_out names a kind that the model lacks.
    """
    _check(transformer, config.asked)
    kinds = {STREAM[key].kind for key in transformer.layout.keys}
    if unknown := sorted(set(config.max_left_out) - kinds):
        raise ValueError(
            f"max_left_out of {unknown[0]!r}: this model has streams of {', '.join(sorted(kinds))}"
        )
    torch.set_num_threads(config.num_threads)
    started = time.monotonic()
    rows = open_rows(
        transformer, sets, config.asked, most=config.max_rows,
        validation_share=config.validation_share,
    )  # fmt: skip
    if bool(rows.held_out.all()):
        raise ValueError(f"all of {len(rows):,} rows are held out, none is left to learn from")
    kept = keep(
        transformer, rows, config.asked, contexts=config.contexts, seed=config.seed,
        progress=progress,
    )  # fmt: skip
    losses = _train(transformer, rows, kept, config, progress)
    held_out = [group.take(rows.held_out[group.rows]) for group in kept]
    device = transformer.mask_token.device
    with torch.no_grad():
        nats = {
            "+".join(group.shown): {
                key: float(F.cross_entropy(scores, truth))
                for key, (scores, truth) in _told(
                    transformer, rows, group, group.encoded(device), config.asked
                ).items()
            }
            for group in held_out
            if len(group)
        }
    last = losses[-max(1, config.steps // 10) :]
    seconds = time.monotonic() - started
    return DecoderReport(
        int((~rows.held_out).sum()), len(losses), seconds, float(np.mean(last)), nats
    )


def _check(transformer: Transformer, asked: Sequence[str]) -> None:
    if not asked:
        raise ValueError("expected streams to ask a decoder for, got none")
    for key in asked:
        if key not in transformer.config.asked or is_sequence(key):
            known = ", ".join(transformer.config.asked)
            raise ValueError(f"this model cannot be asked for {key!r}, only for {known}")
        if (num := transformer.layout.num_tokens[key]) != 1:
            raise ValueError(f"expected streams of one token to ask for, {key} has {num}")


def _train(
    transformer: Transformer,
    rows: Rows,
    kept: Sequence[Kept],
    config: DecoderFitConfig,
    progress: Show,
) -> list[float]:
    """The loop; nats of what was asked at each step."""
    taught = [torch.nonzero(~rows.held_out[group.rows])[:, 0] for group in kept]
    sizes = np.array([len(mine) for mine in taught])
    transformer.requires_grad_(True)
    freeze_encoder(transformer)
    freeze_unused(transformer)
    parameters = parameter_groups(transformer, config.weight_decay)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95))
    learned = [weight for group in optimizer.param_groups for weight in group["params"]]
    rng = np.random.default_rng(config.seed)
    losses: list[float] = []
    transformer.train()
    for step in range(config.steps):
        for parts in optimizer.param_groups:
            share = rate_share(step / config.steps, config.warmup_share)
            parts["lr"] = config.learning_rate * share
        number = int(rng.choice(len(kept), p=sizes / sizes.sum()))
        some = torch.from_numpy(rng.integers(sizes[number], size=config.batch_size))
        batch = kept[number].take(taught[number][some])
        left_out = config.max_left_out if step < config.left_out_until * config.steps else {}
        shown = _thinned(transformer, batch, left_out, rng)
        others = _others(transformer, batch, config.num_others, rng)
        told = _told(transformer, rows, batch, shown, config.asked, others)
        nats = {key: F.cross_entropy(scores, truth) for key, (scores, truth) in told.items()}
        asked = [key for key in config.asked if key in nats]
        kinds = (asked, [key for key in nats if key not in asked])
        terms = [torch.stack([nats[key] for key in some]).mean() for some in kinds if some]
        loss = torch.stack(terms).sum()
        if config.rank_weight and asked:
            ranked = torch.stack([ranked_probability_score(*told[key]) for key in asked]).mean()
            loss = loss + config.rank_weight * ranked
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(learned, config.max_gradient_norm, error_if_nonfinite=True)
        optimizer.step()
        losses.append(terms[0].item())
        done, recent = (step + 1) / config.steps, np.mean(losses[-50:])
        progress(f"training the decoder, step {step + 1:,}, loss {recent:.2f}", done)
    transformer.eval().requires_grad_(False)
    return losses


def _thinned(
    transformer: Transformer,
    batch: Kept,
    max_left_out: Mapping[str, float],
    rng: np.random.Generator,
) -> Encoded:
    """Fewer tokens shown: of each kind as many in every row, which the decoder need not compute."""
    device = transformer.mask_token.device
    if not any(max_left_out.get(kind) for kind in batch.shown):
        return batch.encoded(device)
    keys = transformer.layout.keys
    numbers = transformer.stream_of_position.cpu()[batch.positions].tolist()
    kind_of = np.array([STREAM[keys[number]].kind for number in numbers])
    # what a row lacks comes last, so that something is left of each
    order = rng.random(batch.valid.shape) + ~batch.valid.numpy()
    chosen = []
    for kind in batch.shown:
        where = np.flatnonzero(kind_of == kind)
        num = max(1, round(len(where) * (1 - rng.uniform(0, max_left_out.get(kind, 0.0)))))
        chosen.append(where[np.sort(order[:, where].argsort(axis=1)[:, :num], axis=1)])
    return batch.encoded(device, torch.from_numpy(np.concatenate(chosen, axis=1)))


Asked = tuple[Int64[Tensor, "row n"], Bool[Tensor, "row n"]]  # positions, and whether there is one


def _others(transformer: Transformer, batch: Kept, num: int, rng: np.random.Generator) -> Asked:
    """Some tokens of hidden streams; a stream of one is as likely as one of hundreds."""
    layout = transformer.layout
    # weighted sampling without replacement: the smallest of exponential times over weights
    times = torch.from_numpy(rng.standard_exponential(batch.hidden.shape, dtype=np.float32))
    for key in layout.keys:
        times[:, layout.slice(key)] *= batch.hidden[:, layout.slice(key)].sum(dim=1, keepdim=True)
    times = torch.where(batch.hidden, times, torch.inf)
    found, where = times.topk(min(num, times.shape[1]), dim=1, largest=False)
    return where, found.isfinite()


def _told(
    transformer: Transformer,
    rows: Rows,
    batch: Kept,
    shown: Encoded,
    asked: Sequence[str],
    others: Asked | None = None,
) -> dict[str, tuple[Float[Tensor, "_ _"], Int64[Tensor, " _"]]]:
    """Scores and true codes of each stream, of the rows of the batch that have it."""
    layout, device = transformer.layout, transformer.mask_token.device
    starts = torch.tensor([layout.start[key] for key in asked])
    where = starts.expand(len(batch), -1)
    valid = rows.there[batch.rows[:, None], where]
    if others is not None:
        where = torch.cat([where, others[0]], dim=1)
        valid = torch.cat([valid, others[1]], dim=1)
    truth = rows.ids[batch.rows[:, None], where]
    where, valid, truth = where.to(device), valid.to(device), truth.to(device)
    with quick_autocast(device):
        states = transformer.decode(shown, where, valid)
        told = {}
        for number, key in enumerate(layout.keys):
            mine = valid & (transformer.stream_of_position[where] == number)
            if bool(mine.any()):
                scores = transformer.logits(key, states[mine]).float()
                told[key] = (scores, truth[mine] - layout.id_start[key])
    return told


def ranked_probability_score(
    scores: Float[Tensor, "n code"], truth: Int64[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean squared distance of cumulative probabilities from the step at the true code, in percent.

    A proper score, so that it asks for the same posterior as nats do (Epstein 1969, J. Appl.
    Meteorol. 8, 985), and one that grows with distance.
    """
    below = scores.softmax(dim=1).cumsum(dim=1)
    step = torch.arange(scores.shape[1], device=scores.device) >= truth[:, None]
    return 100 * (below - step.float()).square().mean()
