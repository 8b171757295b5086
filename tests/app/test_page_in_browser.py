"""The page in a real browser: what is clicked, typed, reloaded and downloaded."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from astropy.io import votable
from astropy.table import Table

from discovery import Query, Sky
from tests.app.conftest import HOSTILE, NUM_SIMULATED

pytestmark = pytest.mark.browser


def card_ids(tab: Any) -> list[str]:
    ids: list[str] = tab.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.id)")
    return ids


def asked(tab: Any) -> dict[str, str]:
    # Of the document itself: Playwright's tab.url can lag behind it.
    query = urlsplit(tab.evaluate("() => location.href")).query
    return {name: values[0] for name, values in parse_qs(query).items()}


def open_page(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.locator(".card").first.wait_for()


def wait_for_seed(tab: Any, object_id: str) -> None:
    """Until the address and the pinned panel name the object, and its results are drawn."""
    tab.wait_for_function("id => new URL(location).searchParams.get('seed') === id", arg=object_id)
    tab.locator(".st-key-seed code").first.filter(has_text=object_id).wait_for()
    tab.wait_for_function(
        """id => {
            const cards = [...document.querySelectorAll('[data-testid=stBidiComponentRegular], *')]
                .flatMap(e => e.shadowRoot ? [...e.shadowRoot.querySelectorAll('.card')] : []);
            return cards.length > 0 && cards.every(card => card.dataset.id !== id);
        }""",
        arg=object_id,
    )


def test_the_gallery_shows_cutouts_best_first(tab: Any, address: str, sky: Sky) -> None:
    open_page(tab, address)

    seed = asked(tab)["seed"]
    assert card_ids(tab) == list(sky.search(Query(like=[seed], k=NUM_SIMULATED + 1)).ids)
    widths = tab.locator(".card img").evaluate_all("all => all.map(i => i.naturalWidth)")
    assert widths == [96] * (NUM_SIMULATED + 1)
    first = tab.locator(".card").first
    assert first.get_attribute("aria-label").startswith("Rank 1: object ")
    assert re.search(r"r \d\d\.\d\d", first.inner_text())


def test_a_clicked_cutout_becomes_the_seed_and_back_returns(tab: Any, address: str) -> None:
    open_page(tab, address)
    before = asked(tab)["seed"]
    picked = card_ids(tab)[2]

    tab.locator(".card").nth(2).click()

    wait_for_seed(tab, picked)
    assert before in card_ids(tab)

    tab.go_back()
    wait_for_seed(tab, before)


def test_of_two_quick_clicks_the_second_counts(tab: Any, address: str) -> None:
    open_page(tab, address)
    ids = card_ids(tab)

    tab.locator(".grid").evaluate(
        "grid => { const cards = grid.querySelectorAll('.card');"
        " cards[0].click(); cards[3].click(); }"
    )

    wait_for_seed(tab, ids[3])
    tab.wait_for_timeout(500)
    assert asked(tab) == {"seed": ids[3]}


def test_enter_on_a_focused_cutout_is_a_click(tab: Any, address: str) -> None:
    open_page(tab, address)
    picked = card_ids(tab)[1]

    tab.locator(".card").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")

    wait_for_seed(tab, picked)
    assert asked(tab)["seed"] == picked


def test_the_address_reopens_the_same_page_elsewhere(
    tab: Any, browser: Any, address: str, with_spectrum: str
) -> None:
    open_page(tab, f"{address}/?seed={with_spectrum}")
    tab.get_by_role("textbox", name="Only objects with").fill("mag_r < 19.5")
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => location.search.includes('where')")
    tab.get_by_role("radio", name="joint").or_(
        tab.get_by_role("button", name="joint", exact=True)
    ).click()
    tab.wait_for_function("() => location.search.includes('view=joint')")
    tab.locator(".sk-summary").filter(has_text="compared by joint").wait_for()
    assert asked(tab) == {"seed": with_spectrum, "where": "mag_r < 19.5", "view": "joint"}

    other = browser.new_context()
    try:
        again = other.new_page()
        again.set_default_timeout(60_000)
        open_page(again, tab.evaluate("() => location.href"))
        there = (again.locator(".sk-summary").inner_text(), card_ids(again))
    finally:
        other.close()

    for _ in range(40):  # the line above the cards may be new before all of them are
        here = (tab.locator(".sk-summary").inner_text(), card_ids(tab))
        if here == there:
            break
        tab.wait_for_timeout(500)
    assert here == there
    assert len(there[1]) < NUM_SIMULATED


def test_a_spectrum_is_drawn_and_can_be_searched_by(
    tab: Any, address: str, with_spectrum: str
) -> None:
    open_page(tab, f"{address}/?seed={with_spectrum}&view=spectrum")

    chart = tab.locator(".st-key-seed [data-testid=stVegaLiteChart]")
    chart.wait_for()
    assert tab.locator(".card .curve polyline").count() == NUM_SIMULATED // 2 - 1


def test_show_more_adds_cutouts(tab: Any, address: str) -> None:
    open_page(tab, f"{address}/?shown=4")
    assert len(card_ids(tab)) == 4

    tab.locator("button.more").click()

    tab.locator(".card").nth(NUM_SIMULATED).wait_for()
    assert asked(tab)["shown"] == "52"
    assert not tab.locator("button.more").is_visible()


def test_an_id_with_markup_stays_text(tab: Any, address: str) -> None:
    open_page(tab, f"{address}/?seed=plain")
    place = card_ids(tab).index(HOSTILE)
    card = tab.locator(".card").nth(place)
    assert "".join(card.locator(".id span").all_inner_texts()) == HOSTILE
    assert card.locator("img").count() == 1

    card.click()

    wait_for_seed(tab, HOSTILE)
    tab.wait_for_timeout(500)
    assert tab.title() == "Skykin"
    assert tab.locator('img[src="x"]').count() == 0


def test_a_link_with_markup_stays_text(tab: Any, address: str) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"> [a](javascript:alert(1)) $x$"

    tab.goto(f"{address}/?seed={quote(attack)}&k={quote(attack)}")

    tab.get_by_text("No object", exact=False).or_(tab.get_by_text("no object")).first.wait_for()
    assert tab.title() == "Skykin"
    assert tab.locator('img[src="x"], a[href^="javascript"], .katex').count() == 0


@pytest.mark.parametrize("kind", ["CSV", "VOTable"])
def test_all_hits_can_be_downloaded(tab: Any, address: str, sky: Sky, kind: str) -> None:
    open_page(tab, f"{address}/?shown=4")
    expected = sky.search(Query(like=[asked(tab)["seed"]], k=NUM_SIMULATED + 1))

    with tab.expect_download() as started:
        tab.locator(".st-key-downloads").get_by_role("button", name=kind).click()

    content = Path(started.value.path()).read_bytes()
    if kind == "CSV":
        table = Table.read(content.decode(), format="ascii.ecsv")
    else:
        table = votable.parse_single_table(io.BytesIO(content)).to_table()
    assert table["object_id"].astype(str).tolist() == list(expected.ids)
    assert table["rank"].tolist() == list(range(1, NUM_SIMULATED + 2))


def test_the_seed_stays_in_sight_while_the_gallery_scrolls(tab: Any, address: str) -> None:
    tab.set_viewport_size({"width": 1440, "height": 700})
    open_page(tab, address)

    tab.locator("[data-testid=stDataFrame]").scroll_into_view_if_needed()
    tab.wait_for_timeout(300)

    box = tab.locator(".sk-seed").bounding_box()
    assert 0 <= box["y"] < 100


@pytest.mark.parametrize("width", [900, 1024, 1280, 1366, 1400, 1440, 1920])
def test_results_stand_beside_the_seed(tab: Any, address: str, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    open_page(tab, address)

    seed = tab.locator(".sk-seed").bounding_box()
    first = tab.locator(".card").first.bounding_box()
    assert first["x"] > seed["x"] + seed["width"]
    assert first["y"] < seed["y"] + seed["height"]
    overflow = tab.evaluate(
        "() => { const e = document.querySelector('[data-testid=stMain]');"
        " return e.scrollWidth - e.clientWidth; }"
    )
    assert overflow <= 0


def test_a_narrow_window_needs_no_sideways_scrolling(tab: Any, address: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    open_page(tab, address)

    overflow = tab.evaluate(
        "() => { const e = document.querySelector('[data-testid=stMain]');"
        " return e.scrollWidth - e.clientWidth; }"
    )

    assert overflow <= 0
    assert tab.locator(".card").first.bounding_box()["width"] > 140
