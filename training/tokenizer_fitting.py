"""One loop for all tokenizers that are networks: steps, schedule, checkpoints, curve.

Every step draws its objects from (seed, step) alone, so a fit that was interrupted goes on as if it
had not been. A fit that num_steps ends is reproducible, one that max_seconds ends is not.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import checkpoint
from training.artifact import dump_config, save_codec, write_text
from training.checkpoint import State
from training.observations import IMAGE_SIZE
from training.schedule import warm_cosine
from training.tensor_file import read_tensors
from training.tokenizers.field import FieldTokenizer
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer

Tokenizer = TypeVar("Tokenizer", ImageTokenizer, SpectrumTokenizer, FieldTokenizer)
Network = TypeVar("Network", bound=nn.Module)
Item = TypeVar("Item")
Progress = Callable[[int, int, float], None]  # step, number of steps, loss
Losses = Callable[[np.random.Generator, float], dict[str, Tensor]]  # chance, share of the fit done
NUM_HELD_OUT = 256  # objects at most that measure the fit and take no part in it
FITTING = "fitting"  # folder of the checkpoints, one below for each tokenizer
# Of settings, both ends included; NaN lies in none.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("warmup_steps", 1, math.inf),
    ("weight_decay", 0, 1e6),
    ("max_gradient_norm", 1e-12, math.inf),
    ("num_threads", 1, 4096),
    ("seed", 0, math.inf),
    ("checkpoint_seconds", 0, math.inf),
    ("fractional_error", 0, 1e6),
    ("robust_sigma", 1e-6, math.inf),
    ("hsc_share", 0, 1),
    ("drop_band", 0, 1),
    ("as_hsc", 0, 1),
    ("crop_pixels", 1, IMAGE_SIZE),
    ("crop_until", 0, 1),
    ("label_weight", 0, 1e6),
    ("mask_weight", 0, 1e6),
    ("commitment_weight", 0, 1e6),
    ("entropy_weight", 0, 1e6),
    ("inverse_temperature", 1e-6, 1e6),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How a network tokenizer is fitted: Adam with decoupled decay, warm-up, cosine to zero.

    The schedule follows whichever of num_steps and max_seconds is nearer its end.
    """

    num_steps: int = 2000
    max_seconds: float = math.inf
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    constant_until: float = 0.0  # share of the fit before the cosine begins
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    average: float = 0.0  # decay a step of the average of weights that is kept; 0: the last ones
    bfloat16: bool = False  # automatic mixed precision
    num_threads: int | None = None  # None leaves torch as it is
    seed: int = 0
    checkpoint_seconds: float = 120.0
    fractional_error: float = 0.05  # of the flux, added to the pipeline's error in quadrature
    robust_sigma: float = 5.0
    # Images only.
    hsc_share: float | None = None  # of the batches' images that are HSC's; None: as in the data
    drop_band: float = 0.15  # chance to leave out each band beyond two
    as_hsc: float = 0.15  # chance that DES bands stand in for HSC's, where there is no HSC data
    crop_pixels: int = 64  # side of the centre that is seen ...
    crop_until: float = 0.0  # ... up to this share of the fit; whole images after it
    label_weight: float = 0.0  # of telling an image's labels from its codes, where it has some
    decode_from: float = 0.0  # share of the fit before which codes are fitted to labels alone
    # Spectra only.
    mask_weight: float = 0.1
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    inverse_temperature: float = 100.0  # of the entropy term

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size) < 1 or not self.max_seconds > 0:
            raise ValueError(
                f"num_steps, batch_size and max_seconds must be positive, got {self.num_steps}, "
                f"{self.batch_size} and {self.max_seconds}"
            )
        for name in ("average", "constant_until", "decode_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie in 0 to 1, 1 not included, got {getattr(self, name)}"
                )
        for name, lowest, highest in _RANGES:
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ValueError(f"{name} must lie in {lowest} to {highest}, got {value}")
        if self.decode_from and not self.label_weight:
            raise ValueError(
                f"decode_from {self.decode_from:g} fits codes to labels alone: give a label_weight"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True, slots=True)
