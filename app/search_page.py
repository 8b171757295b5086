"""The search page: a seed on the left, what is like it on the right.

One value, a PageState, says what is shown. Widgets change it in callbacks, the address of the page
follows it, and a changed address (a link, the back button) replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

import discovery
from app import ask, look
from app.engine import Engine
from app.page_state import CHOICES_OF_K, PageState, from_params, to_params
from app.results_panel import draw_results
from app.seed_panel import draw_seed
from app.wording import escaped, plain
from discovery import Hits, Sky, SkykinError

FIRST_SEED = 0  # draws the object that a page without a seed opens with


@st.cache_resource(show_spinner="Opening the sky")  # type: ignore[untyped-decorator]
def opened(folder: str, engine: Engine) -> Sky:
    """The sky, opened once a process."""
    return discovery.open(folder, device=engine.device, cluster=engine.cluster)


def draw(folder: str, engine: Engine) -> None:
    """Draw the page of a sky; errors in plain words."""
    st.html(look.style())
    try:
        sky = opened(folder, engine)
        sky.refresh()
    except (SkykinError, OSError, ValueError) as error:
        st.error(plain(str(error)))
        return
    state = _current(sky)
    hits, problem = _found(sky, state, engine.recall)
    _header(sky, state)
    if problem:
        st.error(plain(problem))
        example = plain(sky.random_bright(FIRST_SEED))
        st.caption(f"For example, an object id of this sky: {example}")
    with st.container(key="body"):
        left, right = st.columns([1, 3], gap="medium")
        with left, st.container(key="seed"):
            _seed(sky, state, hits)
        with right:
            _controls(sky, state, hits)
            if hits is not None:
                draw_results(sky, state, hits, on_pick=_pick, on_more=_more)


def _current(sky: Sky) -> PageState:
    """The state of this run; the address made to say the same."""
    address = st.query_params.to_dict()
    # After a click the browser may still send the address of before: then the click counts.
    changed = st.session_state.pop("changed", False)
    moved = not changed and address != st.session_state.get("address")
    if "state" not in st.session_state or moved:
        state, complaints = from_params(address)
        st.session_state["complaints"] = complaints
        st.session_state["asked"] = ask.Asked()
        st.session_state["state"] = state
    state = st.session_state["state"]
    if not state.has_seed:
        state = replace(state, seed=sky.random_bright(FIRST_SEED))
        st.session_state["state"] = state
    st.session_state["address"] = to_params(state)
    if st.session_state["address"] != address:
        st.query_params.from_dict(st.session_state["address"])
    return state


def _change(**values: Any) -> None:
    """Change the state before the next run."""
    st.session_state["state"] = replace(st.session_state["state"], **values)
    st.session_state["asked"] = ask.Asked()
    st.session_state["complaints"] = ()
    st.session_state["changed"] = True


def _pick(object_id: str) -> None:
    _change(seed=object_id, near="", name="", shown=PageState().shown)


def _more() -> None:
    _change(shown=min(st.session_state["state"].shown + PageState().shown, CHOICES_OF_K[-1]))


def _found(sky: Sky, state: PageState, recall: float) -> tuple[Hits | None, str]:
    """The hits, kept between runs, or what went wrong."""
    asked = (sky.version, replace(state, stretch=1.0, q=1.0, shown=1))  # looks ask nothing
    if st.session_state.get("hits_of") != asked:
        try:
            st.session_state["hits"] = ask.search(sky, state, recall=recall)
        except (SkykinError, OSError, ValueError) as error:
            return None, str(error)
        st.session_state["hits_of"] = asked
    return st.session_state["hits"], ""


def _header(sky: Sky, state: PageState) -> None:
    with st.container(key="header", horizontal=True, vertical_alignment="center", gap="medium"):
        st.html(
            '<div class="sk-brand"><b>Skykin</b>'
            f"<span>{escaped(Path(sky.folder).name)}</span></div>",
            width="content",
        )
        asked: ask.Asked = st.session_state["asked"]
        st.session_state["ask"] = asked.text or state.near or state.name
        st.text_input(
            "Find what is like",
            key="ask",
            on_change=_ask,
            args=(sky,),
            label_visibility="collapsed",
            placeholder="Object id, position (150.1 2.2 or 10 00 24 +02 12 00), or a viewer link",
        )
        st.button(
            "Random bright object",
            on_click=_random,
            args=(sky,),
            icon=":material/shuffle:",
        )
    for complaint in st.session_state["complaints"]:
        st.warning(plain(complaint))
    if asked.problem:
        st.error(plain(asked.problem))
    if asked.name:
        st.button(
            f"Look up {plain(asked.name)} at CDS Sesame (network)",
            on_click=_change,
            kwargs={"seed": "", "near": "", "name": asked.name, "shown": PageState().shown},
        )


def _ask(sky: Sky) -> None:
    text = st.session_state["ask"].strip()
    if not text:
        return
    asked = ask.understand(sky, text)
    if asked.problem:
        st.session_state["asked"] = asked
    else:
        _change(seed=asked.seed, near=asked.near, name="", shown=PageState().shown)


def _random(sky: Sky) -> None:
    _pick(sky.random_bright())


def _seed(sky: Sky, state: PageState, hits: Hits | None) -> None:
    seed = hits.seed if hits is not None else None
    object_id = (seed.object_id if seed is not None else None) or state.seed
    if not object_id:
        return
    try:
        draw_seed(
            sky,
            object_id,
            state,
            separation_arcsec=None if seed is None else seed.separation_arcsec,
        )
    except SkykinError:  # unknown id: said above
        return


def _set(field: str, read: Callable[[Any], Any] = lambda value: value) -> None:
    values = {field: read(st.session_state[field])}
    if field in ("view", "k", "where"):
        values["shown"] = PageState().shown
    _change(**values)


def _controls(sky: Sky, state: PageState, hits: Hits | None) -> None:
    with st.container(key="controls", horizontal=True, vertical_alignment="bottom", gap="small"):
        views = [*sky.views, "any"] if len(sky.views) > 1 else [*sky.views]
        st.session_state["view"] = state.view or (hits.view if hits is not None else None)
        st.segmented_control(
            "Compare by",
            [*views, *({state.view} - {*views, ""})],
            key="view",
            on_change=_set,
            args=("view", lambda view: view or ""),
            help="What is compared: the picture, the spectrum, both with photometry (joint), or "
            "all of them, ranks fused (any).",
            width="content",
        )
        st.session_state["where"] = state.where
        st.text_input(
            "Only objects with",
            key="where",
            on_change=_set,
            args=("where",),
            placeholder="redshift > 0.1 and mag_r < 19",
            help=_where_help(sky, hits),
        )
        st.session_state["k"] = state.k
        st.selectbox(
            "Results",
            sorted({*CHOICES_OF_K, state.k}),
            key="k",
            on_change=_set,
            args=("k",),
            width=96,
        )
        with st.popover("Stretch", icon=":material/contrast:"):
            _stretch(state)


def _stretch(state: PageState) -> None:
    st.session_state["stretch"] = state.stretch
    st.session_state["q"] = state.q
    st.select_slider(
        "Stretch (nmgy per pixel)",
        sorted({*ask.STRETCHES, state.stretch}),
        key="stretch",
        on_change=_set,
        args=("stretch",),
        format_func=lambda value: f"{value:g}",
        help="Flux up to which brightness is about linear. Smaller shows fainter light.",
    )
    st.select_slider(
        "Q",
        sorted({*ask.QS, state.q}),
        key="q",
        on_change=_set,
        args=("q",),
        format_func=lambda value: f"{value:g}",
        help="Softening. Larger compresses bright cores more.",
    )
    st.button(
        "Reset",
        on_click=_change,
        kwargs={"stretch": PageState().stretch, "q": PageState().q},
    )
    st.caption(
        "Colours: asinh stretch of Lupton et al. 2004. Display only; the search is unchanged."
    )


def _where_help(sky: Sky, hits: Hits | None) -> str:
    text = "SQL predicate; an unknown value never matches."
    if hits is not None and hits.seed.object_id:
        names = ", ".join(ask.columns(sky, hits.seed.object_id))
        text += f" Columns: {plain(names)}"
    return text
