"""Files to a published version: read, embed, sort out, index, publish.

A build adds and updates, never deletes. It can be killed at any instant: the published version
stays whole, and the next build goes on from what the store has. A build that finds nothing new
publishes nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from index import disk, sky_head
from index.changes import Changes, by_view, find_changes
from index.embedding import InputFile, Job, Progress, Reading, choose_workers, embed_files
from index.errors import DiskFull, VersionCorrupt
from index.inputs import Input, read_inputs
from index.joints import embed_joints, find_joints
from index.manifest import FORMAT, EncoderReference, SkyHead, read_manifest, write_head
from index.notes import worded
from index.precision import Agreement, checked, measure
from index.reference import encoder_name, head_of, is_empty, local_name, reference_of
from index.store import Store
from index.vectors import add_vectors
from index.versions import Version, numbers, open_version, publish
from index.writing import VersionWriter, labelled, object_ids_of
from training import encoder as encoders
from training.encoder import Encoder, Precision
from training.observations import Skipped
from training.surveys import companions, reader


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did. Counts of objects and rows are those of the whole version."""

    version: int
    num_objects: int
    num_rows: int  # a row is one view of one observation
    num_embedded: int  # observations that went through the encoder
    num_joint: int  # objects whose joint view was made from several surveys
    skipped: tuple[Skipped, ...]
    seconds: float
    published: bool  # False: nothing had changed, the version is the one there was
    precision: Precision  # of the vectors that this build made
    # View -> smallest cosine of an object's vectors in this and in the sky's precision, both
    # centred; empty: not measured, this is the sky's own.
    centred_cosine: Mapping[str, float]
    notes: tuple[str, ...]  # what a user should know of the values that were read


