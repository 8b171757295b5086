"""The nightly at size: a full build, nights in which 1 % of the objects change, and quiet ones.

    python benchmarks/nightly.py [--objects 1e6] [--nights 3] [--seed 0] [--workers N]
        [--work FOLDER] [--json]

Every night is the command `skykin nightly` in a process of its own, and its seconds are those of
the whole process, start of Python included. Objects are rows of simulated_coefficients.py, read by
the reader of the Multimodal Universe, embedded by an encoder that is cheap and real. In a night of
1 % half of the files that change hold other values of the same objects, a quarter is new and a
quarter gone; `one_percent_s` is the median night, `unchanged_s` the slowest.

Reading and embedding go with what changes and would hide what does not, so each figure is told
without them too: `without_embedding`. `shares` are seconds of a night of 1 % in those of the full
build, wanted: at most 0.05, both ways. Memory is that of the largest process of a night.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # simulated_coefficients.py, found last

from simulated_coefficients import SURVEY, Files, write_encoder

from index.manifest import git_revision
from training.progress import progress_bars

SHARE = 0.01  # of the files, and so of the objects, that change in a night
EMBEDDING = ("load the encoder", "read and embed")  # stages of a night
NIGHTLY = "from app.cli import main; main()"

Show = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Night:
    """What one run did and took."""

    name: str  # full, unchanged, one percent
    seconds: float  # of the process
    cpu_s: float  # of it and of those that it started
    stages: Mapping[str, float]
    peak_mib: float  # of its largest process
    num_objects: int
    num_embedded: int

    @property
    def without_embedding_s(self) -> float:
        return self.seconds - sum(self.stages.get(stage, 0.0) for stage in EMBEDDING)


@dataclass(slots=True)
class Sky:
    """A sky and its sources, in a folder."""

    folder: Path
    files: Files
    num_workers: int | None
    environment: Mapping[str, str]

    @classmethod
    def new(cls, folder: Path, *, num_objects: int, seed: int, num_workers: int | None) -> Sky:
        """Write all sources, an encoder, and the settings of the nightly."""
        files = Files(folder / "files", num_objects, seed)
        files.write_all()
        write_encoder(folder / "encoder")
        told = "" if num_workers is None else f"num_workers = {num_workers}\n"
        (folder / "nightly.toml").write_text(
            f'encoder = "{folder / "encoder"}"\n{told}'
            f'[[sources]]\nsurvey = "{SURVEY}"\npath = "files"\n'
        )
        root = str(Path(__file__).parents[1])
        paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        return cls(folder, files, num_workers, os.environ | {"PYTHONPATH": paths})

    def night(self, name: str, *, outcome: str, num_objects: int, num_embedded: int) -> Night:
        """Run the nightly, and see that it did what is measured.

        Raises:
            RuntimeError: it did something else.
        """
        command = [sys.executable, "-c", NIGHTLY, "nightly", str(self.folder / "sky")]
        command += ["--config", str(self.folder / "nightly.toml"), "--json"]
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=self.environment)
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            stdout.seek(0)
            stderr.seek(0)
            if process.returncode:
                raise RuntimeError(f"the night {name} failed: {stderr.read().decode()[-2000:]}")
            report = json.loads(stdout.read())
        found = (report["outcome"], report["num_objects"], report["num_embedded"])
        if found != (outcome, num_objects, num_embedded):
            raise RuntimeError(
                f"expected outcome, objects and embedded {outcome, num_objects, num_embedded} of "
                f"the night {name}, got {found}"
            )
        return Night(
            name=name,
            seconds=seconds,
            cpu_s=used.ru_utime + used.ru_stime,
            stages=report["seconds"],
            peak_mib=used.ru_maxrss / 1024,
            num_objects=num_objects,
            num_embedded=num_embedded,
        )


def measure(
    folder: Path,
    *,
    num_objects: int,
    seed: int = 0,
    num_nights: int = 3,
    num_workers: int | None = None,
    show: Show,
) -> dict[str, Any]:
    """The document of one run.

    Args:
        folder: An empty one.
        num_objects: Of the full build.
        seed: Of the values.
        num_nights: Nights of 1 %.
        num_workers: Processes that embed; None: as a nightly chooses that is not told.
        show: Called with the night, how many are done, how many there are.
    """
    total = num_nights + 4
    show("simulating", 0, total)
    sky = Sky.new(folder, num_objects=num_objects, seed=seed, num_workers=num_workers)
    nights: list[Night] = []

    def run(name: str, outcome: str, there: int, embedded: int) -> None:
        show(name, len(nights) + 1, total)
        nights.append(sky.night(name, outcome=outcome, num_objects=there, num_embedded=embedded))

    there = num_objects
    run("full", "published", there, there)
    run("unchanged", "unchanged", there, 0)
    for number in range(num_nights):
        came, went, embedded = change(sky.files, number)
        there += came - went
        run("one percent", "published", there, embedded)
    run("unchanged", "unchanged", there, 0)
    show("done", total, total)
    return document(nights) | {
        "run": {
            "objects": num_objects,
            "files": sky.files.num_files,
            "seed": seed,
            "workers": num_workers,
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "measured_at_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": git_revision(),
        }
    }


def change(files: Files, night: int) -> tuple[int, int, int]:
    """Change SHARE of the files, others every night; rows that came, that went, to be embedded."""
    num = max(1, round(SHARE * files.num_files))
    # strides through the sky; no cell is met twice in as many nights as there are hundredths
    cells = [(i * (files.num_files // num) + night) % files.num_files for i in range(num)]
    quarter = num // 4
    new, gone, changed = cells[:quarter], cells[quarter : 2 * quarter], cells[2 * quarter :]
    for cell in new:
        files.write(cell, part=2 + night)
    for cell in gone:
        files.remove(cell)
    for cell in changed:
        files.write(cell, edition=1 + night)
    came = sum(map(files.num_rows, new))
    return came, sum(map(files.num_rows, gone)), came + sum(map(files.num_rows, changed))


def document(nights: Sequence[Night]) -> dict[str, Any]:
    """The figures that are asked of the nightly."""

    def seconds(name: str, how: Callable[[Night], float]) -> list[float]:
        return [how(night) for night in nights if night.name == name]

    def figures(how: Callable[[Night], float]) -> dict[str, float]:
        return {
            "full_s": seconds("full", how)[0],
            "one_percent_s": statistics.median(seconds("one percent", how)),
            "unchanged_s": max(seconds("unchanged", how)),
        }

    whole, rest = figures(lambda night: night.seconds), figures(lambda n: n.without_embedding_s)
    cpu = figures(lambda night: night.cpu_s)
    return {
        "nightly": whole,
        "without_embedding": rest,
        "shares": {
            "with_embedding": whole["one_percent_s"] / whole["full_s"],
            "without_embedding": rest["one_percent_s"] / rest["full_s"],
            "of_cpu": cpu["one_percent_s"] / cpu["full_s"],
        },
        "nights": [asdict(night) for night in nights],
    }


def print_table(report: Mapping[str, Any]) -> None:
    """The same for people."""
    run = report["run"]
    workers = "by default" if run["workers"] is None else run["workers"]
    print(
        f"{run['objects']:,} objects in {run['files']:,} files, workers {workers}, seed "
        f"{run['seed']}, commit {(run['commit'] or 'unknown')[:8]}"
    )
    print(f"{'night':14}{'seconds':>10}{'of CPU':>10}{'peak MiB':>10}{'embedded':>12}  stages")
    for night in report["nights"]:
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in night["stages"].items())
        print(
            f"{night['name']:14}{night['seconds']:10.1f}{night['cpu_s']:10.1f}"
            f"{night['peak_mib']:10,.0f}"
            f"{night['num_embedded']:12,}  {stages}"
        )
    for name, share in report["shares"].items():
        print(f"a night of 1 %, {name.replace('_', ' ')}: {share:.2%} of a full build")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=float, default=1e6)
    parser.add_argument("--nights", type=int, default=3, help="of 1 %%; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, help="processes that embed; default: the nightly's own"
    )
    parser.add_argument("--work", type=Path, help="where files go; default: a folder that goes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    if given.objects < 1000 or given.nights < 1:
        parser.error("expected 1,000 objects or more, and at least one night")
    with tempfile.TemporaryDirectory(dir=given.work) as scratch, progress_bars() as show:
        report = measure(
            Path(scratch),
            num_objects=int(given.objects),
            seed=given.seed,
            num_nights=given.nights,
            num_workers=given.workers,
            show=show,
        )
    if given.json:
        print(json.dumps(report))
    else:
        print_table(report)


if __name__ == "__main__":
    main()
