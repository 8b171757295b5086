"""Checkpoints: all that a run needs to go on, safe from being killed at any instant.

    checkpoints/step-000001500/weights.safetensors     trained and fixed weights, by their names
                               optimizer.safetensors   moments by the names of the weights; RNG
                               state.json              counters, loader position, settings

A folder gets its name once all in it is on disk. Tensors are whole however many processes hold
parts of them, so that any number of processes can go on.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.disk import flush
from training.tensor_file import read_tensors, write_tensors

CHECKPOINTS = "checkpoints"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
KEPT = 3
RNG = "rng"
_SPARE_BYTES = 1 << 20


class CheckpointSkipped(UserWarning):
    """A checkpoint could not be written; older ones are still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The counters of a run."""

    step: int
    seconds: float
    position: Mapping[str, int]  # of the loader
    sums: Mapping[str, list[float]]  # losses since the curve's last line
    run: Mapping[str, Any]  # settings that a run which goes on must share

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})


def gathered(module: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """All tensors, whole and in the memory of the CPU; every process must call this.

    Args:
        module: Weights, perhaps spread over processes.
        optimizer: Of these weights.
        keep: Whether this process keeps them; others take part in gathering and get nothing.
    """
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        whole = full(parameter)
        if keep:
            weights[name] = whole
        for field, value in optimizer.state.get(parameter, {}).items():
            whole = full(value)
            if keep:
                moments[f"{name}:{field}"] = whole
    return {"weights": weights, "moments": moments}


def full(tensor: Tensor) -> Tensor:
    """A tensor whole and on the CPU, wherever its parts are."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().clone() if whole.device.type == "cpu" else whole.detach().cpu()


def write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> bool:
    """Write a checkpoint and drop all but the last three; False, with a warning, if it cannot be.

    A disk that is full, or any other error of the disk, leaves older checkpoints as they are.
    """
    place = folder / CHECKPOINTS / f"step-{state.step:09d}"
    partial = place.with_name(place.name + ".partial")
    parts = {
        WEIGHTS: dict(tensors["weights"]),
        OPTIMIZER: {**tensors["moments"], RNG: torch.get_rng_state()},
    }
    needed = sum(t.numel() * t.element_size() for part in parts.values() for t in part.values())
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed + _SPARE_BYTES:
            raise OSError(f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")
        for name, part in parts.items():
            write_tensors(partial / name, part)
        (partial / STATE).write_text(state.to_json() + "\n")
        for file in partial.iterdir():
            flush(file)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(partial, place)
        flush(place.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        warnings.warn(
            f"no checkpoint at step {state.step:,} in {place.parent}: {error}; training goes on, "
            "older checkpoints are kept",
            CheckpointSkipped,
            stacklevel=2,
        )
        return False
    for old in found(folder)[:-KEPT]:
        shutil.rmtree(old)
    return True


def found(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(
        place for place in (folder / CHECKPOINTS).glob("step-*") if not place.suffix
    )  # a suffix: one that was not finished


def newest(folder: Path) -> tuple[Path, State] | None:
    """The newest whole checkpoint; a damaged one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    places = found(folder)
    for place in reversed(places):
        try:
            state = State(**json.loads((place / STATE).read_text()))
            for name in (WEIGHTS, OPTIMIZER):
                read_tensors(place / name)  # compares the checksum
            return place, state
        except (OSError, TypeError, ValueError) as error:
            damage = error
            warnings.warn(
                f"{place}: damaged, passed over ({error})", CheckpointSkipped, stacklevel=2
            )
    if places:
        raise ValueError(f"{places[-1].parent}: every checkpoint is damaged, the oldest: {damage}")
    return None


def restore(place: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill weights, moments and the random number generator from a checkpoint.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    parameters = dict(module.named_parameters())
    with safe_open(place / WEIGHTS, framework="pt") as file, torch.no_grad():
        names = set(file.keys())
        if names != set(parameters):
            odd = sorted(names ^ set(parameters))[0]
            raise ValueError(f"{place / WEIGHTS}: of another model: {odd!r} is only in one of them")
        for name, parameter in parameters.items():
            parameter.copy_(_spread(file.get_tensor(name), parameter))
    with safe_open(place / OPTIMIZER, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            name, _, field = key.rpartition(":")
            if key == RNG:
                torch.set_rng_state(file.get_tensor(key))
                continue
            parameter = parameters[name]
            value = file.get_tensor(key)
            where = optimizer.state[parameter]
            where[field] = _spread(value, parameter) if value.ndim else value.to(parameter.device)


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, before: str = ""
) -> list[tuple[str, Any, Any]]:
    """Settings that differ, as (key, old, new); nested keys are joined by dots."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, before=f"{before}{key}.")
        elif a != b and (old.get(key), new.get(key)) != (None, None):  # null is as good as absent
            found.append((f"{before}{key}", a, b))
    return found


def check_same_run(place: Path, state: State, run: Mapping[str, Any]) -> None:
    """Raise ValueError, with what differs, unless a checkpoint is of a run with these settings."""
    differing = difference(state.run, json.loads(json.dumps(run)))
    if differing:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in differing[:8])
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise ValueError(
            f"{place} is of a run with other settings: {listed}{more}. Go back to those, remove "
            "the checkpoints, or train in another folder"
        )


def _spread(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the parts and on the device of another."""
    if isinstance(like, DTensor):
        return distribute_tensor(
            whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )
    return whole.to(like.device)
