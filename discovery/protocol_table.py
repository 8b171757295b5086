"""The result of a protocol for people: one's own row, the paper's rows, what was left out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from training.protocols import Measured

MEASURES = {"accuracy": "accuracy", "r2": "R2"}
_MAX_REASONS = 3  # of files and rows that could not be read


def table_of(measured: Measured, encoder: str) -> Table:
    """A column a target; published rows are marked."""
    table = Table()
    table.add_column(MEASURES[measured.measure])
    for target in measured.scores:
        table.add_column(target, justify="right", no_wrap=True)
    table.add_row(
        encoder,
        *(
            f"{score.mean:.3f}" + ("" if score.spread is None else f" +- {score.spread:.3f}")
            for score in measured.scores.values()
        ),
    )
    table.add_row("chance", *(f"{measured.chance[target]:.3f}" for target in measured.scores))
    for model, row in measured.published.items():
        cells = (format(row[target], ".3g") for target in measured.scores)
        table.add_row(f"{model} (published)", *cells)
    return table


def remarks(measured: Measured) -> Iterator[str]:
    """What was left out and why, a line each."""
    for why, num in measured.left_out.items():
        yield f"left out: {num:,} objects ({why})"
    for target, score in measured.scores.items():
        unknown = measured.num_objects - score.num_objects
        if unknown:
            yield f"left out of {target}: {unknown:,} objects (not known)"
    if measured.skipped:
        reasons = dict.fromkeys(each.reason for each in measured.skipped)
        shown = "; ".join(list(reasons)[:_MAX_REASONS])
        yield f"not read: {len(measured.skipped):,} rows or files ({shown})"


def closing_line(measured: Measured, encoder: str) -> str:
    """What was measured, in one line."""
    mean = sum(score.mean for score in measured.scores.values()) / len(measured.scores)
    of_all = "mean " if len(measured.scores) > 1 else ""
    splits = f"{measured.repeats} split{'s' if measured.repeats > 1 else ''}"
    return (
        f"{measured.protocol} from {' + '.join(measured.modalities)} by {encoder}, "
        f"probe {measured.probe}: {of_all}{MEASURES[measured.measure]} {mean:.3f}, "
        f"{measured.num_objects:,} objects, {measured.num_test:,} of them the test, {splits}"
    )