class Fitted(Generic[Tokenizer]):
    """A tokenizer in evaluation mode and what it reaches on objects it has not seen."""

    tokenizer: Tokenizer
    figures: dict[str, float]
    losses: list[float]  # one a step, of this run's steps alone where it went on with another's


def split(items: Sequence[Item], *, what: str) -> tuple[Sequence[Item], Sequence[Item]]:
    """What is fitted on, and the last twentieth (256 at most), which measures the fit.

    Raises:
        ValueError: fewer than two items.
    """
    if len(items) < 2:
        raise ValueError(f"expected two or more {what} to fit on, got {len(items)}")
    num_held_out = min(max(len(items) // 20, 1), NUM_HELD_OUT)
    return items[:-num_held_out], items[-num_held_out:]


def seeded(make: Callable[[], Network], fit: FitConfig) -> Network:
    """A network with the initial weights of the seed, on a GPU where there is one."""
    if fit.num_threads is not None:
        torch.set_num_threads(fit.num_threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        try:
            tokenizer = make()
        except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"no tokenizer can be built of these sizes ({error})") from error
    return tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def half_chi_square(
    residual: Float[Tensor, "*shape"],
    *,
    ivar: Float[Tensor, "*shape"],
    error: Float[Tensor, "*shape"],
    fit: FitConfig,
) -> Float[Tensor, ""]:
    """Mean over pixels with ivar > 0; quadratic up to robust_sigma, then linear.

    Added to the paper's loss (arXiv 2510.17960), because a brief fit is otherwise ruled by a few
    bright cores: an error beside the pipeline's, and residuals that count linearly beyond
    robust_sigma. fractional_error 0 and robust_sigma infinity give the paper's loss back.
    """
    chi_square = residual.square() * ivar / (1 + error.square() * ivar)
    if math.isfinite(fit.robust_sigma):
        limit = fit.robust_sigma**2
        chi_square = 2 * limit * (torch.sqrt(1 + chi_square / limit) - 1)
    return 0.5 * chi_square.sum() / (ivar > 0).sum().clamp_min(1)


def descend(
    tokenizer: ImageTokenizer | SpectrumTokenizer | FieldTokenizer,
    loss_terms: Losses,
    fit: FitConfig,
    *,
    name: str,
    num_items: int,
    folder: Path | None,
    progress: Progress | None,
    reader: nn.Module | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> list[float]:
    """Take the steps; leaves the tokenizer in evaluation mode on the CPU, saved in the folder.

    Args:
        tokenizer: Fitted in place.
        loss_terms: The weighted terms of the loss of one step's batch.
        fit: How to fit.
        name: Of the codec, and of <name>_loss.csv.
        num_items: What is fitted on; a checkpoint of other data is refused.
        folder: Where all is written, if anywhere; an interrupted fit found there goes on.
        progress: Called after every step.
        reader: What the loss reads codes with; fitted too, and not kept.
        known: What else a checkpoint must have been fitted to.

    Raises:
        ValueError: the loss is not finite, or the checkpoint is of another fit.
    """
    beside = {} if reader is None else {"reader": reader}
    optimizer = torch.optim.AdamW(
        nn.ModuleDict({"last": tokenizer, **beside}).parameters(),
        lr=fit.learning_rate, betas=(0.9, 0.98), weight_decay=fit.weight_decay,
    )  # fmt: skip
    average = _averaged(tokenizer, fit.average) if fit.average else None
    trained = nn.ModuleDict({"last": tokenizer} | ({"average": average} if average else {}))
    trained.update(beside)
    run = {
        "model": dump_config(tokenizer.config),
        "fit": dump_config(fit),
        "items": num_items,
        **known,
    }
    place = folder / FITTING / name if folder is not None else None
    step, spent = _resume(place, trained, optimizer, run)
    curve = _Curve(folder / f"{name}_loss.csv", step) if folder is not None else None
    tokenizer.train()
    losses: list[float] = []
    started, saved = time.monotonic() - spent, time.monotonic()
    while step < fit.num_steps:
        elapsed = time.monotonic() - started
        if elapsed >= fit.max_seconds:
            break
        done = max(step / fit.num_steps, elapsed / fit.max_seconds)
        rate = fit.learning_rate * _schedule(step, done, fit)
        terms = loss_terms(np.random.default_rng([fit.seed, step]), done)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise ValueError(f"the {name} loss is {loss.item()} at step {step}: lower the rate")
        _follow(loss, optimizer, rate=rate, max_norm=fit.max_gradient_norm)
        if average is not None:
            average.update_parameters(tokenizer)
        losses.append(loss.item())
        if curve is not None:
            curve.add(step, elapsed, rate, {term: value.item() for term, value in terms.items()})
        step += 1
        if progress is not None:
            progress(step, fit.num_steps, losses[-1])
        if place is not None and time.monotonic() - saved > fit.checkpoint_seconds:
            saved = time.monotonic()
            assert curve is not None
            with suppress(OSError):  # the checkpoint will say that the disk is full
                curve.write()  # first, so that no checkpoint is ahead of it
            _checkpoint(place, trained, optimizer, step, saved - started, run)
    if average is not None:
        tokenizer.load_state_dict(average.module.state_dict())
    _round_to_half(tokenizer)
    tokenizer.cpu().eval().requires_grad_(False)
    if folder is not None and curve is not None and place is not None:
        save_codec(folder, name, tokenizer, half=True)  # loses nothing: it is rounded
        curve.write()
        _checkpoint(place, trained, optimizer, step, time.monotonic() - started, run)
    return losses


def _averaged(tokenizer: nn.Module, decay: float) -> AveragedModel:
    """An average of the weights over the steps, later ones weighing more."""
    mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(tokenizer, multi_avg_fn=mean, use_buffers=True)


def _follow(
    loss: Tensor, optimizer: torch.optim.Optimizer, *, rate: float, max_norm: float
) -> None:
    """One step of the optimizer down the gradient of a loss."""
    weights = [each for group in optimizer.param_groups for each in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(weights, max_norm)
    optimizer.step()


def _schedule(step: int, done: float, fit: FitConfig) -> float:
    falling = max(done - fit.constant_until, 0.0) / (1 - fit.constant_until)
    return warm_cosine(step + 1, fit.warmup_steps, falling)


def _checkpoint(
    place: Path,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    run: Mapping[str, Any],
) -> None:
    tensors = {
        "weights": {name: value.cpu() for name, value in trained.state_dict().items()},
        "moments": {
            f"{name}:{field}": value.cpu()
            for name, parameter in trained.named_parameters()
            for field, value in optimizer.state.get(parameter, {}).items()
        },
    }
    state = State(step=step, seconds=seconds, position={}, sums={}, run=run)
    checkpoint.write(place, tensors, state)


def _resume(
    place: Path | None,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> tuple[int, float]:
    """Fill weights and moments from the newest checkpoint; its step and the seconds spent."""
    found = None if place is None else checkpoint.newest(place)
    if found is None:
        return 0, 0.0
    folder, state = found
    checkpoint.check_same_run(folder, state, run)
    trained.load_state_dict(read_tensors(folder / checkpoint.WEIGHTS))
    parameters = dict(trained.named_parameters())
    for key, value in read_tensors(folder / checkpoint.OPTIMIZER).items():
        name, _, field = key.rpartition(":")
        if name:  # the random numbers of torch are not used here
            parameter = parameters[name]
            optimizer.state[parameter][field] = value.to(parameter.device) if value.ndim else value
    return state.step, state.seconds


class _Curve:
    """Losses step by step; lines from before an interruption stay."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        self._lines: list[dict[str, Any]] = []
        if step and file.is_file():
            with file.open(newline="") as lines:
                self._lines = [line for line in csv.DictReader(lines) if int(line["step"]) < step]

    def add(self, step: int, seconds: float, rate: float, terms: Mapping[str, float]) -> None:
        self._lines.append({"step": step, "seconds": seconds, "learning_rate": rate, **terms})

    def write(self) -> None:
        if not self._lines:
            return
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(name for line in self._lines for name in line))
        writer = csv.DictWriter(text, fieldnames=columns)  # a term that was not there stays empty
        writer.writeheader()
        writer.writerows(self._lines)
        write_text(self._file, text.getvalue())


@torch.no_grad()
def _round_to_half(tokenizer: nn.Module) -> None:
    """Round matrices to float16 values, so that storing them so later moves no code."""
    for parameter in tokenizer.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half())
