"""Segments on Ray actors, and files read and embedded by Ray Data, beside one process.

All of it needs Ray, the extra `cluster` (`make test-cluster`), but for the first tests.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

import discovery
from discovery import Query
from index import coding, ray_nodes, recall
from index.choosing import choose
from index.cluster import Holder, Holders, Missing, machine_for
from index.cluster_embedding import stream
from index.codec import IndexConfig
from index.compacting import compact
from index.embedding import Work
from index.errors import ClusterUnavailable, PartMissing, VersionCorrupt
from index.footprint import covers
from index.nightly import nightly
from index.nightly_config import read_nightly
from index.ray_nodes import Cluster
from index.versions import Version, open_version
from index.workers import Died
from tests.index.conftest import Builder, write_cutout, write_spectrum

HAS_RAY = find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: skykin[cluster]")
# of Ray Data at its own settings
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SEGMENTS, DIM = (4_300, 4_100, 600, 400), 16
NUM_DIFFERENT = 4_800  # vectors; the rest are twins of these, in other segments
LOCAL = Cluster(address="local", num_actors=2)


def test_ray_is_imported_by_who_asks_for_a_cluster_and_by_nobody_else(
    tmp_path: Path, made: Path
) -> None:
    (tmp_path / "ray.py").write_text("print('imports ray')\nraise SystemExit(7)\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); "
        "import discovery, index.building, index.cluster; "
        "sky = discovery.open(sys.argv[1]); "
        "print(len(sky.search(discovery.Query(like=['7'], k=3)).ids)); "
        "discovery.open(sys.argv[1], cluster='local')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(made), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.returncode) == ("3\nimports ray\n", 7), done.stderr


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(made: Path) -> None:
    from app.cli import explain

    with pytest.raises(ModuleNotFoundError) as told:
        discovery.open(made, cluster="local")
    assert "skykin[cluster]" in str(explain(told.value))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"address": ""}, "expected the address"),
        ({"address": "local", "num_actors": 0}, "num_actors of 1 or more, got 0"),
        ({"address": "local", "num_replicas": 0}, "num_replicas of 1 or more, got 0"),
        ({"address": "local", "patience_seconds": 0}, "patience_seconds above 0, got 0"),
    ],
)
def test_what_no_cluster_can_be_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Cluster(**wrong)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four segments, two of them coded, with equal vectors in different ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(coding, "NUM_QUERIES", 32)
        patch.setattr(recall, "NUM_TIMED", 2)
        writer = importlib.import_module("synthetic_sky")
        vectors = importlib.import_module("synthetic_vectors")

        class Twins(vectors.Population):  # type: ignore[name-defined, misc]
            def blocks(self, num_rows: int) -> Iterator[Any]:
                for block in super().blocks(num_rows):
                    same = np.arange(len(block.vectors)) % NUM_DIFFERENT
                    yield replace(block, vectors=block.vectors[same])

        sky = tmp_path_factory.mktemp("spread") / "sky"
        index = IndexConfig(exact_rows=6_000)
        writer.write_sky(sky, Twins(dim=DIM), segment_rows=list(SEGMENTS), index=index)
        np.save(sky.parent / "queries.npy", vectors.Population(dim=DIM).queries(40))
        yield sky


@pytest.fixture(scope="module")
def queries(made: Path) -> ndarray:
    loaded: ndarray = np.load(made.parent / "queries.npy")
    return loaded


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine with two CPUs; each test joins what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_nodes, "num_cores", lambda: 2)
        with ray_nodes.joined("local"):
            module = importlib.import_module("ray")
            yield module
    assert not module.is_initialized()


@pytest.fixture(scope="module")
def alone(made: Path) -> Version:
    return open_version(made)


@pytest.fixture(scope="module")
def spread(made: Path, ray: Any) -> Iterator[Version]:
    version = open_version(made, cluster=LOCAL)
    assert version.holders is not None
    yield version
    version.holders.close()


def holders_of(version: Version) -> Holders:
    assert version.holders is not None
    return version.holders


def pids_of(ray: Any, version: Version) -> list[list[int]]:
    pid = lambda holder: os.getpid()  # noqa: E731
    return [
        [ray.get(actor.__ray_call__.remote(pid)) for actor in replicas]
        for replicas in holders_of(version).actors
    ]


def same(one: Version, two: Version, queries: ndarray, **asked: Any) -> None:
    asked = {"view": "image", "k": 10, **asked}
    mine, theirs = (each.search(queries, **asked) for each in (one, two))
    np.testing.assert_array_equal(mine.keys, theirs.keys)
    np.testing.assert_array_equal(mine.scores, theirs.scores)
    assert mine.scores.dtype == theirs.scores.dtype


@needs_ray
@pytest.mark.parametrize(
    "asked",
    [
        {}, {"k": 1}, {"k": 300}, {"recall": 1}, {"recall": 0.8}, {"k": 9_500},
        {"exclude": np.arange(0, 900)}, {"exclude": np.arange(0, 3_000)},
        {"keys": np.array([7, 7 + NUM_DIFFERENT, 5_000])}, {"keys": np.empty(0, np.int64)},
        {"view": "any"},
    ],
    ids=str,
)  # fmt: skip
def test_actors_find_what_one_process_finds(
    asked: dict[str, Any], alone: Version, spread: Version, queries: ndarray
) -> None:
    assert [len(group) for group in holders_of(spread).actors] == [1, 1]
    same(alone, spread, queries, **asked)
    same(alone, spread, queries[:1], **asked)


@needs_ray
def test_directions_and_ties_are_those_of_one_process(
    alone: Version, spread: Version, queries: ndarray
) -> None:
    same(alone, spread, queries[:10] - queries[10:20])
    twins = alone.vectors(np.arange(20), "image")
    same(alone, spread, twins, k=2)
    found = spread.search(twins, view="image", k=2, recall=1)
    np.testing.assert_array_equal(found.scores[:, 0], found.scores[:, 1])
    np.testing.assert_array_equal(found.keys[:, 1] - found.keys[:, 0], NUM_DIFFERENT)


@needs_ray
def test_a_filter_is_sent_once(alone: Version, spread: Version, queries: ndarray) -> None:
    holders = holders_of(spread)
    mine = choose(spread, where="random_share < 0.3", cone=(0.5, 0.5, 1_500.0))
    before = len(holders._sent)
    for _ in range(3):
        found = spread.search(queries, view="image", k=10, chosen=mine)
        theirs = choose(alone, where="random_share < 0.3", cone=(0.5, 0.5, 1_500.0))
        expected = alone.search(queries, view="image", k=10, chosen=theirs)
        np.testing.assert_array_equal(found.keys, expected.keys)
        np.testing.assert_array_equal(found.scores, expected.scores)
    assert len(holders._sent) == before + 1
    assert mine.num_among(np.ones(spread.manifest.next_object_key, bool)) > 10


@needs_ray
def test_wrong_questions_are_refused_as_in_one_process(spread: Version, queries: ndarray) -> None:
    with pytest.raises(ValueError, match="unknown view 'xp'"):
        spread.search(queries, view="xp", k=3)
    with pytest.raises(ValueError, match="scaled to unit length"):
        spread.search(np.zeros((1, DIM), np.float32), view="image", k=3)


@needs_ray
def test_an_actor_killed_in_mid_query_is_replaced(
    alone: Version, made: Path, ray: Any, queries: ndarray
) -> None:
    version = open_version(made, cluster=LOCAL)
    before = pids_of(ray, version)
    (actor,) = holders_of(version).actors[0]
    sleeping = [actor.__ray_call__.remote(lambda _: time.sleep(60)) for _ in range(8)]
    # all its threads sleep: the query is there, and waits, when the process goes
    threading.Timer(1.0, os.kill, (before[0][0], signal.SIGKILL)).start()
    started = time.monotonic()
    same(version, alone, queries)
    assert time.monotonic() - started > 0.9
    for each in sleeping:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(each)
    after = pids_of(ray, version)
    assert after[0] != before[0]
    assert after[1] == before[1]
    holders_of(version).close()


@needs_ray
def test_another_replica_answers_for_one_that_is_lost(
    alone: Version, made: Path, ray: Any, queries: ndarray
) -> None:
    version = open_version(made, cluster=replace(LOCAL, num_actors=1, num_replicas=2))
    ((first, second),) = pids_of(ray, version)
    os.kill(first, signal.SIGKILL)
    for _ in range(2):  # whoever's turn it is
        same(version, alone, queries)
    ((stand_in, still_there),) = pids_of(ray, version)
    assert still_there == second
    assert stand_in != first
    holders_of(version).close()


@pytest.mark.parametrize(
    ("others", "taken", "shunned", "gpus", "expected"),
    [
        ("", "", "", 0, "a"),
        ("a", "a", "", 0, "b"),
        ("b", "aabc", "", 0, "c"),
        ("abc", "abca", "", 0, "b"),
        ("bc", "bc", "a", 0, "b"),  # with another replica rather than where none may live
        ("", "", "a", 0, "b"),
        ("", "b", "", 1, "b"),  # of its two GPUs one is left, the others have none
        ("b", "b", "b", 1, "b"),
        ("", "bb", "", 1, "a"),  # none has one: Ray tells
    ],
)
def test_replicas_go_apart_and_machines_fill_evenly(
    others: str, taken: str, shunned: str, gpus: int, expected: str
) -> None:
    nodes = [{"NodeID": each, "Resources": {"GPU": 2.0} if each == "b" else {}} for each in "abc"]
    chosen = machine_for(nodes, [*others], Counter(taken), shunned=shunned, gpus=gpus)
    assert chosen["NodeID"] == expected


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_machine_lost_in_mid_query_is_done_without(made: Path, num_replicas: int) -> None:
    program, queries = Path(__file__).with_name("lost_machine.py"), made.parent / "queries.npy"
    done = subprocess.run(
        [sys.executable, str(program), str(made), str(queries), str(num_replicas)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | ray_nodes._QUIET | {ray_nodes._LOOPBACK: "0", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])

    assert told["nodes"] == 3
    assert [len(set(places)) for places in told["before"]] == [num_replicas] * 2
    assert told["waiting"] >= 4 // num_replicas
    assert told["answers"] == [{"is_same": True, "missing": []}] * 4
    assert [len(set(places)) for places in told["after"]] == [num_replicas] * 2
    assert not any(told["lost"] in places for places in told["after"])


@needs_ray
def test_what_cannot_be_opened_again_is_told(
    alone: Version, made: Path, tmp_path: Path, ray: Any, queries: ndarray
) -> None:
    sky = Path(shutil.copytree(made, tmp_path / "sky"))
    opened = discovery.open(sky, cluster=LOCAL)
    version = opened._version
    ((lost,), _) = pids_of(ray, version)
    names = holders_of(version)._groups[0].names
    os.rename(sky / "versions", sky / "gone")  # the disk that all machines see is not there
    os.kill(lost, signal.SIGKILL)

    missing: list[Missing] = []
    found = version.search(queries, view="image", k=10, recall=1, missing=missing)
    left = [live for live in alone.segments if live.segment.name not in names]
    keys = np.concatenate([live.segment.object_key for live in left])
    expected = alone.search(queries, view="image", k=10, recall=1, keys=keys)
    np.testing.assert_array_equal(found.keys, expected.keys)
    np.testing.assert_array_equal(found.scores, expected.scores)
    (part,) = missing
    assert part.segments == tuple(sorted(names))
    assert part.num_rows == sum(SEGMENTS) - len(keys)
    assert part.share == pytest.approx(part.num_rows / sum(SEGMENTS))
    assert "manifest.json is missing" in part.reason

    with pytest.raises(PartMissing, match="of the rows of view image") as told:
        version.search(queries, view="image", k=10)
    assert told.value.missing == (part,)
    hits = opened.search(Query(like=["7"], k=5, recall=1))
    assert hits.missing == (part,)
    assert hits.to_json()["query"]["missing"][0]["num_rows"] == part.num_rows  # type: ignore[index]

    where = opened.missing_footprint(hits)
    assert where is not None
    table = alone.objects(np.setdiff1d(np.arange(sum(SEGMENTS)), keys))
    assert covers(where, table["ra_deg"].to_numpy(), table["dec_deg"].to_numpy()).all()
    assert where.sky_fraction <= footprint_of(alone)

    os.rename(sky / "gone", sky / "versions")
    assert opened.search(Query(like=["7"], k=5, recall=1)).missing == ()
    opened.close()


@needs_ray
def test_who_does_not_answer_in_time_is_told(made: Path, ray: Any, queries: ndarray) -> None:
    version = open_version(made, cluster=LOCAL)
    holders = holders_of(version)
    holders.cluster = replace(LOCAL, patience_seconds=1.0)
    (actor,) = holders.actors[1]
    sleeping = [actor.__ray_call__.remote(lambda _: time.sleep(4)) for _ in range(8)]
    with pytest.raises(PartMissing, match=r"no answer within 1 s"):
        version.search(queries, view="image", k=10)
    ray.get(sleeping)  # it was not ended
    version.search(queries, view="image", k=10)
    holders.close()


@needs_ray
def test_a_damaged_index_is_named_as_in_one_process(made: Path, tmp_path: Path, ray: Any) -> None:
    sky = Path(shutil.copytree(made, tmp_path / "sky"))
    index = next(sky.glob("segments/*/index.faiss"))
    content = bytearray(index.read_bytes())
    content[100] ^= 1
    index.write_bytes(content)
    with pytest.raises(ClusterUnavailable, match=r"cannot be opened.*index\.faiss"):
        discovery.open(sky, cluster=LOCAL)
    with pytest.raises(VersionCorrupt, match=r"index\.faiss"):
        Holder(str(sky), 1, [index.parent.name], device="cpu", num_threads=1)


@needs_ray
def test_a_sky_follows_what_is_published(made: Path, tmp_path: Path, ray: Any) -> None:
    sky = Path(shutil.copytree(made, tmp_path / "sky"))
    query = Query(like=["7"], unlike=["12"], where="random_share < 0.5", exclude=["70"], k=20)
    with discovery.open(sky, cluster="local") as opened, discovery.open(sky) as here:
        (before, *_), *_ = pids_of(ray, opened._version)
        assert not opened.refresh()
        assert compact(sky).published
        assert opened.refresh()
        assert here.refresh()
        assert opened.version == here.version == 2
        hits, expected = opened.search(query), here.search(query)
        assert hits.ids == expected.ids
        np.testing.assert_array_equal(hits.scores, expected.scores)
        wait_for(lambda: not is_alive(before))  # those of the version before
        (last, *_), *_ = pids_of(ray, opened._version)
    wait_for(lambda: not is_alive(last))


@needs_ray
def test_one_process_is_in_one_cluster(made: Path, ray: Any) -> None:
    with pytest.raises(ValueError, match="is in the cluster 'local' already"):
        discovery.open(made, cluster="127.0.0.1:1")


@needs_ray
def test_ray_listens_on_this_machine_alone(ray: Any) -> None:
    (node,) = ray_nodes.alive_nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert node["Resources"]["CPU"] == 2
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def footprint_of(version: Version) -> float:
    assert version.moc is not None
    return float(version.moc.sky_fraction)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], *, seconds: int = 30) -> None:
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"it did not come true within {seconds} s")


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Cutouts, and two files that are none."""
    for number in range(100, 140):
        position = (number, 2.0)
        write_cutout(tmp_path / "cutouts" / f"{number}.fits", number, position=position)
    (tmp_path / "cutouts" / "198.fits").write_bytes(b"no FITS file")
    (tmp_path / "cutouts" / "199.fits").write_bytes(b"")
    return tmp_path / "cutouts"


