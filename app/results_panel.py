"""The right column: hits as gallery, as table and as files."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.ask import built_on
from app.gallery import Card, gallery
from app.page_state import PAGE, PageState
from app.stamps import Stamp, stamp, thumbnail, trace
from app.wording import escaped, number
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
    if not len(hits):
        st.info("No object of this sky is left by the filter. Loosen it to see more.")
        return
    left = len(hits) - len(stamps)
    gallery(
        _cards(sky, hits, stamps),
        key="gallery",
        on_pick=on_pick,
        on_more=on_more,
        more=f"Show {min(left, PAGE)} more of {left:,}" if left else "",
    )
    _table(hits)


def _summary(sky: Sky, hits: Hits, stamps: list[Stamp]) -> str:
    parts = [
        f"<b>{len(hits):,}</b> of {hits.num_searched:,} objects, alike in {escaped(hits.view)}",
        f"version {hits.version}, built {escaped(built_on(sky, hits.version))}",
    ]
    if hits.num_without_position:
        parts.append(f"{hits.num_without_position:,} without a position were not reached")
    widths = {f"{one.width_arcsec:.1f}" for one in stamps if one.picture is not None}
    about = []
    if widths:
        about.append(f"stamps {' or '.join(sorted(widths))}\N{DOUBLE PRIME} a side")
        about.append("north up, east left")
    num_approximate = sum(not one.calibrated for one in stamps)
    if num_approximate:
        which = "all" if num_approximate == len(stamps) else f"{num_approximate:,}"
        about.append(f"{which} in approximate colours (display pictures)")
    return (
        f'<div class="sk-summary"><span>{" &middot; ".join(parts)}</span>'
        f"<span>{' &middot; '.join(about)}</span></div>"
    )


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
                facts=tuple((label, number(values[place], d)) for label, values, d in facts),
                picture=shown.picture,
                missing=shown.missing,
                curve=thumbnail(curve) if curve is not None else (),
            )
        )
    return cards


def _table(hits: Hits) -> None:
    with st.container(key="downloads", horizontal=True, vertical_alignment="center", gap="small"):
        st.html(f'<div class="sk-note">All {len(hits):,} hits</div>', width="content")
        for ending, name, kind in (
            ("csv", "CSV", "text/csv"),
            ("vot", "VOTable", "application/x-votable+xml"),
        ):
            st.download_button(
                name,
                data=hits.to_bytes(ending),
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
