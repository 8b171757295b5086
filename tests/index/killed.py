"""A program: kill an operation on a sky at chosen instants, and see what is left each time.

    python killed.py WORK ENCODER OPERATION NUM_INSTANTS SEED

WORK holds `sky`, as it is before, and `files`. An instant is a change to the file system (a file
opened to be written, renamed, removed; a folder made or removed), counted by an audit hook, so no
clock decides. Every run is a fork of this process, which has imported everything and computed
nothing. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from index import embedding
from index.building import build
from index.compacting import compact
from index.nightly import nightly
from index.nightly_config import NightlyConfig, SourceConfig
from index.versions import open_version, rollback, verify

sys.dont_write_bytecode = True  # which would be a change that the next run does not make
WORK, ENCODER, OPERATION = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
SKY = WORK / "sky"
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


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
    else:
        rollback(SKY, 1)


def killed_at(instant: int) -> Callable[[], object]:
    """The operation, ended by SIGKILL before its n-th change; 0: never, gives how many."""

    def run() -> object:
        num = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal num
            if event == "open":
                flags = arguments[2]
                if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                    return
            elif event not in CHANGES:
                return
            num += 1
            if num == instant:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        operate()
        return num

    return run


def state() -> object:
    """Published version, what is damaged in it, and what its objects find."""
    from tests.index.test_index_nightly import answers

    return {
        "version": open_version(SKY).number,
        "problems": [str(problem) for problem in verify(SKY).problems],
        "answers": answers(SKY),
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


def main() -> None:
    """Kill, look, run again, look."""
    shutil.copytree(SKY, WORK / "before")

    def restore() -> None:
        shutil.rmtree(SKY)
        shutil.copytree(WORK / "before", SKY)

    before = forked(state)
    num = forked(killed_at(0))
    after = forked(state)
    assert isinstance(num, int)
    chosen = random.Random(int(sys.argv[5])).sample(range(1, num + 1), min(num, int(sys.argv[4])))
    runs = []
    for instant in sorted(chosen):
        restore()
        if forked(killed_at(instant)) is not None:
            continue  # it ended before: a run may have a change or two less than the first
        runs.append({"instant": instant, "killed": forked(state), "again": forked(again)})
    print(json.dumps({"num": num, "before": before, "after": after, "runs": runs}))


if __name__ == "__main__":
    main()
