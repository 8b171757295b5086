"""A program: kill an operation on a sky at chosen instants, and see what is left each time.

    python killed.py WORK ENCODER OPERATION NUM_INSTANTS SEED [full]

WORK holds `sky`, as it is before, and `files`. No clock decides when: an instant is either a change
to the file system (a file opened to be written, renamed, linked, removed; a folder made or removed)
or a call of any function, Python's or C's, so also between a write and what forces it to disk. Half
of the instants are of each kind. Every run is a fork of this process, which has imported everything
and computed nothing. Prints one JSON document.

With `full` nothing is killed: from the instant on no file, folder or link can be made in the sky,
as on a disk without space, and the operation has to end with DiskFull.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from index import embedding
from index.building import build
from index.compacting import compact, reindex
from index.errors import DiskFull
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
from index.versions import open_version, rollback, verify

sys.dont_write_bytecode = True  # which would be a change that the next run does not make
WORK, ENCODER, OPERATION = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
SKY = WORK / "sky"
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")
Instant = tuple[str, int]  # "change" or "call", and its number


def operate() -> None:
    """What is killed."""
    embedding.FLUSH_SECONDS = 0.0
    embedding.BATCH = 2
    embedding.FILES_PER_TASK = 2
    if OPERATION == "build":
        build(SKY, [WORK / "files"], survey="legacysurvey", encoder=ENCODER, num_workers=0)
    elif OPERATION == "nightly":
        source = SourceConfig(survey="legacysurvey", path=str(WORK / "files"))
        nightly(
            SKY,
            NightlyConfig(
                sources=(source,),
                encoder=ENCODER,
                num_workers=0,
                max_removed_share=0.5,
                keep_versions=1,
                keep_days=0.0,
            ),
        )
    elif OPERATION == "compact":
        compact(SKY)
    elif OPERATION == "reindex":
        reindex(SKY)
    else:
        rollback(SKY, 1)


def killed_at(instant: Instant) -> Callable[[], object]:
    """The operation, ended by SIGKILL at an instant; number 0: never, gives how many there are."""

    def run() -> object:
        num = {"change": 0, "call": 0}

        def count(kind: str) -> None:
            num[kind] += 1
            if (kind, num[kind]) == instant:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open":
                flags = arguments[2]
                if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                    return
            elif event not in CHANGES:
                return
            count("change")

        def profile(_: FrameType, event: str, __: object) -> None:
            if event in ("call", "c_call"):
                count("call")

        sys.addaudithook(hook)
        if instant[0] == "call":
            sys.setprofile(profile)
        operate()
        sys.setprofile(None)
        return num[instant[0]]

    return run


def full_at(instant: int) -> Callable[[], object]:
    """The operation, on a disk that is full from an instant on; number 0: never, gives how many."""

    def run() -> object:
        num = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal num
            target = str(arguments[1 if event == "os.link" else 0]) if arguments else ""
            if event == "open":
                flags = arguments[2]
                if not (isinstance(flags, int) and flags & os.O_CREAT) or os.path.exists(target):
                    return
            elif event not in ("os.mkdir", "os.link"):
                return
            if target.startswith(f"{SKY}/"):
                num += 1
                if 0 < instant <= num:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

        sys.addaudithook(hook)
        try:
            operate()
        except DiskFull as error:
            return str(error)
        return num

    return run


def state() -> object:
    """Published version, what is damaged in it, and what is asked of it: all by id, as keys are
    given anew where a version was written and not published."""
    from tests.index.test_index_nightly import answers

    version = open_version(SKY)
    keys = version.table["object_key"].to_numpy()
    names = version.table["object_id"].to_pylist()
    vectors = {}
    for view in version.views:
        for i in version.has_view(keys, view).nonzero()[0].tolist():
            content = version.vectors(keys[i : i + 1], view).tobytes()
            vectors[f"{view} {names[i]}"] = hashlib.sha256(content).hexdigest()
    lines = version.table.drop_columns(["object_key"]).to_pylist()
    return {
        "version": version.number,
        "problems": [str(problem) for problem in verify(SKY).problems],
        "results": {
            "answers": answers(SKY),
            "vectors": vectors,
            "objects": sorted(map(str, lines)),
        },
    }


def again() -> object:
    """The next run, undisturbed, and what it ends with."""
    operate()
    left = [str(path) for path in (*SKY.rglob(".tmp-*"), *SKY.glob("unproved"))]
    return {"state": state(), "left": left}


def forked(work: Callable[[], object]) -> object:
    """What the work gives, done in a child; None where that was killed."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(readable)
            found = json.dumps(work()).encode()
            while found:
                found = found[os.write(writable, found) :]
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise SystemExit(f"{work} failed")
    return json.loads(content)


def run_full(before: object, restore: Callable[[], None]) -> None:
    """Let the disk be full, look, make room, run again, look."""
    num = forked(full_at(0))
    assert isinstance(num, int)
    after = forked(state)
    rng = random.Random(int(sys.argv[5]))
    runs = []
    for n in sorted(rng.sample(range(1, num + 1), min(num, int(sys.argv[4])))):
        restore()
        told = forked(full_at(n))
        runs.append({"instant": n, "told": told, "killed": forked(state), "again": forked(again)})
    print(json.dumps({"num": num, "before": before, "after": after, "runs": runs}))


def main() -> None:
    """Kill, look, run again, look."""
    shutil.copytree(SKY, WORK / "before")

    def restore() -> None:
        shutil.rmtree(SKY)
        shutil.copytree(WORK / "before", SKY)

    def total(kind: str) -> int:
        restore()
        num = forked(killed_at((kind, 0)))
        assert isinstance(num, int)
        return num

    before = forked(state)
    if sys.argv[6:] == ["full"]:
        run_full(before, restore)
        return
    num_calls, num_changes = total("call"), total("change")
    after = forked(state)
    rng, wanted = random.Random(int(sys.argv[5])), int(sys.argv[4])
    changes = rng.sample(range(1, num_changes + 1), min(num_changes, wanted // 2))
    # some more than are wanted, as an undisturbed run may have a few calls less than the first
    calls = rng.sample(range(1, num_calls + 1), min(num_calls, wanted - len(changes) + 4))
    chosen = [("change", n) for n in sorted(changes)] + [("call", n) for n in calls]
    runs: list[object] = []
    for instant in chosen:
        if len(runs) == wanted:
            break
        restore()
        if forked(killed_at(instant)) is None:
            runs.append({"instant": instant, "killed": forked(state), "again": forked(again)})
    print(json.dumps({"num": num_changes, "before": before, "after": after, "runs": runs}))


if __name__ == "__main__":
    main()
