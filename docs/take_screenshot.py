"""Take docs/screenshot.png: open the page of a sky in a headless Chromium and photograph it.

.venv/bin/python docs/take_screenshot.py SKY [--seed ID] [--view VIEW] [--out FILE]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

from app.serving import free_port, page

CHROMIUM_ARGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE_MS = 120_000


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sky", type=Path)
    parser.add_argument("--seed", help="object id; by default the one the page opens with")
    parser.add_argument("--view", help="view to compare by; by default the seed's own")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("screenshot.png"))
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    asked = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("chromium is not installed: make browser")
    params = {name: getattr(asked, name) for name in ("seed", "view") if getattr(asked, name)}
    with page(asked.sky, port=free_port()) as (_, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        tab = browser.new_page(viewport={"width": asked.width, "height": asked.height})
        tab.goto(f"{address}/?{urlencode(params)}")
        tab.wait_for_selector(".card", timeout=PATIENCE_MS)
        tab.wait_for_function(
            "() => [...document.images].every(picture => picture.complete)", timeout=PATIENCE_MS
        )
        tab.wait_for_timeout(3000)  # the spectrum is drawn last
        tab.screenshot(path=asked.out)
        browser.close()
    print(f"{asked.out}: {asked.width} x {asked.height} pixels")


if __name__ == "__main__":
    main()
