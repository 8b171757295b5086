"""The nightly: follow all sources of a sky, and publish a new version when it passes the gates.

What is new or changed is embedded, what is gone goes: only here, as only here all sources are
known. When nothing changed, no table is read and nothing is published. Killed at any instant it
leaves the published version whole, and the next run goes on where it stopped.

Where the settings name another encoder than the sky's, everything is embedded again beside the
published version, which is followed only when the new one is whole and passes the gates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from index import disk
from index.building import explained, nothing_usable
from index.comparison import Comparison, compare
from index.embedding import Progress
from index.empty_files import EmptyFile, read_empty, write_empty
from index.errors import GateRefused, RecallTooLow, VersionCorrupt
from index.evaluation import read_labels
from index.gates import Gate, reach_gate, removal_gates, version_gates
from index.manifest import FORMAT, Manifest, SkyHead, write_head
from index.nightly_config import NightlyConfig
from index.nightly_report import LISTED, Named, NightlyReport, Outcome, write_report
from index.notes import worded
from index.precision import checked
from index.pruning import Pruned, prune, sweep
from index.ray_nodes import cluster_of, joined_if_asked
from index.reference import (
    encoder_name,
    head_of,
    is_empty,
    local_name,
    reference_of,
    write_down,
)
from index.removals import InputKey
from index.saved_searches import NewNear, SavedSearch, new_near, read_saved
from index.unproved import unproved, withdraw
from index.updating import Draft, Update
from index.version import Version
from index.versions import Base, find_base, open_version, publish
from training import encoder as encoders


def nightly(sky: Path, config: NightlyConfig, *, progress: Progress | None = None) -> NightlyReport:
    """Bring a sky up to its sources; gives the report, which is in SKY/nightly/ too.

    Args:
        sky: Folder of the sky; made when it is not there.
        config: All sources, gates, and what is kept.
        progress: Called with stage, done, total.

    Raises:
        ValueError: a setting is wrong, or a new sky finds no usable object.
        NotASky: the folder holds something else.
        SkyBusy: a build or another nightly runs.
        EncoderMismatch: the sky's encoder is another than the one found by its name, and the
            settings name none.
        VersionCorrupt: the published version is damaged.
        GateRefused: a gate did not let the new version pass (RecallTooLow: that of recall); it is
            taken away, what was published stays, and the report is written.
        DiskFull: nothing more can be written; the published version stays whole.
    """
    sky = Path(os.path.abspath(sky))
    head = head_of(sky)
    searches = (*config.saved_searches, *read_saved(sky))
    if config.labels is not None:  # found before the work, not after it
        read_labels(config.labels.file, config.labels.label)
    with explained(sky):
        sky.mkdir(parents=True, exist_ok=True)
        with disk.only_writer(sky):
            disk.remove_leftovers(sky)
            withdraw(sky)
            night = _Night(sky, config, head, searches, progress, find_base(sky))
            report = night.run()
            file = write_report(sky, report)
    if report.outcome == "refused":
        text = "; ".join(f"{gate.name}: {gate.text}" for gate in report.refused_by)
        only_recall = all(gate.name.startswith("recall") for gate in report.refused_by)
        kind = RecallTooLow if only_recall else GateRefused
        raise kind(f"{sky}: not published, {text}; see {file}", report=report.to_json())
    return report


@dataclass(slots=True)
class _Night:
    """One nightly, while the folder is locked."""

    sky: Path
    config: NightlyConfig
    head: SkyHead | None
    searches: tuple[SavedSearch, ...]
    progress: Progress | None
    base: Base
    started: float = field(default_factory=time.monotonic)
    started_at_utc: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    empty: dict[InputKey, EmptyFile] = field(default_factory=dict)  # that earlier nights found

    def run(self) -> NightlyReport:
        version = self.base.version
        with self._stage("compare"):
            inputs = None if version is None else self.sky / version.manifest.inputs
            if version is not None:
                self.empty = read_empty(self.sky, encoder_hash=version.encoder.hash)
            places = self.config.places()
            found = compare(places, sky=self.sky, inputs=inputs, empty=self.empty)
        if version is not None and self._nothing_to_do(found):
            return self._end("unchanged", found, None, version.manifest)
        with self._stage("load the encoder"):
            update = self._update()
        gates: list[Gate] = []
        if update.is_anew:
            with self._stage("compare"):
                found = compare(places, sky=self.sky, inputs=inputs, anew=True)
            self.empty = {}
            self.notes.append(
                f"the encoder is another ({update.encoder.name}): everything is embedded again; "
                "cosines and saved vectors of the one before mean nothing to it"
            )
            gates.append(reach_gate(found.outages))
            if not gates[0].passed:
                return self._end("refused", found, None, None, gates)
        with joined_if_asked(update.cluster):
            with self._stage("read and embed"):
                read = update.read(found.parts)
            with self._stage("sort out"):
                draft = update.prepare(read, removes=True, gone=found.gone)
                write_empty(
                    self.sky,
                    encoder_hash=update.encoder.hash,
                    before=self.empty,
                    left_alone=found.left_alone,
                    found=draft.empty,
                )
        if version is None and draft.changes.rows is None:
            reasons = "; ".join(f"{each.place}: {each.reason}" for each in found.outages)
            num_files = sum(len(part.to_read) for part in found.parts)
            raise ValueError(reasons or nothing_usable(num_files, draft.skipped))
        self.notes += worded(draft.below_range, num_objects=draft.num_embedded)
        self.notes += draft.notes
        if version is not None and draft.unchanged:
            return self._end("unchanged", found, draft, version.manifest)
        if version is not None:
            share = self.config.max_removed_share
            gates += removal_gates(version, draft, max_removed_share=share)
        if not all(gate.passed for gate in gates):
            return self._end("refused", found, draft, None, gates)
        with unproved(self.sky):
            with self._stage("write"):
                manifest, more = update.write(draft)
                self.notes += more
            with self._stage("gates"):
                gates += version_gates(self.sky, version, draft, manifest, self.config)
            passed = all(gate.passed for gate in gates)
            if passed:
                publish(self.sky, manifest.number)
        if not passed:
            with self._pruning():
                sweep(self.sky)
            return self._end("refused", found, draft, None, gates)
        return self._end("published", found, draft, manifest, gates)

    def _nothing_to_do(self, found: Comparison) -> bool:
        """Whether not even a table need be read."""
        version = self.base.version
        assert version is not None
        name = encoder_name(self.config.encoder, self.head)
        return (
            found.is_empty
            and version.manifest.num_joint_left_out == 0
            and self.head is not None
            and (name, version.encoder) == (self.head.encoder.name, self.head.encoder)
        )

    def _update(self) -> Update:
        name = encoder_name(self.config.encoder, self.head)
        local = local_name(name)
        own = checked("float32" if self.head is None else self.head.encoder.precision)
        loaded = encoders.load(local, precision=own)
        head = self.head
        asked = self.config.encoder is not None  # by its name: then another is what is wanted
        if head is not None and asked and head.encoder.hash != loaded.hash:
            head = None
        reference = reference_of(name, loaded, self.sky, head, precision=own)
        if self.head is None or is_empty(self.sky):
            write_head(self.sky, SkyHead(format=FORMAT, encoder=reference))
        return Update(
            self.sky,
            self.base,
            reference,
            loaded,
            local,
            self.config.num_workers,
            self.progress,
            may_begin_anew=asked,
            cluster=cluster_of(self.config.cluster),
        )

    def _end(
        self,
        outcome: Outcome,
        found: Comparison,
        draft: Draft | None,
        manifest: Manifest | None,
        gates: list[Gate] | None = None,
    ) -> NightlyReport:
        """Publish what is there where CURRENT was lost, prune, and report."""
        version = self.base.version
        before = None if version is None else version.manifest
        after = manifest or before
        if version is not None and not self.base.is_published and outcome != "published":
            publish(self.sky, version.number)
            self.notes.append(f"CURRENT was lost: version {version.number} is published again")
        if outcome != "refused" and after is not None:
            write_down(self.sky, after.encoder)
        near: tuple[NewNear, ...] = ()
        if outcome == "published" and self.searches and draft is not None and after is not None:
            with self._stage("saved searches"):
                near = self._near(after.number, draft)
        came, went, changed = _objects(version, draft)  # the version before may be pruned
        pruned = None
        if outcome != "refused" and after is not None:
            with self._stage("prune"):
                pruned = self._prune()
        skipped = [each for key in found.left_alone for each in self.empty[key].found.skipped]
        if draft is not None:
            skipped = [*draft.skipped, *skipped]
        read = [(part.survey, each.path) for part in found.parts for each in part.to_read]
        self.seconds["all"] = time.monotonic() - self.started
        return NightlyReport(
            outcome=outcome,
            version=None if after is None else after.number,
            version_before=None if before is None else before.number,
            started_at_utc=self.started_at_utc,
            num_objects=0 if after is None else after.num_objects,
            num_rows=0 if after is None else after.num_rows,
            num_objects_before=0 if before is None else before.num_objects,
            num_rows_before=0 if before is None else before.num_rows,
            num_embedded=0 if draft is None else draft.num_embedded,
            num_joint=0 if draft is None else draft.plan.num_joint,
            objects_came=came,
            objects_went=went,
            objects_changed=changed,
            files_same=found.num_same,
            files_came=Named.of([path for survey, path in read if (survey, path) in found.new]),
            files_changed=Named.of(
                [path for survey, path in read if (survey, path) not in found.new]
            ),
            files_went=Named.of([path for _, path in found.gone]),
            outages=found.outages,
            unclear={} if draft is None else {path: n for (_, path), n in draft.unclear.items()},
            num_skipped=len(skipped),
            skipped=tuple(skipped[:LISTED]),
            gates=tuple(gates or ()),
            near_saved=near,
            pruned=pruned,
            notes=tuple(self.notes),
            seconds=dict(self.seconds),
        )

    def _near(self, number: int, draft: Draft) -> tuple[NewNear, ...]:
        before = self.base.version
        new = {}
        for view, table in draft.plan.new.items():
            keys = np.unique(table["object_key"].to_numpy())
            if before is not None:
                keys = keys[~before.has_view(keys, view)]
            new[view] = keys
        return new_near(open_version(self.sky, number), self.searches, new)

    def _prune(self) -> Pruned | None:
        with self._pruning():
            return prune(
                self.sky,
                keep_versions=self.config.keep_versions,
                keep_days=self.config.keep_days,
            )
        return None

    @contextmanager
    def _pruning(self) -> Iterator[None]:
        try:
            yield
        except VersionCorrupt as error:  # an old version that is damaged must not end the night
            self.notes.append(f"nothing was pruned: {error}")

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def _objects(version: Version | None, draft: Draft | None) -> tuple[Named, Named, Named]:
    """Objects that came, went and changed."""
    none = Named(0, ())
    if draft is None:
        return none, none, none
    arrays = [table["object_key"].to_numpy() for table in draft.plan.new.values()]
    new: Int64[ndarray, " key"] = np.unique(np.concatenate(arrays)) if arrays else np.empty(0, int)
    came = Named.of(list(draft.changes.new_ids.values()))
    if version is None:
        return came, none, none
    gone = draft.plan.gone
    if not gone.any():
        known = np.setdiff1d(new, np.fromiter(draft.changes.new_ids, np.int64))
        return came, none, Named.of(version.ids_of(known))
    keys = version.live_rows.columns(["object_key"])["object_key"].to_numpy()
    touched = np.unique(keys[gone])
    left = np.union1d(touched[np.isin(touched, keys[~gone])], new)
    went = np.setdiff1d(touched, left)
    changed = np.setdiff1d(np.union1d(touched, new), went)
    changed = np.setdiff1d(changed, np.fromiter(draft.changes.new_ids, np.int64))
    return came, Named.of(version.ids_of(went)), Named.of(version.ids_of(changed))
