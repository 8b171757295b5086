"""Numbers and foreign text as the page writes them."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([^\w\s])")


def plain(text: str) -> str:
    """Text that Streamlit's Markdown shows as it is, whatever it holds."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def escaped(value: object) -> str:
    """Text for HTML."""
    return html.escape(str(value))


def number(value: object, digits: int) -> str:
    """A number of the object table with some decimals; an em dash where it is unknown."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "\N{EM DASH}"
    return f"{value:z.{digits}f}"


def size_text(width_arcsec: float | None) -> str:
    """How large a stamp is on the sky."""
    if width_arcsec is None:
        return "of unknown size"
    return f"{width_arcsec:.1f}\N{DOUBLE PRIME} a side"
