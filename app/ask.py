"""What a user asks for in words, and the search that follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from app.page_state import PageState
from discovery import Hits, Sky, UnknownObject
from discovery.positions import parse_position
from index.manifest import read_manifest

STRETCHES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 2.0)
QS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the query box was understood to say: seed, near, or a problem."""

    text: str = ""  # kept in the box while there is a problem
    seed: str = ""
    near: str = ""
    problem: str = ""
    name: str = ""  # the text, where it may be a published name that Sesame knows


def understand(sky: Sky, text: str) -> Asked:
    """Read the query box: an object id of this sky, else a position or a viewer's address."""
    try:
        sky.object(text)
    except UnknownObject:
        return _position(text)
    return Asked(seed=text)


def _position(text: str) -> Asked:
    try:
        ra_deg, dec_deg = parse_position(text)
    except ValueError as error:
        may_be_name = any(letter.isalpha() for letter in text) and "://" not in text
        return Asked(
            text=text,
            problem=f"No object of this sky has the id {text!r}, and as a position: {error}",
            name=text if may_be_name and len(text) <= 60 else "",
        )
    return Asked(near=f"{ra_deg:.6f} {dec_deg:+.6f}")


def search(sky: Sky, state: PageState, *, recall: float) -> Hits:
    """Search as the state says; fewer than k where the sky has no more to give.

    Raises:
        SkykinError: see Sky.search.
        ValueError: see Sky.search.
    """
    hits = sky.search(replace(state.query(k=None), recall=recall))
    wanted = min(state.k, hits.num_searched)
    return hits if wanted == len(hits) else sky.search(replace(hits.query, k=wanted))


@lru_cache(maxsize=16)
def built_on(sky: Sky, version: int) -> str:
    """Day (UTC) on which a version was built, as YYYY-MM-DD."""
    return read_manifest(sky.folder, version).built_at_utc[:10]


def columns(sky: Sky, object_id: str) -> list[str]:
    """Columns that a predicate may name.

    Raises:
        UnknownObject: the id, whose line is read, is not in this sky.
    """
    return [name for name in sky.object(object_id) if name != "views"]