def stored(sky: Path) -> dict[tuple[str, str], bytes]:
    """View and fingerprint -> vector."""
    found = {}
    for part in sorted(sky.glob("store/*/*/*/")):
        vectors = np.load(part / "vectors.npy")
        for name, vector in zip(np.load(part / "fingerprint.npy"), vectors, strict=True):
            key = part.parent.name, bytes(name).hex()
            assert key not in found  # nothing is there twice
            found[key] = vector.tobytes()
    return found


@needs_ray
def test_a_cluster_embeds_what_one_machine_embeds(
    survey: Path, tmp_path: Path, into: Builder, ray: Any
) -> None:
    spectra = tmp_path / "spectra"
    for number in range(100, 140, 4):
        write_spectrum(
            spectra / f"s{number}.fits", str(number), fiber=number, position=(number, 2.0)
        )
    where: dict[str, dict[str, str]] = {"here": {}, "there": {"cluster": "local"}}
    for sky, options in where.items():
        images = into(tmp_path / sky, survey, "legacysurvey", **options)
        both = into(tmp_path / sky, spectra, "sdss", **options)
        assert (images.num_embedded, both.num_embedded, both.num_joint) == (40, 10, 10)
        assert sorted(Path(each.file).name for each in images.skipped) == ["198.fits", "199.fits"]
    here, there = stored(tmp_path / "here"), stored(tmp_path / "there")
    assert {view for view, _ in there} == {"image", "spectrum", "joint"}
    assert there == here  # bit for bit
    names = [sorted(path.name for path in (tmp_path / sky / "segments").iterdir()) for sky in where]
    assert names[0] == names[1]  # they tell the content
    assert not list((tmp_path / "there").rglob(".tmp-*"))

    query = Query(like=["100"], view="any", k=30)
    with discovery.open(tmp_path / "there", cluster="local") as opened:
        hits, expected = opened.search(query), discovery.open(tmp_path / "here").search(query)
    assert hits.ids == expected.ids  # ranks of three views
    np.testing.assert_array_equal(hits.scores, expected.scores)


