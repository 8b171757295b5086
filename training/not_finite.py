"""What is kept of a step whose loss is not finite: its batch, and what it belonged to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from training.loader import Step
from training.tensor_file import write_tensors


class LossNotFinite(ValueError):
    """The loss or its gradient is NaN or infinite; weights are as the step before left them."""


def save_batch(
    step: Step, losses: Mapping[str, float], data_sets: Sequence[str], file: Path
) -> str:
    """Write the batch of a step; what is to be said of it.

    Args:
        step: All that was drawn for it.
        losses: Summed over the batch, by stream.
        data_sets: Their names, in the order of the batch's numbers of them.
        file: Receives tensors and, as metadata, the rest.
    """
    tensors: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(step.batches):
        named = batch.tensors() | {"origin": torch.from_numpy(batch.origin)}
        tensors |= {f"{number}.{name}": tensor for name, tensor in named.items()}
    write_tensors(
        file,
        tensors,
        metadata={
            "step": str(step.number),
            "summed_losses": json.dumps({key: repr(loss) for key, loss in losses.items()}),
            "data_sets": json.dumps(list(data_sets)),
        },
    )
    wrong = [key for key, loss in losses.items() if not math.isfinite(loss)]
    what = f"the loss of {', '.join(wrong)}" if wrong else "the gradient"
    return f"step {step.number:,}: {what} is not finite. The batch is in {file}"
