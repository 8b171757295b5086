"""A page that is open follows every night without a restart and without a failed query."""

from __future__ import annotations

import threading
from pathlib import Path

import discovery
from discovery import Query
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
from index.versions import numbers
from tests.discovery.conftest import Files, write_cutout


def test_open_pages_follow_every_night_without_a_failed_query(files: Files, tmp_path: Path) -> None:
    """Each night the version before is pruned as soon as nobody reads it."""
    folder, sources = tmp_path / "sky", tmp_path / "cutouts"
    sources.mkdir()
    for n in range(3):
        write_cutout(sources / f"{n}.fits", 10.0 + n, 10.0, seed=n)
    config = NightlyConfig(
        sources=(SourceConfig(survey="legacysurvey", path=str(sources)),),
        encoder=str(files.encoder),
        num_workers=0,
        keep_versions=1,
        keep_days=0.0,
    )
    nightly(folder, config)
    sky = discovery.open(folder)  # shared by sessions, as app.search_page shares it
    stop = threading.Event()
    failed: list[BaseException] = []
    answered: dict[int, set[int]] = {}  # version -> numbers of hits

    def asks() -> None:
        while not stop.is_set():
            try:
                sky.refresh()
                hits = sky.search(Query(like=["0"], where="dec_deg > 0"))
                answered.setdefault(hits.version, set()).add(len(hits))
                sky.object(hits.ids[0])
            except BaseException as error:
                failed.append(error)
                return

    sessions = [threading.Thread(target=asks) for _ in range(2)]
    for session in sessions:
        session.start()
    try:
        for n in (3, 4, 5):
            write_cutout(sources / f"{n}.fits", 10.0 + n, 10.0, seed=n)
            assert nightly(folder, config).outcome == "published"
    finally:
        stop.set()
        for session in sessions:
            session.join()

    assert not failed, failed
    assert sky.refresh() or sky.version == 4
    assert len(sky.search(Query(like=["0"]))) == 5
    assert answered[1] == {2}
    assert all(hits == {version + 1} for version, hits in answered.items())
    nightly(folder, config)
    assert numbers(folder) == [4]
