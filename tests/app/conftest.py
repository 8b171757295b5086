"""A small real sky for the page, served on 127.0.0.1, and a Chromium to look at it.

24 simulated objects, half of them with a spectrum, and two colour pictures without a position; the
name of one of them is an attack.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

import discovery
from app.serving import free_port, page
from discovery import Sky
from index.building import build
from tests.training.small_encoder import save_encoder
from training.surveys.simulated import clear_sky, simulate

NUM_SIMULATED = 24
HOSTILE = "<img src=x onerror=document.title='owned'>"
PICTURES = (HOSTILE, "plain")
CHROMIUM_ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit's AppTest leaves its script as `__main__`, which spawned workers would run."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder of the real architecture."""
    return save_encoder(tmp_path_factory.mktemp("page_encoder"))


@pytest.fixture(scope="session")
def sky_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sky on disk; tests do not write to it."""
    folder = tmp_path_factory.mktemp("page")
    config = clear_sky(num_objects=NUM_SIMULATED, seed=5, spectrum_fraction=0.5)
    survey = simulate(config, folder / "survey", num_workers=1)
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name in PICTURES:
        pixels = rng.integers(0, 90, (160, 160, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(pictures / f"{name}.png")
    sky = folder / "small_sky"
    for name, source in (("simulated", survey), ("composite", pictures)):
        report = build(sky, [source], survey=name, encoder=encoder_folder, num_workers=0)
        assert not report.skipped
    return sky


@pytest.fixture(scope="session")
def sky(sky_folder: Path) -> Sky:
    """The small sky, open."""
    return discovery.open(sky_folder)


@pytest.fixture(scope="session")
def with_spectrum(sky: Sky) -> str:
    """Id of an object with image and spectrum."""
    return _first(sky, has_spectrum=True)


@pytest.fixture(scope="session")
def without_spectrum(sky: Sky) -> str:
    """Id of an object with an image and a position, without a spectrum."""
    return _first(sky, has_spectrum=False)


def _first(sky: Sky, *, has_spectrum: bool) -> str:
    hits = sky.search(discovery.Query(like=["plain"], where="mag_r < 99", view="image"))
    return next(
        object_id
        for object_id in hits.ids
        if ("spectrum" in str(sky.object(object_id)["views"])) == has_spectrum
    )


@pytest.fixture(scope="session")
def address(sky_folder: Path) -> Iterator[str]:
    """Where the page of the small sky is served."""
    with page(sky_folder, port=free_port()) as (_, served):
        yield served


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window; the test skips where it is absent."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: make browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A fresh browser context with one page."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()
