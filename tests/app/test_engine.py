"""What the operator of a page chooses reaches every search of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import app.main
from app.engine import Engine, from_argument, to_argument
from app.serving import command
from discovery import Sky
from discovery.query import Query

MAIN = str(Path(app.main.__file__))


@pytest.mark.parametrize(
    "engine",
    [
        Engine(),
        Engine(device="cuda:1", recall=1.0),
        Engine(cluster="ray://10.0.0.1:10001", recall=0.995),
    ],
)
def test_a_process_is_told_what_was_chosen(engine: Engine) -> None:
    *_, folder, argument = command(Path("a sky"), port=8501, engine=engine)

    assert Path(folder) == Path("a sky").resolve()
    assert from_argument(argument) == engine
    assert from_argument(to_argument(engine)) == engine


@pytest.mark.parametrize("recall", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_recall_that_cannot_be_is_refused(recall: float) -> None:
    with pytest.raises(ValueError, match="recall must be above 0 and up to 1, got"):
        Engine(recall=recall)


def test_every_search_of_a_page_asks_for_the_recall(
    sky_folder: Path, with_spectrum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    search = Sky.search

    def listening(sky: Sky, query: Query) -> Any:
        asked.append(float(query.recall))
        return search(sky, query)

    monkeypatch.setattr(Sky, "search", listening)
    at = _page(sky_folder, Engine(recall=0.9), monkeypatch, seed=with_spectrum)

    assert not at.error
    assert asked
    assert set(asked) == {0.9}


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_said_in_words(
    sky_folder: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    at = _page(sky_folder, Engine(device=device), monkeypatch)

    assert len(at.error) == 1
    assert device in at.error[0].value.replace("\\", "")


def test_what_a_cluster_could_not_search_stands_above_the_results(sky_folder: Path) -> None:
    at = AppTest.from_function(_with_a_part_missing, args=(str(sky_folder),), default_timeout=60)
    at.run()

    assert not at.exception
    (warning,) = at.warning
    said = warning.value.replace("\\", "")  # signs that Markdown would read are marked
    assert said == (
        "25.0% of the rows of view image (9 in 000002) were not searched: its actor did not answer"
    )


def _with_a_part_missing(folder: str) -> None:
    from dataclasses import replace

    import discovery
    from app.page_state import PageState
    from app.results_panel import draw_results
    from index.cluster import Missing

    sky = discovery.open(folder)
    hits = sky.search(discovery.Query(like=[sky.random_bright(0)], view="image", k=3))
    lost = Missing("image", ("000002",), 9, 0.25, "its actor did not answer")
    draw_results(
        sky, PageState(), replace(hits, missing=(lost,)),
        on_pick=lambda object_id: None, on_more=lambda: None,
    )  # fmt: skip


def _page(
    sky_folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, **params: str
) -> AppTest:
    monkeypatch.setattr("sys.argv", [MAIN, str(sky_folder), to_argument(engine)])
    at = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in params.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at
