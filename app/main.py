"""What Streamlit runs: `streamlit run app/main.py -- SKY [ENGINE]` (engine.py, as JSON)."""

from __future__ import annotations

import sys

import streamlit as st


def main(arguments: list[str]) -> None:
    """Set up the browser page and draw it for the sky that the command line names."""
    st.set_page_config(page_title="Skykin", page_icon="\N{MILKY WAY}", layout="wide")
    if len(arguments) not in (1, 2):
        st.error("Expected the folder of one sky: streamlit run app/main.py -- SKY")
        return
    from app.engine import Engine, from_argument
    from app.search_page import draw  # slow the first time: behind it is torch

    draw(arguments[0], from_argument(arguments[1]) if len(arguments) == 2 else Engine())


if __name__ == "__main__":
    main(sys.argv[1:])
