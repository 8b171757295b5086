"""One update of a sky: read and embed what is new, sort out what comes and goes, write a version.

Nothing is published here: build (building.py) and nightly (nightly.py) decide that. Who calls holds
the lock of the folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from index import sky_head
from index.changes import Changes, find_changes
from index.embedding import (
    InputFile,
    Job,
    Progress,
    ReadFile,
    Reading,
    choose_workers,
    embed_files,
)
from index.errors import EncoderMismatch
from index.inputs import Input, read_inputs
from index.joint_rows import RowPlan, plan_rows
from index.manifest import EncoderReference, Manifest, read_manifest
from index.precision import Agreement, checked, measure
from index.ray_nodes import Cluster
from index.reference import write_down
from index.removals import InputKey, Removals, find_removals
from index.store import Store
from index.vectors import add_vectors
from index.versions import Base, numbers
from index.writing import VersionWriter, labelled
from training.encoder import Encoder
from training.observations import Skipped
from training.precision import Precision
from training.surveys import companions


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyFiles:
    """The files of one survey that an update looks at."""

    survey: str
    to_read: Sequence[InputFile]
    same: Sequence[Input] = ()  # need not be read; what was left out of them is told again


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What reading and embedding gave; vectors are in the store."""

    parts: Sequence[SurveyFiles]
    files: Mapping[InputKey, ReadFile]
    rows: pa.Table | None  # columns of objects.as_rows
    job: Job
    job_of_joints: Job
    num_embedded: int
    below_range: Counter[str]
    centred_cosine: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What an update will change. Vectors are in the store, nothing else is written."""

    changes: Changes
    plan: RowPlan
    inputs: dict[InputKey, Input]
    empty: Mapping[InputKey, Input]  # files that were read and gave no row
    unchanged: bool  # the version would be the one there is
    skipped: tuple[Skipped, ...]  # in path order
    unclear: Mapping[InputKey, int]  # see removals.Removals
    num_embedded: int
    below_range: Counter[str]
    precision: Precision
    centred_cosine: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Accounts:
    """What became of files."""

    inputs: dict[InputKey, Input]  # the new input manifest
    empty: dict[InputKey, Input]  # read, and gave no row
    skipped: list[Skipped]


@dataclass
class Update:
    """One update, while the folder is locked."""

    sky: Path
    base: Base
    encoder: EncoderReference
    loaded: Encoder
    local: str  # what it is loaded from
    num_workers: int | None
    progress: Progress | None
    may_begin_anew: bool = False  # all files there are will be read, so no row need go on
    cluster: Cluster | None = None  # where files are read and embedded; None: on this machine

    @cached_property
    def store(self) -> Store:
        """The vectors of the encoder."""
        return Store(self.sky / "store", encoder_hash=self.encoder.hash)

    @property
    def is_anew(self) -> bool:
        """Whether the version before is of another encoder."""
        version = self.base.version
        return version is not None and version.encoder.hash != self.encoder.hash

    @cached_property
    def inputs(self) -> dict[InputKey, Input]:
        """The input manifest of the version before."""
        version = self.base.version
        return {} if version is None else read_inputs(self.sky / version.manifest.inputs)

    def sort_files(self, survey: str, files: Sequence[str]) -> SurveyFiles:
        """Files that need not be read, and those to read."""
        same, to_read = [], []
        for number, path in enumerate(files):
            known = self.inputs.get((survey, path))
            # opening a pipe would wait for ever
            beside = companions(survey, Path(path)) if os.path.isfile(path) else ()
            others = tuple(map(str, beside))
            if known is not None and known.unchanged(others):
                same.append(known)
            else:
                sha256 = None if known is None else known.sha256
                to_read.append(InputFile(number, path, sha256, others))
        return SurveyFiles(survey=survey, to_read=to_read, same=same)

    def read(self, parts: Sequence[SurveyFiles]) -> Read:
        """Read files, and embed what the store lacks.

        Where the encoder is another than that of the version before, `parts` are all files there
        are, and no row of that version goes on.

        Args:
            parts: What to look at; numbers of files are unique over all of them.

        Raises:
            EncoderMismatch: the version before is of another encoder, and only some files are read.
        """
        if self.is_anew and not self.may_begin_anew:
            raise EncoderMismatch(
                f"the published version of {self.sky} was made with another encoder than "
                f"{self.encoder.name!r} ({self.encoder.hash[:12]}), and vectors of two encoders "
                "do not compare"
            )
        job, job_of_joints, agreement = self._agreed(parts)
        files: dict[InputKey, ReadFile] = {}
        readings: list[Reading] = []
        for part in parts:
            reading = embed_files(
                part.to_read,
                survey=part.survey,
                job=job,
                store=self.store,
                num_workers=self.num_workers,
                progress=self.progress,
            )
            readings.append(reading)
            files.update(((part.survey, file.path), file) for file in reading.files)
        tables = [each.rows for each in readings if each.rows is not None]
        below_range: Counter[str] = sum((each.below_range for each in readings), Counter())
        return Read(
            parts=parts,
            files=files,
            rows=pa.concat_tables(tables, promote_options="permissive") if tables else None,
            job=job,
            job_of_joints=job_of_joints,
            num_embedded=sum(each.num_embedded for each in readings) + agreement.num_observations,
            below_range=below_range + agreement.below_range,
            centred_cosine=agreement.centred_cosine,
        )

    def prepare(
        self, read: Read, *, removes: bool = False, gone: Collection[InputKey] = frozenset()
    ) -> Draft:
        """Find out what comes, changes and goes; joint views of several surveys are embedded.

        Args:
            read: What `read` gave.
            removes: Rows go that their file does not hold any more, and those of `gone`.
            gone: Files that are gone.
        """
        base = self.base.version
        changes = find_changes(
            read.rows,
            base=base,
            next_key=self._next_key(),
            gone={path for _, path in gone},
            anew=self.is_anew,
        )
        removals = Removals(np.empty(0, np.int64), {})
        if removes and base is not None and not self.is_anew:
            removals = find_removals(
                base, gone=gone, read=read.rows, files=read.files, inputs=self.inputs
            )
            changes.removed = removals.lines
        accounts = self._account(read.parts, read.files, changes, gone, removals)
        inputs = accounts.inputs
        plan = plan_rows(
            base,
            changes,
            self.store,
            job=read.job_of_joints,
            num_workers=self.num_workers,
            progress=self.progress,
        )
        if self.is_anew and base is not None:
            without = rows_without(base.live_rows.every, plan.new)
            every = np.arange(base.live_rows.every.num_rows)
            changes.replaced, changes.removed = np.setdiff1d(every, without), without
        head_notes = self._complete_head(plan.new)
        unchanged = not plan.new and not plan.gone.any() and inputs == self.inputs
        return Draft(
            changes=changes,
            plan=plan,
            inputs=inputs,
            empty=accounts.empty,
            unchanged=base is not None and unchanged and base.encoder == self.encoder,
            skipped=tuple([*sorted(accounts.skipped, key=lambda each: each.file), *plan.skipped]),
            unclear=removals.unclear,
            num_embedded=read.num_embedded,
            below_range=read.below_range,
            precision=read.job.precision,
            centred_cosine=read.centred_cosine,
            notes=head_notes,
        )

    def write(self, draft: Draft) -> tuple[Manifest, tuple[str, ...]]:
        """Write the version, not published; gives what a user should know of its vectors too."""
        version = self.base.version
        writer = VersionWriter(
            self.sky, self.encoder, self.loaded, self.store, version, self.progress
        )
        writer.num_joint_left_out = draft.plan.num_left_out
        manifest = writer.write(draft.plan.new, draft.plan.gone, draft.changes, draft.inputs)
        return manifest, writer.notes()

    def _complete_head(self, new: Mapping[str, pa.Table]) -> tuple[str, ...]:
        """Where the encoder has no head: that of the sky, known to it before any version is."""
        rows = {view: table["fingerprint"] for view, table in new.items()}
        notes = sky_head.complete(self.sky, self.loaded, self.store, rows)
        if self.loaded.head_hash != self.encoder.head_hash:
            self.encoder = self.encoder.model_copy(update={"head_hash": self.loaded.head_hash})
            if self.base.version is None:  # else the version names it, see reference.head_of
                write_down(self.sky, self.encoder)
        return notes

    def _agreed(self, parts: Sequence[SurveyFiles]) -> tuple[Job, Job, Agreement]:
        """How files are embedded, and how joint views of several surveys are, as was measured."""
        own = checked(self.encoder.precision)
        job = Job(
            cluster=self.cluster,
            encoder=self.local,
            store=self.sky / "store",
            encoder_hash=self.encoder.hash,
            precision=own,
            loaded=self.loaded,
        )
        agreement = Agreement({}, (), Counter(), 0)
        if self.loaded.precision == own:
            return job, job, agreement
        (part,) = parts  # only a build, of one survey, may ask for another precision
        agreement = measure(
            part.to_read,
            survey=part.survey,
            encoder=self.loaded,
            own=own,
            job=job,
            store=self.store,
            num_workers=choose_workers(self.num_workers, len(part.to_read)),
        )
        if not agreement.num_observations:  # nothing to embed, nothing to measure
            return job, job, agreement
        for vectors in agreement.vectors:
            add_vectors(self.store, vectors)
        self.store.flush()  # workers read it
        views = tuple(agreement.centred_cosine)
        other = replace(job, precision=self.loaded.precision, views=views)
        return other, other if "joint" in views else job, agreement

    def _next_key(self) -> int:
        """Above every key that any version gave, also one that was rolled back.

        Versions before the base gave none above its own.
        """
        version = self.base.version
        there = [each for each in numbers(self.sky) if version is None or each >= version.number]
        given = [read_manifest(self.sky, each).next_object_key for each in there]
        return max(given, default=0)

    def _account(
        self,
        parts: Sequence[SurveyFiles],
        files: Mapping[InputKey, ReadFile],
        changes: Changes,
        gone: Collection[InputKey],
        removals: Removals,
    ) -> _Accounts:
        """The new input manifest, and what was left out."""
        empty: dict[InputKey, Input] = {}
        new = {key: known for key, known in self.inputs.items() if key not in gone}
        left_out = [each for part in parts for known in part.same for each in known.skipped]
        again: dict[int, list[Skipped]] = {}
        for number, skipped in changes.skipped:
            again.setdefault(number, []).append(skipped)
        there = self._rows_left(files, changes)
        for key, file in files.items():
            if file.unchanged:
                known = replace(
                    self.inputs[key],
                    num_bytes=file.num_bytes,
                    modified_ns=file.modified_ns,
                    companions=file.companions,
                )
                new[key] = known
                left_out.extend(known.skipped)
                continue
            missed = (*file.skipped, *again.get(file.number, ()))
            left_out.extend(missed)
            if key in removals.unclear:
                continue  # as it was before: read again next time
            survey, path = key
            read = Input(
                path=path,
                survey=survey,
                num_bytes=file.num_bytes,
                modified_ns=file.modified_ns,
                sha256=file.sha256,
                num_rows=changes.num_rows.get(file.number, 0),
                skipped=missed,
                companions=file.companions,
            )
            if read.num_rows:
                new[key] = read
            elif key not in there:
                new.pop(key, None)
                if file.sha256:  # else it could not even be opened
                    empty[key] = read
        return _Accounts(new, empty, left_out)

    def _rows_left(self, files: Mapping[InputKey, ReadFile], changes: Changes) -> set[InputKey]:
        """Files that gave nothing tonight, but gave rows before which stay."""
        version = self.base.version
        silent = [
            key
            for key, file in files.items()
            if key in self.inputs and not file.unchanged and not changes.num_rows.get(file.number)
        ]
        if version is None or not silent:
            return set()
        stays = np.ones(version.manifest.num_rows, bool)
        stays[changes.gone] = False
        rows = version.live_rows.columns(["reader", "source"]).filter(pa.array(stays))
        wanted = {path for _, path in silent}
        left = {
            (reader, source)
            for reader, source in zip(
                rows["reader"].to_pylist(), rows["source"].to_pylist(), strict=True
            )
            if source in wanted
        }
        return left & set(silent)


def rows_without(rows: pa.Table, new: Mapping[str, pa.Table]) -> Int64[ndarray, " n"]:
    """Lines of Version.live_rows, of an encoder before, that no new row stands in for."""
    names = ["object_key", "view", "survey", "release", "source_id"]
    old = rows.select(names).append_column("line", pa.array(np.arange(rows.num_rows)))
    for view, table in new.items():
        old = old.join(labelled(table, view).select(names), keys=names, join_type="left anti")
    return np.sort(old["line"].to_numpy())


def lines_removed(changes: Changes) -> Int64[ndarray, " n"]:
    """Lines of Version.live_rows that go with nothing in their place."""
    return np.setdiff1d(changes.removed, changes.replaced)
