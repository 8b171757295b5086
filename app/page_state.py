"""What the page shows, as one value, and that value as the address of the page.

The address holds only what differs from the defaults; a link reopens the same page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from discovery import Query
from discovery.pictures import DEFAULT_Q, DEFAULT_STRETCH_NMGY
from training.modalities import VIEWS

CHOICES_OF_K = (16, 32, 48, 64, 100, 250, 500, 1000)
DEFAULT_K = 48
PAGE = 48  # cutouts drawn at first, and more at every "show more"
STRETCH_RANGE_NMGY = (0.001, 2.0)
Q_RANGE = (0.5, 30.0)
RADIUS_ARCSEC = 30.0  # how far the object at a position may be


@dataclass(frozen=True, slots=True, kw_only=True)
class PageState:
    """One page. At most one of seed, near and name is not blank.

    Raises:
        ValueError: a field is out of range; says which.
    """

    seed: str = ""  # object id
    near: str = ""  # position, as a user writes it
    name: str = ""  # published name, looked up at CDS Sesame
    view: str = ""  # "" = the seed's own
    k: int = DEFAULT_K
    where: str = ""
    stretch: float = DEFAULT_STRETCH_NMGY
    q: float = DEFAULT_Q
    shown: int = PAGE  # cutouts drawn

    def __post_init__(self) -> None:
        if sum(map(bool, (self.seed, self.near, self.name))) > 1:
            raise ValueError("expected one of seed, near and name")
        if self.view not in ("", *VIEWS, "any"):
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, any, got {self.view!r}")
        if not 1 <= self.k <= CHOICES_OF_K[-1]:
            raise ValueError(f"k must be 1 to {CHOICES_OF_K[-1]}, got {self.k}")
        _check_range("stretch", self.stretch, STRETCH_RANGE_NMGY)
        _check_range("q", self.q, Q_RANGE)
        if not 1 <= self.shown <= CHOICES_OF_K[-1]:
            raise ValueError(f"shown must be 1 to {CHOICES_OF_K[-1]}, got {self.shown}")

    @property
    def has_seed(self) -> bool:
        """Whether it says what the results should be like."""
        return bool(self.seed or self.near or self.name)

    def query(self, *, k: int | None) -> Query:
        """The question that the page asks.

        Raises:
            ValueError: the position or the predicate cannot be read.
        """
        return Query(
            like=[self.seed] if self.seed else [],
            position=self.near or None,
            radius_arcsec=RADIUS_ARCSEC,
            name=self.name or None,
            where=self.where.strip() or None,
            view=self.view or None,
            k=k,
        )


def _check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be {low:g} to {high:g}, got {value:g}")


_READ: dict[str, Callable[[str], object]] = {"k": int, "shown": int, "stretch": float, "q": float}


def to_params(state: PageState) -> dict[str, str]:
    """The parameters of the page's address."""
    params = {}
    for field in fields(PageState):
        value = getattr(state, field.name)
        if value != field.default:
            params[field.name] = f"{value:g}" if isinstance(value, float) else str(value)
    return params


def from_params(params: Mapping[str, str]) -> tuple[PageState, tuple[str, ...]]:
    """The page that an address asks for.

    Returns:
        The state, and what could not be used of the address: such a part takes its default.
    """
    state = PageState()
    complaints = []
    names = {field.name for field in fields(PageState)}
    for name, text in params.items():
        if name not in names:
            complaints.append(f"the link says {name}, which this page does not know")
            continue
        try:
            value = _READ.get(name, str)(text)
            state = _replaced(state, name, value)
        except ValueError as error:
            reason = str(error) if name in str(error) else f"{name} is not a number: {text!r}"
            complaints.append(f"the link cannot be used as it is: {reason}")
    return state, tuple(complaints)


def _replaced(state: PageState, name: str, value: object) -> PageState:
    values = {field.name: getattr(state, field.name) for field in fields(PageState)}
    return PageState(**{**values, name: value})
