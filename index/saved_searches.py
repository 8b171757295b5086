"""New since last night: which new objects lie near a search that somebody saved.

Saved searches stand in the TOML of the nightly or in SKY/saved_searches.json, a list of the same
tables. A search is objects to be like and unlike, or a vector, in one view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from index.errors import UnknownObject
from index.search import SMALLEST_SUM
from index.version import Version
from training.artifact import read_config

FILE = "saved_searches.json"
MOST = 1000  # new objects told of one search


@checked_dataclass(
    frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
)
class SavedSearch:
    """What to look out for: like and unlike, or a vector; nearer than a cosine, or among the best.

    With top_k a new object counts when it is among so many best of the whole sky; with min_cosine
    when its cosine is as high. Both: both.
    """

    name: str = Field(min_length=1)
    view: str = "image"
    like: tuple[str, ...] = ()  # object ids
    unlike: tuple[str, ...] = ()
    vector: tuple[float, ...] = ()  # of the search space
    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    top_k: int | None = Field(default=None, gt=0, le=10_000)

    @model_validator(mode="after")
    def _asks_for_something(self) -> SavedSearch:
        if bool(self.like) == bool(self.vector):
            raise ValueError(f"saved search {self.name!r}: give either like or vector")
        if self.vector and self.unlike:
            raise ValueError(f"saved search {self.name!r}: unlike goes with like, not with vector")
        if self.min_cosine is None and self.top_k is None:
            raise ValueError(f"saved search {self.name!r}: give min_cosine, top_k or both")
        return self


@dataclass(frozen=True, slots=True)
class NewNear:
    """What one saved search found among the new objects, best first."""

    name: str
    view: str
    object_ids: tuple[str, ...]
    cosines: tuple[float, ...]
    problem: str | None  # why it could not be asked: a seed is gone, the view is not there


def read_saved(sky: Path) -> tuple[SavedSearch, ...]:
    """The searches that a sky keeps; none where it has no such file.

    Raises:
        ValueError: the file is not a list of saved searches; names what is wrong.
    """
    file = sky / FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{file}: expected a list, got {type(content).__name__}")
    return tuple(read_config(SavedSearch, each, where=file) for each in content)


def new_near(
    version: Version,
    searches: Sequence[SavedSearch],
    new: Mapping[str, Int64[ndarray, " object"]],
) -> tuple[NewNear, ...]:
    """What each search finds among the new objects.

    Args:
        version: The new version.
        searches: What to look out for.
        new: View -> keys of the objects that have a vector of it for the first time.
    """
    found = []
    for search in searches:
        try:
            found.append(_near(version, search, new.get(search.view, np.empty(0, np.int64))))
        except (UnknownObject, ValueError) as error:  # one stale search must not end the night
            found.append(NewNear(search.name, search.view, (), (), str(error)))
    return tuple(found)


def _near(version: Version, search: SavedSearch, keys: Int64[ndarray, " new"]) -> NewNear:
    query, seeds = _query(version, search)
    keys = np.setdiff1d(keys, seeds)
    if not len(keys):
        return NewNear(search.name, search.view, (), (), None)
    num_best = min(MOST, len(keys))
    best = version.search(query, view=search.view, k=num_best, keys=keys)
    counts = best.keys[0] >= 0
    if search.min_cosine is not None:
        counts &= best.scores[0] >= search.min_cosine
    if search.top_k is not None:
        whole = version.search(query, view=search.view, k=search.top_k, exclude=seeds)
        counts &= np.isin(best.keys[0], whole.keys[0])
    ids = version.objects(best.keys[0][counts])["object_id"].to_pylist()
    return NewNear(
        search.name, search.view, tuple(ids), tuple(best.scores[0][counts].tolist()), None
    )


def _query(
    version: Version, search: SavedSearch
) -> tuple[Float32[ndarray, "1 dim"], Int64[ndarray, " seed"]]:
    """The direction to search in, and the objects it was made from."""
    if search.view not in version.views:
        views = ", ".join(version.views)
        raise ValueError(f"this sky has no view {search.view!r}, it has {views}")
    if search.vector:
        return np.array([search.vector], np.float32), np.empty(0, np.int64)
    like, unlike = version.keys_of(search.like), version.keys_of(search.unlike)
    total = version.vectors(like, search.view).astype(np.float64).sum(axis=0)
    if len(unlike):
        total -= version.vectors(unlike, search.view).astype(np.float64).sum(axis=0)
    if np.linalg.norm(total) < SMALLEST_SUM:
        raise ValueError("the seeds cancel out: there is no direction to search in")
    return total[None].astype(np.float32), np.concatenate([like, unlike])
