"""The nightly's benchmark: its files and encoder are real ones, and a small run of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from training import encoder as encoders
from training.observations import Observation
from training.surveys import reader

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def coefficients(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("simulated_coefficients")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("nightly")


def seen_in(file: Path, survey: str) -> list[Observation]:
    batches = list(reader(survey).read(file))
    assert not [each for batch in batches for each in batch.skipped]
    return [each for batch in batches for each in batch.observations]


def test_files_follow_from_cell_and_edition_alone(coefficients: ModuleType, tmp_path: Path) -> None:
    files = coefficients.Files(tmp_path / "files", 1_000)
    files.write_all()
    assert sum(map(files.num_rows, range(files.num_files))) == 1_000
    assert len(reader(coefficients.SURVEY).list_files(files.folder)) == files.num_files
    first = seen_in(files.path(3), coefficients.SURVEY)
    files.write(3)
    again = seen_in(files.path(3), coefficients.SURVEY)
    files.write(3, edition=1)
    later = seen_in(files.path(3), coefficients.SURVEY)

    fingerprints = [[each.fingerprint for each in some] for some in (first, again, later)]
    assert fingerprints[0] == fingerprints[1]
    assert set(fingerprints[0]).isdisjoint(fingerprints[2])
    ids = [[each.source_id for each in some] for some in (first, later)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == files.num_rows(3)
    places = [[(each.ra_deg, each.dec_deg) for each in some] for some in (first, later)]
    assert places[0] == places[1]


def test_the_encoder_reads_them_and_tells_them_apart(
    coefficients: ModuleType, tmp_path: Path
) -> None:
    files = coefficients.Files(tmp_path / "files", 1_000)
    files.write(0)
    coefficients.write_encoder(tmp_path / "encoder")
    encoder = encoders.load(tmp_path / "encoder")
    seen = seen_in(files.path(0), coefficients.SURVEY)[:40]

    embedded = encoder.embed(seen)

    assert set(embedded.views) == {coefficients.VIEW}
    found = encoder.search_vectors(embedded.vectors, coefficients.VIEW)
    cosines = (found @ found.T)[~np.eye(len(found), dtype=bool)]
    assert np.abs(np.median(cosines)) < 0.3  # spread, not all alike
    assert cosines.max() < 0.999


def test_a_night_changes_a_hundredth_and_says_how_much(
    benchmark: ModuleType, coefficients: ModuleType, tmp_path: Path
) -> None:
    files = coefficients.Files(tmp_path / "files", 400 * 12 * 64)
    for cell in range(0, files.num_files, 96):
        files.write(cell)
        files.write(cell + 1)

    came, went, embedded = benchmark.change(files, 0)

    assert files.num_files == 768
    assert (came, went, embedded) == (800, 800, 4 * 400 + 800)
    there = [file for file in files.folder.rglob("*.parquet")]
    assert len(there) == 16 + 2 - 2
    second = benchmark.change(files, 1)
    assert second == (came, went, embedded)


def test_the_figures_are_those_of_the_nights(benchmark: ModuleType) -> None:
    def night(name: str, seconds: float, embedding: float) -> Any:
        stages = {"load the encoder": 1.0, "read and embed": embedding - 1.0, "write": 3.0}
        return benchmark.Night(name, seconds, seconds / 2, stages, 100.0, 10, 1)

    nights = [night("full", 300.0, 200.0), night("unchanged", 3.0, 1.0)]
    nights += [night("one percent", each, 2.0) for each in (9.0, 30.0, 6.0)]
    document = benchmark.document([*nights, night("unchanged", 4.0, 1.0)])

    assert document["nightly"] == {"full_s": 300.0, "one_percent_s": 9.0, "unchanged_s": 4.0}
    assert document["without_embedding"]["full_s"] == 100.0
    assert document["shares"] == {
        "with_embedding": 0.03, "without_embedding": 0.07, "of_cpu": 0.03,
    }  # fmt: skip


@pytest.mark.slow
def test_a_small_run_of_the_script(tmp_path: Path) -> None:
    command = [
        sys.executable, str(BENCHMARKS / "nightly.py"), "--json", "--objects", "5000", "--nights",
        "1", "--workers", "0", "--work", str(tmp_path),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    )

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    report = json.loads(done.stdout)
    assert [each["name"] for each in report["nights"]] == [
        "full", "unchanged", "one percent", "unchanged",
    ]  # fmt: skip
    figures = report["nightly"]
    assert 0 < figures["unchanged_s"] < figures["full_s"]
    assert report["without_embedding"]["full_s"] < figures["full_s"]
    assert report["nights"][1]["num_embedded"] == 0