@needs_ray
def test_what_ends_its_process_is_told_and_the_rest_is_done(tmp_path: Path, ray: Any) -> None:
    def read(task: list[int]) -> Iterator[int]:
        for number in task:
            if number == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    def setup(device: str) -> Callable[[int], int]:
        def embed(number: int) -> int:
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return -number

        return embed

    tasks = deque([[0, 1, 2, 3], [4, 5], [6, 7, 8]])
    done: set[int] = set()
    died = []
    cluster = Cluster(address="local")
    for task, piece in stream(Work(read, setup), tasks, cluster=cluster, folder=tmp_path):
        if not isinstance(piece, Died):
            assert -piece in task
            done.add(-piece)
        elif len(task) == 1:
            died += task
        else:
            tasks.extend([number] for number in task if number not in done)
    assert sorted(died) == [2, 7]
    assert sorted(done) == [0, 1, 3, 4, 5, 6, 8]
    assert not list(tmp_path.iterdir())


@needs_ray
def test_a_fault_of_a_step_is_not_taken_for_a_bad_file(tmp_path: Path, ray: Any) -> None:
    def setup(device: str) -> Callable[[int], int]:
        return lambda number: 1 // number

    tasks = deque([[1], [0]])
    pieces = stream(Work(iter, setup), tasks, cluster=Cluster(address="local"), folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)a worker failed.*ZeroDivisionError"):
        list(pieces)
    assert not list(tmp_path.iterdir())


