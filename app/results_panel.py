"""The right column: hits as gallery, as table and as files."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.ask import built_on
from app.gallery import Card, gallery
from app.page_state import PAGE, PageState
from app.stamps import Stamp, stamp, thumbnail, trace
from app.wording import escaped, number, plain, size_text
from discovery import Hits, Sky

_COLUMNS = {  # name -> how the table writes it
    "score": "%.4f", "ra_deg": "%.6f", "dec_deg": "%+.6f", "redshift": "%.4f",
    "radius_arcsec": "%.2f", **{f"mag_{band}": "%.3f" for band in "ugrizy"},
    **{f"flux_{band}_nmgy": "%.3f" for band in "ugrizy"},
}  # fmt: skip


def draw_results(
    sky: Sky,
    state: PageState,
    hits: Hits,
    *,
    on_pick: Callable[[str], None],
    on_more: Callable[[], None],
) -> None:
    """Draw the hits: one line that says what they are, gallery, downloads, table."""
    stamps = [
        stamp(sky, object_id, stretch=state.stretch, q=state.q)
        for object_id in hits.ids[: state.shown]
    ]
    st.html(_summary(sky, hits, stamps))
    for part in hits.missing:
        st.warning(plain(part.text()))
    if not len(hits):
        st.info("No object of this sky is left by the filter. Loosen it to see more.")
        return
    left = len(hits) - len(stamps)
    gallery(
        _cards(sky, hits, stamps),
        key="gallery",
        on_pick=on_pick,
        on_more=on_more,
        more=_more(left),
        of=f"{hits.version} {hits.view} {hits.seed.object_id}",
    )
    _table(hits)


def _summary(sky: Sky, hits: Hits, stamps: list[Stamp]) -> str:
    how = "all views, ranks fused" if hits.view == "any" else hits.view
    parts = [
        f"<b>{len(hits):,}</b> of {hits.num_searched:,} objects, compared by {escaped(how)}",
        f"version {hits.version}, built {escaped(built_on(sky, hits.version))}",
    ]
    if hits.num_without_position:
        parts.append(f"{hits.num_without_position:,} without a position were not reached")
    about = sorted({size_text(one.width_arcsec) for one in stamps if one.picture is not None})
    if about:
        about = [f"stamps {' or '.join(about)}", "north up, east left"]
    num_approximate = sum(not one.calibrated for one in stamps)
    if num_approximate:
        which = "all" if num_approximate == len(stamps) else f"{num_approximate:,}"
        about.append(f"{which} in approximate colours (display pictures)")
    return (
        f'<div class="sk-summary"><span>{" &middot; ".join(parts)}</span>'
        f"<span>{' &middot; '.join(about)}</span></div>"
    )


def _more(num_left: int) -> str:
    if not num_left:
        return ""
    rest = "" if num_left <= PAGE else f" of {num_left:,} left"
    return f"Show {min(num_left, PAGE)} more{rest}"


def _cards(sky: Sky, hits: Hits, stamps: list[Stamp]) -> list[Card]:
    facts = [
        (label, hits.table[name].tolist(), digits)
        for label, name, digits in (("r", "mag_r", 2), ("z", "redshift", 3))
        if name in hits.table.colnames and any(v is not None for v in hits.table[name].tolist())
    ]
    cards = []
    for place, (object_id, score, shown) in enumerate(
        zip(hits.ids, hits.scores, stamps, strict=False)
    ):
        curve = trace(sky, object_id).curve if hits.view in ("spectrum", "joint") else None
        cards.append(
            Card(
                object_id=object_id,
                rank=place + 1,
                score=f"{score:.3f}",
                tag="fused ranks" if hits.view == "any" else "",
                facts=tuple((label, number(values[place], d)) for label, values, d in facts),
                picture=shown.picture,
                missing=shown.missing,
                curve=thumbnail(curve) if curve is not None else (),
            )
        )
    return cards


def _table(hits: Hits) -> None:
    files = _files(hits)
    with st.container(key="downloads", horizontal=True, vertical_alignment="center", gap="small"):
        st.html(f'<div class="sk-note">All {len(hits):,} hits</div>', width="content")
        for ending, name, kind in (
            ("csv", "CSV", "text/csv"),
            ("vot", "VOTable", "application/x-votable+xml"),
        ):
            st.download_button(
                name,
                data=files[ending],
                file_name=f"skykin_hits.{ending}",
                mime=kind,
                icon=":material/download:",
                on_click="ignore",
            )
    table = hits.table.to_pandas()
    empty = [name for name in table.columns if table[name].isna().all()]
    st.dataframe(
        table.drop(columns=empty),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format=how)
            for name, how in _COLUMNS.items()
            if name in table.columns
        },
    )


def _files(hits: Hits) -> dict[str, bytes]:
    """The hits as files, made once for as long as they are shown."""
    made: tuple[Hits, dict[str, bytes]] | None = st.session_state.get("files")
    if made is None or made[0] is not hits:
        made = hits, {ending: hits.to_bytes(ending) for ending in ("csv", "vot")}
        st.session_state["files"] = made
    return made[1]
