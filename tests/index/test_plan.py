"""`skykin plan`: bytes from the layout of files, hours from measured rates."""

from __future__ import annotations

import json
from typing import Any

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

from index import plan as plans
from index.commands import commands
from index.plan import plan


def test_200_million_are_what_the_design_says() -> None:
    planned = plan(200_000_000)
    gib = {name: value / 2**30 for name, value in planned.disk.items()}
    assert planned.num_lists == 65_536
    assert gib["store, float16 encoder vectors"] == pytest.approx(286 + 6, abs=0.2)  # + fingerprint
    assert gib["index, RaBitQ"] == pytest.approx(9, abs=0.2)
    assert gib["index, SQ8"] == pytest.approx(49, abs=0.5)
    assert planned.gpu["IVF,SQ8"] / 2**30 == pytest.approx(50, abs=0.6)
    filled = planned.hours["index, SQ8, flat coarse quantizer, on 2 cores"]
    assert filled == pytest.approx(8.9 + 1.6, abs=0.1)  # to fill, after k-means


def test_bytes_of_codes_are_those_that_faiss_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "EXACT_ROWS", 1000)
    num = 20_000
    planned = plan(num)
    vectors = np.random.default_rng(0).standard_normal((num, 256)).astype(np.float32)
    for name, key, near in (  # 39 rows a list, of which RaBitQ pads each to 32
        ("index, SQ8", "IVF{},SQ8", 0.005),
        ("index, RaBitQ", "IVF{},RaBitQfs", 0.05),
    ):
        index: Any = faiss.index_factory(256, key.format(planned.num_lists))
        index.cp.niter = 1
        index.train(vectors)
        index.add(vectors)
        written = len(faiss.serialize_index(index))
        assert written == pytest.approx(planned.disk[name], rel=near)


def test_nothing_is_indexed_that_is_scanned() -> None:
    planned = plan(plans.EXACT_ROWS)
    assert planned.num_lists == planned.disk["index, SQ8"] == planned.ram["index, SQ8"] == 0
    assert planned.ram["vectors, float32, scanned"] == plans.EXACT_ROWS * 1024


def test_what_nobody_measured_is_none_and_printed_so() -> None:
    planned = plan(1_000_000, views=("image", "spectrum"))
    assert planned.hours["embed image, AION-1 Base on one H200"] is None
    assert planned.hours["embed spectrum, nano on 2 cores"] is None
    assert planned.hours["embed image, nano on 2 cores"] == pytest.approx(1e6 / 72 / 3600)
    shown = CliRunner().invoke(commands, ["plan", "--objects", "1e6"]).stdout
    assert "AION-1 Base on one H200                    not measured" in shown
    for rate in plans.RATES.values():
        assert (rate.value is None) == (rate.measured_on == "") == (rate.source == "")


def test_views_add_up() -> None:
    one, two = plan(1_000_000), plan(1_000_000, views=("image", "joint"))
    for name, value in one.disk.items():
        factor = 1 if name == "object table" else 2
        assert two.disk[name] == pytest.approx(factor * value, abs=1)


def test_json_is_one_document() -> None:
    done = CliRunner().invoke(commands, ["plan", "--objects", "200e6", "--dim", "1024", "--json"])
    told = json.loads(done.stdout)
    assert told["num_objects"] == 200_000_000
    assert told["disk"]["store, float16 encoder vectors"] == 200_000_000 * (2048 + 32)
    assert told["rates"]["embed_nano_cpu"]["value"] == 72


@pytest.mark.parametrize("views", [(), ("image", "image"), ("picture",)])
def test_views_that_are_none_are_refused(views: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected different views of image"):
        plan(10, views=views)


def test_no_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one object"):
        plan(0)
