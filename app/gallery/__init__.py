"""The clickable gallery: a grid of cutouts, best first; a click says which object was picked.

What comes from data reaches the browser as JSON and the document as text, so an object id may hold
any characters.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent
_HTML = (
    '<div class="gallery"><ol class="grid"></ol><button type="button" class="more"></button></div>'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One object of the gallery, its numbers already written as text."""

    object_id: str
    rank: int
    score: str
    tag: str = ""  # dim text beside the score
    facts: tuple[tuple[str, str], ...] = ()  # name, value
    picture: bytes | None = None  # PNG
    missing: str = "no image"  # said in place of the picture
    curve: tuple[tuple[float, float], ...] = ()  # wavelength_angstrom, flux


def gallery(
    cards: Sequence[Card],
    *,
    key: str,
    on_pick: Callable[[str], None],
    on_more: Callable[[], None],
    more: str = "",
    of: str = "",
) -> None:
    """Draw the cards, and call back before the next run of the page.

    Args:
        cards: Best first.
        key: Of the session state.
        on_pick: Called with the object id of a clicked card (Enter and space click, too).
        on_more: Called when the button below the cards is clicked.
        more: What that button says; "" = no button.
        of: Names what the cards belong to; when it changes, the page scrolls back to its top.
    """
    _component()(
        key=key,
        data={"cards": [_plain(card) for card in cards], "more": more, "of": of},
        on_picked_change=lambda: on_pick(st.session_state[key]["picked"]),
        on_more_change=on_more,
    )


@cache
def _component() -> Any:
    """Registered once a process, when first drawn."""
    return st.components.v2.component(
        "skykin.gallery",
        html=_HTML,
        css=(_HERE / "gallery.css").read_text(encoding="utf-8"),
        js=(_HERE / "gallery.js").read_text(encoding="utf-8"),
    )


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _plain(card: Card) -> dict[str, object]:
    return {
        "id": card.object_id,
        "rank": card.rank,
        "score": card.score,
        "tag": card.tag,
        "facts": [list(fact) for fact in card.facts],
        "picture": data_uri(card.picture) if card.picture is not None else None,
        "missing": card.missing,
        "curve": [list(point) for point in card.curve],
    }
