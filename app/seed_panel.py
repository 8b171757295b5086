"""The left column: what the results are like."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from app import look
from app.gallery import data_uri
from app.page_state import RADIUS_ARCSEC, PageState
from app.stamps import Stamp, Trace, stamp, trace
from app.wording import escaped, number, size_text
from discovery import Sky
from discovery.pictures import legacy_viewer_url, simbad_url
from training.observations import CatalogueValue

_BAR_ARCSEC = (30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)

_COMPASS = '<div class="compass" title="north up, east left"><span>N</span><span>E</span></div>'


def draw_seed(
    sky: Sky, object_id: str, state: PageState, *, separation_arcsec: float | None
) -> None:
    """Draw an object large: picture, names, numbers, links, spectrum.

    Args:
        sky: Where it is.
        object_id: Of the object.
        state: How to stretch the picture, and what was asked.
        separation_arcsec: From the position asked for; None where it was named by id.

    Raises:
        UnknownObject: the id is not in this sky.
    """
    line = sky.object(object_id)
    shown = stamp(sky, object_id, stretch=state.stretch, q=state.q)
    st.html(_figure(object_id, shown))
    if separation_arcsec is not None:
        asked = state.name or state.near
        st.html(
            f'<div class="sk-note"><b>{separation_arcsec:.2f}\N{DOUBLE PRIME}</b> from '
            f"{escaped(asked)}, the nearest object within {RADIUS_ARCSEC:g}\N{DOUBLE PRIME}</div>"
        )
    st.code(object_id, language=None, wrap_lines=True)
    ra_deg, dec_deg = line.get("ra_deg"), line.get("dec_deg")
    if isinstance(ra_deg, float) and isinstance(dec_deg, float):
        st.code(f"{ra_deg:.6f} {dec_deg:+.6f}", language=None)
    st.html(_facts(line, shown))
    if isinstance(ra_deg, float) and isinstance(dec_deg, float):
        st.html(
            '<div class="sk-links">'
            + _link(legacy_viewer_url(ra_deg, dec_deg), "Legacy Survey viewer")
            + _link(simbad_url(ra_deg, dec_deg), "SIMBAD")
            + "</div>"
        )
    else:
        st.html(
            '<div class="sk-note">This object has no position: no links, and searches by position '
            "do not reach it.</div>"
        )
    if not shown.calibrated:
        st.html(
            '<div class="sk-warn">Approximate colours: made from a display picture, not from '
            "calibrated fluxes.</div>"
        )
    if "spectrum" in str(line.get("views")).split(","):
        _spectrum(trace(sky, object_id))
    if shown.notes:
        st.html(f'<div class="sk-note">{escaped("; ".join(shown.notes))}</div>')


def _figure(object_id: str, shown: Stamp) -> str:
    if shown.picture is None:
        return f'<figure class="sk-seed"><div class="none">{escaped(shown.missing)}</div></figure>'
    return (
        f'<figure class="sk-seed"><img src="{data_uri(shown.picture)}" '
        f'alt="Colour picture of object {escaped(object_id)}">'
        f"{_bar(shown.width_arcsec)}{_COMPASS}</figure>"
    )


def _bar(width_arcsec: float | None) -> str:
    if width_arcsec is None:
        return ""
    length = next(length for length in _BAR_ARCSEC if length <= width_arcsec / 2)
    share = 100 * length / width_arcsec
    return f'<div class="bar" style="width:{share:.2f}%">{length}\N{DOUBLE PRIME}</div>'


def _facts(line: dict[str, CatalogueValue], shown: Stamp) -> str:
    rows: list[tuple[str, str]] = []
    magnitudes = [
        f"<i>{band}</i> {number(line[name], 2)}"
        for band in "ugrizy"
        if isinstance(line.get(name := f"mag_{band}"), float)
    ]
    if magnitudes:
        rows.append(("Magnitudes (AB)", " &ensp;".join(magnitudes)))
    if isinstance(line.get("redshift"), float):
        source = f" ({escaped(line['redshift_source'])})" if line.get("redshift_source") else ""
        rows.append(("Redshift", f"{number(line['redshift'], 4)}{source}"))
    if line.get("spectrum_class"):
        rows.append(("Class", escaped(line["spectrum_class"])))
    if isinstance(line.get("radius_arcsec"), float):
        rows.append(("Half-light radius", f"{number(line['radius_arcsec'], 2)}\N{DOUBLE PRIME}"))
    rows.append(("Views", escaped(str(line.get("views")).replace(",", ", "))))
    if shown.picture is not None:
        letters = {band[-1].lower() for band in shown.bands}
        bands = "".join(band for band in "ugrizy" if band in letters)
        rows.append(
            ("Picture", f"<i>{bands}</i>, {size_text(shown.width_arcsec)}, {escaped(shown.survey)}")
        )
    parts = (f"<b>{name}</b><span>{value}</span>" for name, value in rows)
    return f'<div class="sk-facts">{"".join(parts)}</div>'


def _link(address: str, name: str) -> str:
    return (
        f'<a href="{escaped(address)}" target="_blank" rel="noopener noreferrer">{name} \u2197</a>'
    )


def _spectrum(seen: Trace) -> None:
    if seen.curve is None:
        st.html(f'<div class="sk-note">{escaped(seen.missing)}</div>')
        return
    curve = seen.curve
    table = pd.DataFrame(
        {
            "wavelength": curve.wavelength_angstrom,
            "flux": curve.flux.astype(np.float64),
            "smoothed": curve.smoothed.astype(np.float64),
        }
    )
    low, high = np.nanpercentile(curve.smoothed, [0.5, 100])  # emission lines are shown whole
    pad = 0.08 * (high - low)
    wavelength = alt.X(
        "wavelength:Q",
        title="Wavelength (\u00c5, vacuum)",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(grid=False, tickCount=5, format="d", titleFontSize=11),
    )
    scale = alt.Scale(domain=[low - pad, high + pad], clamp=True, zero=False)
    title = "Flux (10\u207b\u00b9\u2077 erg s\u207b\u00b9 cm\u207b\u00b2 \u00c5\u207b\u00b9)"
    axis = alt.Axis(gridOpacity=0.25, tickCount=4, titleFontSize=11, titlePadding=4)
    lines = [
        alt.Chart(table)
        .mark_line(strokeWidth=width, color=colour, opacity=opacity)
        .encode(x=wavelength, y=alt.Y(f"{column}:Q", title=title, scale=scale, axis=axis))
        for column, colour, width, opacity in (
            ("flux", look.DIM, 0.5, 0.45),
            ("smoothed", look.LINE, 1.1, 1.0),
        )
    ]
    chart = alt.layer(*lines).properties(height=215).interactive(bind_y=False)
    st.altair_chart(chart, width="stretch")