def build(
    sky: Path,
    sources: Sequence[Path],
    *,
    survey: str,
    encoder: str | Path | None = None,
    precision: str | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Read files of a survey and publish a version of the sky with what is in them.

    Args:
        sky: Folder of the sky; made when it is not there.
        sources: Files, or folders read recursively.
        survey: Name of a reader (training.surveys).
        encoder: Shipped name, path of an artefact, or owner/name on the Hub; None: the sky's own,
            "nano" for a new sky. One without a search head gets the sky's own (sky_head.py).
        precision: Of the encoder's arithmetic, see training.encoder; None: the sky's own,
            float32 for a new sky. Another than the sky's is measured first (precision.py).
        num_workers: Processes; None: one a core, none for a few files; 0: work in this process.
        progress: Called with stage, done, total.

    Raises:
        ValueError: an unknown survey, a source that is missing or holds no file of it, or no usable
            object in any file; nothing is published.
        NotASky: the folder holds something else.
        EncoderMismatch: the sky was made with another encoder, with a search head that is gone,
            or in a precision that the one asked for does not agree with.
        SkyBusy: another build runs.
        DiskFull: nothing more can be written; the published version stays whole.
    """
    started = time.monotonic()
    sky = Path(os.path.abspath(sky))
    if not sources:
        raise ValueError("expected at least one file or folder to read")
    files = _list_files(sources, survey, sky)
    head = head_of(sky)
    name = encoder_name(encoder, head)
    local = local_name(name)
    asked = None if precision is None else checked(precision)
    is_new = head is None or is_empty(sky)
    recorded = checked("float32" if head is None else head.encoder.precision)
    own = asked if asked is not None and is_new else recorded
    loaded = encoders.load(local, precision=asked or own)
    reference = reference_of(name, loaded, sky, head, precision=own)
    with _explained(sky):
        sky.mkdir(parents=True, exist_ok=True)
        with disk.only_writer(sky):
            disk.remove_leftovers(sky)
            if is_new:
                write_head(sky, SkyHead(format=FORMAT, encoder=reference))
            run = _Build(sky, survey, reference, loaded, local, num_workers, progress)
            report = run.run(files)
            if head is not None and head.encoder != run.encoder:
                write_head(sky, SkyHead(format=FORMAT, encoder=run.encoder))
    return replace(report, seconds=time.monotonic() - started)


def _list_files(sources: Sequence[Path], survey: str, sky: Path) -> list[str]:
    chosen = reader(survey)
    files = [
        os.path.abspath(file)
        for source in sources
        for file in chosen.list_files(Path(os.path.abspath(source)))
    ]
    # a sky may lie in the folder of its sources: its own files are none of the survey's
    own = os.path.join(sky, "")
    return [file for file in dict.fromkeys(files) if not file.startswith(own)]


@contextmanager
def _explained(sky: Path) -> Iterator[None]:
    """Say, when the disk is full, what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in disk.FULL:
            raise
        raise DiskFull(f"{error}. {_SAFE}") from error
    except DiskFull as error:
        raise DiskFull(f"{error}. {_SAFE}") from error


_SAFE = (
    "What was published stays whole. Make room and run the same build again: it goes on where it "
    "stopped"
)


@dataclass(slots=True)
class _Build:
    """One build, while the folder is locked."""

    sky: Path
    survey: str
    encoder: EncoderReference
    loaded: Encoder
    local: str  # what it is loaded from
    num_workers: int | None
    progress: Progress | None

    def run(self, files: Sequence[str]) -> BuildReport:
        is_published = (self.sky / "CURRENT").exists()
        base = open_version(self.sky) if is_published else self._newest_whole()
        store = Store(self.sky / "store", encoder_hash=self.encoder.hash)
        inputs = {} if base is None else read_inputs(self.sky / base.manifest.inputs)
        same, to_read = self._sort_files(files, inputs)
        job, job_of_joints, agreement = self._agreed(to_read, store)
        reading = embed_files(
            to_read,
            survey=self.survey,
            job=job,
            store=store,
            num_workers=self.num_workers,
            progress=self.progress,
        )
        changes = find_changes(reading.rows, base=base, next_key=self._next_key())
        if base is None and changes.rows is None:
            raise ValueError(_nothing_usable(files, reading))
        new_inputs, skipped = self._account(inputs, same, reading, changes)
        new, gone, num_joint = self._add_joints(base, changes, store, job_of_joints, skipped)
        notes = self._complete_head(new, store)
        unchanged = not new and not gone.any() and new_inputs == inputs
        if base is not None and unchanged and base.encoder == self.encoder:
            number, manifest = base.number, base.manifest
        else:
            writer = VersionWriter(self.sky, self.encoder, self.loaded, store, base, self.progress)
            manifest = writer.write(new, gone, changes, new_inputs)
            number = manifest.number
            notes += writer.notes()
        num_embedded = reading.num_embedded + agreement.num_observations
        news = base is None or number != base.number or not is_published
        if news:
            publish(self.sky, number)
        return BuildReport(
            version=number,
            num_objects=manifest.num_objects,
            num_rows=manifest.num_rows,
            num_embedded=num_embedded,
            num_joint=num_joint,
            skipped=tuple(skipped),
            seconds=0.0,
            published=news,
            precision=job.precision,
            centred_cosine=agreement.centred_cosine,
            notes=(
                *worded(reading.below_range + agreement.below_range, num_objects=num_embedded),
                *notes,
            ),
        )

    def _complete_head(self, new: Mapping[str, pa.Table], store: Store) -> tuple[str, ...]:
        """Where the encoder has no head: that of the sky, known to it before any version is."""
        rows = {view: table["fingerprint"] for view, table in new.items()}
        notes = sky_head.complete(self.sky, self.loaded, store, rows)
        if self.loaded.head_hash != self.encoder.head_hash:
            self.encoder = self.encoder.model_copy(update={"head_hash": self.loaded.head_hash})
            write_head(self.sky, SkyHead(format=FORMAT, encoder=self.encoder))
        return notes

    def _agreed(self, files: Sequence[InputFile], store: Store) -> tuple[Job, Job, Agreement]:
        """How files are embedded, and how joint views of several surveys are, as was measured."""
        own = checked(self.encoder.precision)
        job = Job(
            encoder=self.local,
            store=self.sky / "store",
            encoder_hash=self.encoder.hash,
            precision=own,
        )
        agreement = Agreement({}, (), Counter(), 0)
        if self.loaded.precision == own:
            return job, job, agreement
        agreement = measure(
            files,
            survey=self.survey,
            encoder=self.loaded,
            own=own,
            job=job,
            store=store,
            num_workers=choose_workers(self.num_workers, len(files)),
        )
        if not agreement.num_observations:  # nothing to embed, nothing to measure
            return job, job, agreement
        for vectors in agreement.vectors:
            add_vectors(store, vectors)
        store.flush()  # workers read it
        views = tuple(agreement.centred_cosine)
        other = replace(job, precision=self.loaded.precision, views=views)
        return other, other if "joint" in views else job, agreement

    def _newest_whole(self) -> Version | None:
        """Where CURRENT is lost: what a build adds to, so that nothing that was there is lost."""
        for number in reversed(numbers(self.sky)):
            try:
                return open_version(self.sky, number)
            except VersionCorrupt:
                continue
        return None

    def _sort_files(
        self, files: Sequence[str], inputs: dict[tuple[str, str], Input]
    ) -> tuple[list[Input], list[InputFile]]:
        """Files that need not be read, and those to read."""
        same, to_read = [], []
        for number, path in enumerate(files):
            known = inputs.get((self.survey, path))
            # opening a pipe would wait for ever
            beside = companions(self.survey, Path(path)) if os.path.isfile(path) else ()
            others = tuple(map(str, beside))
            if known is not None and known.unchanged(others):
                same.append(known)
            else:
                sha256 = None if known is None else known.sha256
                to_read.append(InputFile(number, path, sha256, others))
        return same, to_read

    def _next_key(self) -> int:
        """Above every key that any version gave, also one that was rolled back."""
        given = [read_manifest(self.sky, each).next_object_key for each in numbers(self.sky)]
        return max(given, default=0)

    def _account(
        self,
        inputs: dict[tuple[str, str], Input],
        same: Sequence[Input],
        reading: Reading,
        changes: Changes,
    ) -> tuple[dict[tuple[str, str], Input], list[Skipped]]:
        """The new input manifest, and what was left out, in path order."""
        new = dict(inputs)
        left_out: list[Skipped] = [each for known in same for each in known.skipped]
        again: dict[int, list[Skipped]] = {}
        for number, skipped in changes.skipped:
            again.setdefault(number, []).append(skipped)
        for file in reading.files:
            key = (self.survey, file.path)
            if file.unchanged:
                known = replace(
                    inputs[key],
                    num_bytes=file.num_bytes,
                    modified_ns=file.modified_ns,
                    companions=file.companions,
                )
                new[key] = known
                left_out.extend(known.skipped)
                continue
            missed = (*file.skipped, *again.get(file.number, ()))
            left_out.extend(missed)
            new.pop(key, None)
            if changes.num_rows.get(file.number):
                new[key] = Input(
                    path=file.path,
                    survey=self.survey,
                    num_bytes=file.num_bytes,
                    modified_ns=file.modified_ns,
                    sha256=file.sha256,
                    num_rows=changes.num_rows[file.number],
                    skipped=missed,
                    companions=file.companions,
                )
        return new, sorted(left_out, key=lambda each: each.file)

    def _add_joints(
        self,
        base: Version | None,
        changes: Changes,
        store: Store,
        job: Job,
        skipped: list[Skipped],
    ) -> tuple[dict[str, pa.Table], Bool[ndarray, " row"], int]:
        """New rows by view, joint views of several surveys among them, and which old rows go.

        Appends what could not be made to `skipped`.
        """
        new = by_view(changes.rows)
        num_old = 0 if base is None else base.all_rows.num_rows
        gone = np.zeros(num_old, bool)
        gone[changes.replaced] = True
        there = [labelled(table, view) for view, table in new.items()]
        if base is not None:
            there.insert(0, base.all_rows.filter(pa.array(~gone)))
        if not there:
            return new, gone, 0
        ids = object_ids_of(base, changes)
        names = dict(zip(ids["object_key"].to_pylist(), ids["object_id"].to_pylist(), strict=True))
        joints = find_joints(pa.concat_tables(there, promote_options="permissive"), names)
        wanted = {key: joint.task.fingerprint for key, joint in joints.items()}
        have: set[int] = set()
        if base is not None:
            old = base.all_rows.select(["object_key", "view", "source", "fingerprint"])
            for line in np.flatnonzero(
                pc.equal(old["view"], "joint").to_numpy(zero_copy_only=False) & ~gone
            ):
                row = {name: old[name][int(line)].as_py() for name in old.column_names}
                key = row["object_key"]
                if key in wanted and row["fingerprint"] == wanted[key]:
                    have.add(key)
                elif key in wanted or not row["source"]:
                    gone[line] = True
        if "joint" in new:
            of_one = pc.is_in(new["joint"]["object_key"], pa.array(list(wanted), pa.int64()))
            new["joint"] = new["joint"].filter(pc.invert(of_one))
        missing = [joint for key, joint in joints.items() if key not in have]
        stored = store.has("joint", [joint.task.fingerprint for joint in missing])
        to_embed = [
            joint.task for joint, is_stored in zip(missing, stored, strict=True) if not is_stored
        ]
        if to_embed:
            skipped += embed_joints(
                to_embed,
                job=job,
                store=store,
                num_workers=self.num_workers,
                progress=self.progress,
            )
        stored = store.has("joint", [joint.task.fingerprint for joint in missing])
        made = [joint for joint, is_stored in zip(missing, stored, strict=True) if is_stored]
        if made:
            schema = next(iter(new.values())).schema if new else _plain(base).schema
            table = pa.Table.from_pylist([joint.row() for joint in made], schema)
            tables = [new["joint"], table] if "joint" in new else [table]
            new["joint"] = pa.concat_tables(tables, promote_options="permissive")
        return {view: table for view, table in new.items() if table.num_rows}, gone, len(made)


def _plain(base: Version | None) -> pa.Table:
    assert base is not None
    return base.all_rows.drop_columns(["view"])


def _nothing_usable(files: Sequence[str], reading: Reading) -> str:
    reasons = [skipped for file in reading.files for skipped in file.skipped]
    shown = "; ".join(f"{each.file}: {each.reason}" for each in reasons[:3])
    more = f"; and {len(reasons) - 3:,} more" if len(reasons) > 3 else ""
    return f"no usable object in {len(files):,} files: {shown or 'they hold none'}{more}"
