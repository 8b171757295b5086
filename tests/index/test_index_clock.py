"""A clock that goes backwards, as after a battery or a time server failed: no night is lost."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from index import nightly as nights
from index import pruning, writing
from index.nightly import nightly
from index.versions import current_number, numbers, open_version, verify, versions
from tests.index.conftest import write_cutout
from tests.index.test_index_nightly import config_of, ids


def set_clock(patch: pytest.MonkeyPatch, year: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return datetime(year, 1, 1, tzinfo=tz)

    for module in (writing, nights, pruning):
        patch.setattr(module, "datetime", Clock)


def test_nights_follow_each_other_whatever_the_clock_says(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sky, files = tmp_path / "sky", tmp_path / "files"
    config = config_of(encoder, ("legacysurvey", files), keep_versions=1, keep_days=7.0)
    years = (2030, 2020, 1970)  # each night the clock is wrong by more
    for number, year in enumerate(years, 1):
        set_clock(monkeypatch, year)
        write_cutout(files / f"{number}.fits", number)
        changed = write_cutout(files / "same.fits", 50 + number)  # of the same size each night
        stamp = datetime(year, 1, 1, tzinfo=UTC).timestamp()
        os.utime(changed, (stamp, stamp))
        report = nightly(sky, config)
        assert (report.outcome, report.version) == ("published", number)
        assert report.started_at_utc.startswith(str(year))
        assert report.seconds["all"] >= 0
        assert ("same" in report.objects_changed.names) == (number > 1)
        assert number in numbers(sky)
        assert current_number(sky) == number
    # those of the future are young: none that the policy may still want is gone
    assert numbers(sky) == [1, 2, 3]
    assert [each.built_at_utc[:4] for each in versions(sky)] == ["2030", "2020", "1970"]
    assert ids(open_version(sky)) == ["1", "2", "3", "same"]
    monkeypatch.undo()
    set_clock(monkeypatch, 2031)  # right again: what is old goes by age, once
    assert nightly(sky, config).outcome == "unchanged"
    assert numbers(sky) == [3]
    assert not verify(sky).problems
