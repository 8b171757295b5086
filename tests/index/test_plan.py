"""`skykin plan`: bytes from the layout of files, hours from measured rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli import cli
from index import codec as codecs
from index import plan as plans
from index.codec import CodecConfig, Kind
from index.commands import commands
from index.plan import plan

GIB = 2**30


def test_200_million_are_what_the_design_says() -> None:
    planned = plan(200_000_000)
    gib = {name: value / GIB for name, value in planned.disk.items()}
    assert (planned.codec, planned.code_dim, planned.num_lists) == ("sq8", 64, 65_536)
    assert gib["store, float16 encoder vectors"] == pytest.approx(286 + 6, abs=0.2)  # + fingerprint
    assert gib["index, SQ8"] == pytest.approx(200e6 * 72 / GIB, abs=0.1)
    assert planned.ram["index, SQ8"] == planned.disk["index, SQ8"]
    assert planned.other_codes["index, RaBitQ"] / GIB == pytest.approx(9, abs=0.2)
    assert planned.gpu["IVF,SQ8"] / GIB == pytest.approx(50, abs=0.6)
    assert planned.gpu["exact, float16 on the device"] / GIB == pytest.approx(95.4, abs=0.1)


@pytest.mark.parametrize("num", [1, codecs.EXACT_ROWS, codecs.EXACT_ROWS + 1, 10_000_000])
def test_codecs_are_those_that_a_build_chooses(num: int) -> None:
    planned, chosen = plan(num), codecs.choose(num, plans.SEARCH_DIM)
    if chosen is None:
        assert (planned.codec, planned.num_lists, planned.other_codes) == (None, 0, {})
        assert not any("index" in name for name in (*planned.disk, *planned.ram))
        assert planned.ram["vectors.npy, mapped, scanned"] == num * 512
        assert list(planned.gpu) == ["exact, float16 on the device"]
    else:
        assert (planned.codec, planned.num_lists) == (chosen.kind, chosen.num_lists)
        assert f"index, {plans.CODES[chosen.kind]}" in planned.ram


@pytest.mark.parametrize(("kind", "code_dim"), [("rabitq", None), ("sq8", None), ("sq8", 16)])
@pytest.mark.parametrize("graph_size", [0, 1 << 20])
def test_bytes_of_codes_are_those_that_faiss_writes(
    kind: Kind, code_dim: int | None, graph_size: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "GRAPH_SIZE", graph_size)  # with and without a graph
    config = CodecConfig(kind=kind, dim=64, code_dim=code_dim, num_lists=128, num_iterations=1)
    vectors = np.random.default_rng(seed).standard_normal((6000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codec = codecs.train(vectors[:2000], config)
    written = len(faiss.serialize_index(codecs.fill(codec, [vectors])))
    assert plans.index_bytes(config, 6000) == pytest.approx(written, rel=0.05)
    assert plans.coarse_bytes(config) == pytest.approx(len(codec.trained), rel=0.1)


def test_hours_follow_from_the_rates() -> None:
    planned = plan(1_000_000)
    assert planned.hours["embed image, nano on 2 cores"] == pytest.approx(1e6 / 72 / 3600)
    rate = plans.RATES["fill_rabitq_cpu"].value
    assert rate is not None
    assert planned.hours["code all rows, RaBitQ, on 2 cores"] == pytest.approx(1e6 / rate / 7200)
    twice, once = (plan(num).hours["train the codec on 2 cores"] for num in (800_000_000, 10**9))
    assert twice == once  # as many lists and as large a sample


def test_what_nobody_measured_is_none_and_printed_so() -> None:
    planned = plan(1_000_000, views=("image", "spectrum"))
    assert planned.hours["embed image, AION-1 Base on one H200"] is None
    assert planned.hours["embed spectrum, nano on 2 cores"] is None
    assert planned.hours["train and code, SQ8, on one H200"] is None
    shown = CliRunner().invoke(commands, ["plan", "--objects", "1e6"]).stdout
    lines = {line[:50].strip(): line[50:].strip() for line in shown.splitlines()}
    assert lines["embed image, AION-1 Base on one H200"] == "not measured"
    for title in ("on disk", "memory to serve", "GPU memory (one of these)", "hours", "measured"):
        assert title in shown.splitlines()
    assert shown.splitlines()[-1].startswith("plan: 1,000,000 objects, views image, 768 dimensions")


def test_every_rate_says_where_it_stands_and_stands_there() -> None:
    results = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text()
    sections = {part.splitlines()[0].split(" (")[0]: part for part in results.split("\n## ")[1:]}
    for rate in plans.RATES.values():
        assert (rate.value is None) == (rate.measured_on == "") == (rate.source == "")
        if rate.value is not None:
            file, section = rate.source.split(", ")
            assert file == "benchmarks/RESULTS.md"
            assert any(
                f"{rate.value:{form}}" in sections[section] for form in (",g", ".3g", ",.0f")
            )


def test_views_add_up() -> None:
    one, two = plan(1_000_000), plan(1_000_000, views=("image", "joint"))
    for name, value in one.disk.items():
        factor = 1 if name.startswith("object table") else 2
        assert two.disk[name] == pytest.approx(factor * value, abs=1)


def test_json_is_one_document() -> None:
    done = CliRunner().invoke(commands, ["plan", "--objects", "200e6", "--dim", "1024", "--json"])
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["num_objects"] == 200_000_000
    assert told["disk"]["store, float16 encoder vectors"] == 200_000_000 * (2048 + 32)
    assert told["rates"]["embed_nano_cpu"]["value"] == 72
    assert {"disk", "ram", "gpu", "hours", "codec", "num_lists", "views"} <= set(told)


@pytest.mark.parametrize("views", [(), ("image", "image"), ("picture",)])
def test_views_that_are_none_are_refused(views: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected different views of image"):
        plan(10, views=views)


@pytest.mark.parametrize("objects", ["0", "-5", "nan", "inf", "-inf", "1e30", "0.5", "1000.5"])
def test_numbers_that_are_none_are_refused_in_one_line(
    objects: str,
) -> None:
    done = CliRunner().invoke(cli, ["plan", "--objects", objects])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "expected a whole number of objects from 1 to 1,000,000,000,000, got" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--objects", "abc"],
        [],
        ["--objects", "9", "--dim", "0"],
        ["--objects", "9", "--dim", "1000000000"],
    ],
)
def test_other_bad_input_is_refused_too(
    options: list[str],
) -> None:
    done = CliRunner().invoke(cli, ["plan", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr
    assert isinstance(done.exception, SystemExit)  # told, not thrown
