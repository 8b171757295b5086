"""The curves of a run: one CSV, and the same numbers for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tensorboardX import SummaryWriter

CURVE = "curve.csv"
TENSORBOARD = "tensorboard"
Split = Literal["train", "held out"]
_SPARE_BYTES = 1 << 18
_COLUMNS = (
    "step", "seconds", "split", "learning_rate", "loss", "gradient_norm", "tokens_per_second",
    "mfu", "data_wait",
)  # fmt: skip


class CurveSkipped(UserWarning):
    """A line of the curves could not be written."""


class Curves:
    """Writes lines of numbers; what an earlier run wrote after `step` is dropped.

    Numbers are written so that a float32 read back is the same float32.
    """

    def __init__(self, folder: Path, streams: Sequence[str], *, step: int) -> None:
        self._file = folder / CURVE
        self._columns = (*_COLUMNS, *streams)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(_lines_until(self._file, step, self._columns))
        partial = self._file.with_name(CURVE + ".partial")
        partial.write_text(text.getvalue(), newline="")
        os.replace(partial, self._file)
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def close(self) -> None:
        """End the record of TensorBoard."""
        try:
            self._board.close()
        except OSError as error:
            warnings.warn(f"{TENSORBOARD}: {error}", CurveSkipped, stacklevel=2)

    def write(self, step: int, split: Split, numbers: Mapping[str, float]) -> None:
        """Add a line; a column that has no number stays empty. A full disk is a warning.

        Args:
            step: Steps done.
            split: Which rows the losses are of.
            numbers: By column: those of the run, and losses (nats a token) by stream.
        """
        # looked at first: the thread of TensorBoard would die of it, and be waited for forever
        free = shutil.disk_usage(self._file.parent).free
        if free < _SPARE_BYTES:
            warnings.warn(
                f"no line at step {step:,} in {self._file}: {free:,} bytes are free on the disk; "
                "training goes on",
                CurveSkipped,
                stacklevel=2,
            )
            return
        line = {"step": str(step), "split": split}
        line |= {name: f"{number:.9g}" for name, number in numbers.items()}
        with self._file.open("a", newline="") as stream:
            csv.DictWriter(stream, self._columns).writerow(line)
        for name, number in numbers.items():
            if name != "seconds":
                group = "run" if name in _COLUMNS and name != "loss" else split.replace(" ", "_")
                self._board.add_scalar(f"{group}/{name}", number, step)
        self._board.flush()


def _lines_until(file: Path, step: int, columns: Sequence[str]) -> list[dict[str, str]]:
    """Whole lines of steps up to one; a process killed while it wrote leaves half a line."""
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    whole = [line for line in lines if None not in line.values() and set(line) == set(columns)]
    return [line for line in whole if int(line["step"]) <= step]
