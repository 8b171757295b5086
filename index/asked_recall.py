"""The recall that a search is asked for: the share of the exact answer to find, on average."""

from __future__ import annotations

DEFAULT_RECALL = 0.98


def check_recall(recall: float | int) -> None:
    """Raise ValueError unless it is above 0 and at most 1, which is exact."""
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and up to 1, got {recall}")
