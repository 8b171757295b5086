"""How the page looks: colours of the theme, and the rules that Streamlit has no option for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ACCENT = "#f0b450"
LINE = "#8ec7ff"  # spectra
DIM = "#8f9bb0"

# Streamlit options by name, given on the command line.
OPTIONS: dict[str, str] = {
    "theme.base": "dark",
    "theme.primaryColor": ACCENT,
    "theme.backgroundColor": "#0b0e14",
    "theme.secondaryBackgroundColor": "#141a24",
    "theme.textColor": "#dfe5ee",
    "theme.linkColor": LINE,
    "theme.linkUnderline": "false",
    "theme.borderColor": "#28303d",
    "theme.showWidgetBorder": "true",
    "theme.baseRadius": "6px",
    "theme.baseFontSize": "14",
    "theme.codeTextColor": "#dfe5ee",
    "theme.codeBackgroundColor": "#141a24",
    "theme.codeFontSize": "12px",
    "theme.dataframeHeaderBackgroundColor": "#141a24",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
}


@cache
def style() -> str:
    """The rules of look.css as an element of the page."""
    css = Path(__file__).with_name("look.css").read_text(encoding="utf-8")
    return f"<style>\n{css}</style>"