@needs_ray
def test_embedding_goes_on_from_the_same_store(
    survey: Path, tmp_path: Path, into: Builder, ray: Any
) -> None:
    sky, some = tmp_path / "sky", tmp_path / "some"
    some.mkdir()
    for number in range(100, 110):
        os.link(survey / f"{number}.fits", some / f"{number}.fits")
    assert into(sky, some, "legacysurvey").num_embedded == 10
    shutil.rmtree(some)
    before = stored(sky)
    report = into(sky, survey, "legacysurvey", cluster="local")
    assert (report.num_embedded, report.num_objects) == (30, 40)
    after = stored(sky)
    assert (len(before), len(after)) == (2 * 10, 2 * 40)  # two views of each
    assert before.items() <= after.items()


@needs_ray
def test_a_nightly_embeds_on_the_cluster_that_its_settings_name(
    survey: Path, tmp_path: Path, into: Builder, ray: Any
) -> None:
    sky, config = tmp_path / "sky", tmp_path / "nightly.toml"
    assert into(sky, survey, "legacysurvey").num_embedded == 40
    config.write_text(
        f'cluster = "local"\n[[sources]]\nsurvey = "legacysurvey"\npath = "{survey}"\n'
    )
    write_cutout(survey / "140.fits", 140)
    night = nightly(sky, read_nightly(config))
    assert (night.outcome, night.num_embedded, night.num_objects) == ("published", 1, 41)
    assert nightly(sky, read_nightly(config)).outcome == "unchanged"


@needs_ray
@pytest.mark.slow
def test_a_build_killed_on_a_cluster_goes_on(
    survey: Path, encoder: Path, tmp_path: Path, into: Builder, ray: Any
) -> None:
    sky = tmp_path / "sky"
    script = (
        "import sys; from pathlib import Path; from index import embedding; "
        "embedding.FLUSH_SECONDS = 0; sky, source, encoder = map(Path, sys.argv[1:]); "
        "from index.building import build; "
        "build(sky, [source], survey='legacysurvey', encoder=encoder, cluster='local')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, sky, survey, encoder], cwd=ROOT)
    wait_for(lambda: bool(stored(sky)) or process.poll() is not None, seconds=180)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = stored(sky)
    report = into(sky, survey, "legacysurvey", cluster="local")
    assert len(before) > 0
    assert report.num_objects == 40
    into(tmp_path / "unbroken", survey, "legacysurvey")
    assert stored(sky) == stored(tmp_path / "unbroken")  # whole, and nothing twice
