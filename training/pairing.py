"""Which vectors belong together: two copies, two surveys or two views of one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

Kind = Literal["copies", "surveys", "views"]
Group = tuple[str, str]  # view and survey


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewVectors:
    """Encoder vectors of one view with the object each belongs to; an object may come often."""

    objects: Int64[ndarray, " n"]
    vectors: Float32[ndarray, "n dim"]
    surveys: tuple[str, ...] = ()  # of each vector; empty: one that has no name

    def __post_init__(self) -> None:
        if len(self.objects) != len(self.vectors):
            raise ValueError(
                f"expected an object for each of {len(self.vectors)} vectors, got "
                f"{len(self.objects)}"
            )
        if self.surveys and len(self.surveys) != len(self.vectors):
            raise ValueError(
                f"expected a survey for each of {len(self.vectors)} vectors, got "
                f"{len(self.surveys)}"
            )

    def by_survey(self) -> dict[str, Int64[ndarray, " row"]]:
        """Rows of each survey, surveys in order."""
        if not self.surveys:
            return {"": np.arange(len(self.objects))}
        named = np.array(self.surveys)
        return {str(survey): np.flatnonzero(named == survey) for survey in np.unique(named)}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the vectors of each object stand in one view, those of one survey."""

    order: Int64[ndarray, " row"]  # rows, those of one object side by side
    objects: Int64[ndarray, " object"]  # ascending
    start: Int64[ndarray, " object"]  # in `order`
    count: Int64[ndarray, " object"]

    @classmethod
    def of(cls, objects: Int64[ndarray, " n"], rows: Int64[ndarray, " row"]) -> _Rows:
        order = rows[np.argsort(objects[rows], kind="stable")]
        found, start, count = np.unique(objects[order], return_index=True, return_counts=True)
        return cls(order, found, start, count)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Objects that have a vector in both groups (two of them where the groups are the same)."""

    left: Group
    right: Group
    objects: Int64[ndarray, " object"]
    left_rows: _Rows
    right_rows: _Rows

    @property
    def kind(self) -> Kind:
        """What the two vectors of an object differ by."""
        if self.left[0] != self.right[0]:
            return "views"
        return "copies" if self.left == self.right else "surveys"

    def draw(
        self, num: int, rng: np.random.Generator
    ) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"]]:
        """Rows of `num` different objects in the left and in the right view."""
        objects = rng.choice(self.objects, size=min(num, len(self.objects)), replace=False)
        left, right = self.left_rows, self.right_rows
        at_left, at_right = (np.searchsorted(rows.objects, objects) for rows in (left, right))
        first = rng.integers(left.count[at_left])
        if self.left == self.right:  # another copy than the left one
            second = (first + 1 + rng.integers(right.count[at_right] - 1)) % right.count[at_right]
        else:
            second = rng.integers(right.count[at_right])
        return (
            left.order[left.start[at_left] + first],
            right.order[right.start[at_right] + second],
        )


def pairings(data: Mapping[str, ViewVectors]) -> list[Pairing]:
    """All pairs of groups that share objects: of two at least, for a lone one has no negatives."""
    groups = {
        (view, survey): _Rows.of(part.objects, rows)
        for view, part in data.items()
        for survey, rows in part.by_survey().items()
    }
    found = []
    names = tuple(groups)
    for number, left in enumerate(names):
        for right in names[number:]:
            if left == right:
                shared = groups[left].objects[groups[left].count > 1]
            else:
                shared = np.intersect1d(groups[left].objects, groups[right].objects)
            if len(shared) > 1:
                found.append(Pairing(left, right, shared, groups[left], groups[right]))
    return found


def shares(
    found: Sequence[Pairing], wanted: Mapping[Kind, float | None]
) -> Float64[ndarray, " pairing"]:
    """The share of the batches of each pairing: by its objects, within what a kind is given.

    A kind that is given a share and is not there leaves it to the others.
    """
    num = np.array([len(pairing.objects) for pairing in found], dtype=np.float64)
    kinds = np.array([pairing.kind for pairing in found])
    fixed = {
        kind: share for kind, share in wanted.items() if share is not None and (kinds == kind).any()
    }
    free = ~np.isin(kinds, list(fixed))
    share = np.zeros(len(found))
    for kind, part in fixed.items():
        share[kinds == kind] = part * num[kinds == kind] / num[kinds == kind].sum()
    left = 1 - sum(fixed.values())
    if free.any():
        share[free] = left * num[free] / num[free].sum()
    total = share.sum()
    return share / total if total > 0 else num / num.sum()
