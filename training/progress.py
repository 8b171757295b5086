"""Progress of long work on stderr, so that stdout holds only results.

Bars where somebody watches; where stderr goes to a file, a line now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Amount = int | float
Show = Callable[[str, Amount, Amount], None]  # stage, done, total

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bars() -> Iterator[Show]:
    """What shows progress: call it with a stage, how much is done, and how much there is in all.

    A stage appears when it is first named. What follows a comma in its name may change from call to
    call. A total of 1 is a share, shown in per cent.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: Amount, total: Amount) -> None:
        bars.start()
        name = stage.partition(",")[0]
        if name not in tasks:
            tasks[name] = bars.add_task(stage, amount="")
        amount = _amount(done, total)
        bars.update(tasks[name], description=stage, completed=done, total=total, amount=amount)

    try:
        yield show
    finally:
        bars.stop()


def _lines(console: Console) -> Show:
    due: dict[str, float] = {}  # stage -> when its next line may come

    def show(stage: str, done: Amount, total: Amount) -> None:
        name = stage.partition(",")[0]
        now = time.monotonic()
        finished = done >= total
        if due.get(name, 0.0) > (float("inf") if finished else now):
            return
        due[name] = now + SECONDS_BETWEEN_LINES
        console.print(f"{stage}: {_amount(done, total)}", highlight=False, soft_wrap=True)

    return show


def _amount(done: Amount, total: Amount) -> str:
    return f"{min(done, 1.0):.0%}" if total == 1 else f"{done:,.0f}/{total:,.0f}"
