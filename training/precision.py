"""The arithmetic of an encoder, and the device that it runs on."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

Precision = Literal["float32", "bfloat16", "bfloat16-all"]


def quick_precision() -> Precision:
    """What this processor embeds in soonest: "float32" where it has no products of bfloat16.

    They are then made in software, which takes ten times as long (AMD EPYC of the first kind).
    """
    found = torch.cpu.get_capabilities()
    native = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def quick_autocast(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where that is the soonest, for what is computed once or trained on."""
    half = device.type != "cpu" or quick_precision() == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise ValueError(
            f"expected a precision of {' or '.join(get_args(Precision))}, got {precision!r}"
        )


def device_of(name: str) -> torch.device:
    """A device of that name; ValueError where there is none that networks run on."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if torch.amp.is_autocast_available(device.type):
            return device
        why = "networks do not run on it"
    except (AssertionError, RuntimeError, TypeError) as error:  # as torch says it, by device
        why = str(error).partition("\n")[0]
    raise ValueError(f"expected a device such as cpu, cuda or cuda:1, got {name!r} ({why})")


def in_bfloat16(networks: nn.Module) -> None:
    """Keep weights of products as autocast would cast them at each use; norms stay float32."""
    for module in networks.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
