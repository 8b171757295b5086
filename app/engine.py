"""What searches for the page: the device, the cluster and the recall that its operator chose."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from index.asked_recall import DEFAULT_RECALL, check_recall


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How every search of a page is made.

    Raises:
        ValueError: the recall is out of range.
    """

    device: str = "cpu"  # where large segments are searched: cpu, or such as cuda
    cluster: str | None = None  # a Ray cluster's address, auto or local; None: the page's process
    recall: float = DEFAULT_RECALL  # of the exact answer, on average; 1 is exact

    def __post_init__(self) -> None:
        check_recall(self.recall)


def to_argument(engine: Engine) -> str:
    """It as one word of a command line."""
    return json.dumps(asdict(engine), allow_nan=False)


def from_argument(text: str) -> Engine:
    """What `to_argument` wrote.

    Raises:
        ValueError: it is not of that form.
    """
    return Engine(**json.loads(text))
