"""A new version on disk: segments, object table, deleted bits, footprint, manifest.

Everything is written but CURRENT: until that is replaced, no reader sees any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64
from numpy import ndarray

from index import coding, compaction, disk, sky_head
from index.changes import Changes
from index.codec import BY_THE_RULE, Codec, IndexConfig
from index.embedding import Progress
from index.filtering import Live
from index.footprint import (
    changed_footprint,
    coarse_cells,
    footprint_of,
    read_footprint,
    write_footprint,
)
from index.inputs import Input, write_inputs
from index.manifest import (
    EncoderReference,
    FileRecord,
    Manifest,
    SegmentRecord,
    git_revision,
    read_head,
    record,
)
from index.object_writing import WrittenObjects, write_objects
from index.objects import CATALOGUE, OBJECT_FIELDS, merge_rows
from index.segment import BLOCK_ROWS, FILES, Segment, write_segment
from index.store import Store
from index.version import Version
from index.versions import numbers
from training.encoder import FOREIGN, Encoder

if TYPE_CHECKING:
    from mocpy import MOC


def labelled(table: pa.Table, view: str) -> pa.Table:
    """Rows of one view with the column `view`, as Version.live_rows has them."""
    return table.add_column(1, "view", pa.array([view] * table.num_rows, pa.string()))


def object_id_of(base: Version | None, changes: Changes, key: int) -> str:
    """The id of an object, old or new."""
    name = changes.new_ids.get(key)
    if name is None:
        assert base is not None
        (name,) = base.ids_of(np.array([key]))
    return name


def object_ids_of(base: Version | None, changes: Changes, keys: Int64[ndarray, " n"]) -> pa.Table:
    """object_key, object_id of some objects, old and new."""
    new = np.isin(keys, np.fromiter(changes.new_ids, np.int64, len(changes.new_ids)))
    keys = np.concatenate([keys[~new], keys[new]])
    old = keys[: np.count_nonzero(~new)]
    ids = base.ids_of(old) if base is not None and len(old) else []
    ids += [changes.new_ids[key] for key in keys[len(old) :].tolist()]
    return pa.table({"object_key": keys, "object_id": pa.array(ids, pa.string())})


@dataclass(slots=True)
class VersionWriter:
    """Writes the files of a new version."""

    sky: Path
    encoder: EncoderReference
    loaded: Encoder | None  # None: only old rows are written again, their head being the same
    store: Store | None
    base: Version | None
    progress: Progress | None
    foreign: set[tuple[str, str]] = field(default_factory=set)  # view, survey new to the head
    num_joint_left_out: int | None = 0
    index: IndexConfig = BY_THE_RULE
    again: Sequence[int] | None = None  # segments to write again; None: those that are due
    measure: bool = False  # recall is measured again, however little has changed

    def write(
        self,
        new: dict[str, pa.Table],
        gone: Bool[ndarray, " row"],
        changes: Changes,
        inputs: dict[tuple[str, str], Input],
    ) -> Manifest:
        """Write everything but CURRENT; gives the manifest."""
        number = max(numbers(self.sky), default=0) + 1
        self.index = read_head(self.sky).index
        remade = self._to_remake()
        before = None if self.base is None else self.base.manifest
        # another head makes other vectors, to which the codecs do not fit
        codecs = coding.codecs_of(self.sky, before if self._same_head() else None)
        written: list[coding.Part] = []
        views = sorted({*new, *(view for view, _ in remade)})
        for done, view in enumerate(views, 1):
            again = [i for of_view, i in remade if of_view == view]
            written += self._segment(view, again, gone, new.get(view), codecs.get(view))
            if self.progress:
                self.progress("segments", done, len(views))
        objects = self._objects(new, gone, changes)
        final = self.sky / "versions" / str(number)
        with disk.new_folder(final.parent) as temporary:
            old = self._old_segments(gone, {i for _, i in remade}, temporary, final)
            coded = coding.code(
                self.sky, [*old, *written], self.index,
                known=codecs, curves=() if before is None or self.measure else before.curves,
            )  # fmt: skip
            files = list(objects.files)
            files += sky_head.files_of(self.sky, self.encoder.head_hash)
            files += [file for codec in coded.codecs for file in codec.files]
            write_inputs(temporary / "inputs.parquet", inputs.values())
            files.append(_placed(self.sky, temporary, final, "inputs.parquet"))
            moc = None
            if (objects.cells >= 0).any():
                write_footprint(temporary / "moc.fits", self._footprint(objects))
                files.append(_placed(self.sky, temporary, final, "moc.fits"))
                moc = files[-1].file
            manifest = Manifest(
                number=number,
                built_at_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                software=f"skykin {version_of('skykin')}",
                git_revision=git_revision(),
                encoder=self.encoder,
                segments=coded.records,
                codecs=coded.codecs,
                curves=coded.curves,
                recall=coded.recall,
                partitions=objects.partitions,
                files=tuple(files),
                inputs=f"versions/{number}/inputs.parquet",
                moc=moc,
                num_objects=objects.num_objects,
                num_rows=sum(each.num_rows - each.num_deleted for each in coded.records),
                num_without_position=int(np.count_nonzero(objects.cells < 0)),
                next_object_key=changes.next_key,
                num_joint_left_out=self.num_joint_left_out,
            )
            disk.write_json(temporary / "manifest.json", manifest.model_dump(mode="json"))
            disk.seal(temporary, final)
        return manifest

    def _to_remake(self) -> list[tuple[str, int]]:
        """View and index of old segments to write again, those of a view as one.

        All of them when the search head has changed, else those that compaction chooses.
        """
        if self.base is None:
            return []
        old = [(live.segment.view, i) for i, live in enumerate(self.base.segments)]
        if not self._same_head():
            return old
        again = self.again
        if again is None:
            again = compaction.due(self.base.manifest.segments)
        return [old[i] for i in again]

    def _same_head(self) -> bool:
        return self.base is None or self.base.encoder.head_hash == self.encoder.head_hash

    def _segment(
        self,
        view: str,
        again: Sequence[int],
        gone: Bool[ndarray, " row"],
        new: pa.Table | None,
        codec: Codec | None,
    ) -> list[coding.Part]:
        """Write new rows and those of some old segments as one segment; none where none is left."""
        tables, origin, place = [], [], []  # of each row: the old segment or -1, and its row there
        for i in again:
            assert self.base is not None
            _check_copied(self.base.segments[i].segment, FILES)
            of_segment, row = self.base.live_rows.places
            stays = (of_segment == i) & ~gone
            tables.append(self.base.segments[i].segment.rows().take(pa.array(row[stays])))
            origin.append(np.full(int(stays.sum()), i if self._same_head() else -1))
            place.append(row[stays])
        if new is not None:
            tables.append(new)
            origin.append(np.full(new.num_rows, -1))
            place.append(np.full(new.num_rows, -1))
        rows = pa.concat_tables(tables, promote_options="permissive")
        if not rows.num_rows:
            return []
        order = np.argsort(rows["object_key"].to_numpy(), kind="stable")
        rows = rows.take(pa.array(order)).combine_chunks()
        from_segment = np.concatenate(origin)[order]
        name = write_segment(
            self.sky / "segments",
            view=view,
            keys=rows["object_key"].to_numpy(),
            rows=self._with_precision(view, rows.drop_columns(["object_key"]), from_segment < 0),
            blocks=self._blocks(view, rows, from_segment, np.concatenate(place)[order]),
            dim=self.encoder.search_dim,
            encoder_hash=self.encoder.hash,
            head_hash=self.encoder.head_hash,
            codec=codec if rows.num_rows >= self.index.indexed_rows else None,
        )
        folder = self.sky / "segments" / name
        written = SegmentRecord(
            name=name,
            view=view,
            num_rows=rows.num_rows,
            head=record(self.sky, folder / "segment.json"),
        )
        num_new = 0 if new is None else new.num_rows
        return [coding.Part(written, Live(Segment(folder), None), num_new)]

    def _with_precision(
        self, view: str, rows: pa.Table, from_store: Bool[ndarray, " row"]
    ) -> pa.Table:
        """Rows with the precision that the store has of the vectors that come from it."""
        column: list[str] = rows["precision"].to_pylist()
        lines = np.flatnonzero(from_store)
        for start in range(0, len(lines), BLOCK_ROWS):
            some = lines[start : start + BLOCK_ROWS]
            assert self.store is not None
            made_in = self.store.precisions(view, rows["fingerprint"].take(some).to_pylist())
            for line, each in zip(some.tolist(), made_in, strict=True):
                column[line] = each
        place = rows.column_names.index("precision")
        return rows.set_column(place, "precision", pa.array(column, pa.string()))

    def _blocks(
        self,
        view: str,
        rows: pa.Table,
        from_segment: Int64[ndarray, " row"],
        place: Int64[ndarray, " row"],
    ) -> Iterator[ndarray]:
        """Search vectors, block by block: copied from old segments, made from the store."""
        for start in range(0, rows.num_rows, BLOCK_ROWS):
            origin = from_segment[start : start + BLOCK_ROWS]
            out = np.empty((len(origin), self.encoder.search_dim), np.float16)
            for i in np.unique(origin[origin >= 0]).tolist():
                assert self.base is not None
                folder = self.base.segments[i].segment.folder
                here = np.flatnonzero(origin == i)
                stored = disk.read_array(folder / "vectors.npy", mapped=True)
                out[here] = stored[place[start + here]]
            fresh = np.flatnonzero(origin < 0)
            if len(fresh):
                out[fresh] = self._search_vectors(view, rows.take(pa.array(start + fresh)))
            yield out

    def _search_vectors(self, view: str, rows: pa.Table) -> ndarray:
        assert self.loaded is not None
        assert self.loaded.head is not None
        assert self.store is not None
        surveys = rows["survey"].to_pylist()
        stored = self.store.vectors(view, rows["fingerprint"].to_pylist()).astype(np.float32)
        self.foreign |= {(view, each) for each in self.loaded.head.foreign(view, surveys)}
        return self.loaded.search_vectors(stored, view, surveys).astype(np.float16)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the vectors that were written."""
        return tuple(FOREIGN % each for each in sorted(self.foreign))

    def _old_segments(
        self, gone: Bool[ndarray, " row"], remade: set[int], temporary: Path, final: Path
    ) -> list[coding.Part]:
        """Segments of the version before that go on, with the bits of their deleted rows."""
        if self.base is None:
            return []
        of_segment, row = self.base.live_rows.places
        parts = []
        for i, old in enumerate(self.base.manifest.segments):
            live = self.base.segments[i]
            deleted = np.zeros(old.num_rows, bool) if live.alive is None else ~live.alive
            deleted[row[gone & (of_segment == i)]] = True
            if i in remade or deleted.all():
                continue
            file: FileRecord | None = None
            if deleted.any():
                (temporary / "deleted").mkdir(exist_ok=True)
                disk.write_array(temporary / "deleted" / f"{old.name}.npy", np.packbits(deleted))
                file = _placed(self.sky, temporary, final, f"deleted/{old.name}.npy")
            num_deleted = int(deleted.sum())
            written = old.model_copy(update={"deleted": file, "num_deleted": num_deleted})
            alive = ~deleted if num_deleted else None
            parts.append(
                coding.Part(written, Live(live.segment, alive), num_deleted - old.num_deleted)
            )
        return parts

    def _objects(
        self, new: dict[str, pa.Table], gone: Bool[ndarray, " row"], changes: Changes
    ) -> WrittenObjects:
        """Write what has changed of the object table."""
        tables = [labelled(table, view) for view, table in new.items()]
        touched = _keys(tables)
        if self.base is not None:
            keys = self.base.live_rows.columns(["object_key"])["object_key"].to_numpy()
            touched = np.union1d(touched, keys[gone])
            mine = np.isin(keys, touched)
            for i in np.unique(self.base.live_rows.places[0][mine]).tolist():
                _check_copied(self.base.segments[i].segment, ("object_key.npy", "rows.parquet"))
            lines = np.flatnonzero(~gone & mine)
            if len(lines):
                tables.insert(0, self.base.live_rows.at(lines))
        merged = pa.schema(OBJECT_FIELDS | CATALOGUE).empty_table()
        if tables:
            rows = pa.concat_tables(tables, promote_options="permissive")
            merged = merge_rows(rows, object_ids_of(self.base, changes, _keys(tables)))
        before = None if self.base is None else self.base.manifest
        return write_objects(self.sky, before=before, merged=merged, touched=touched)

    def _footprint(self, objects: WrittenObjects) -> MOC:
        there = coarse_cells(objects.cells)
        if self.base is None or self.base.manifest.moc is None:
            return footprint_of(there)
        (moc,) = (each for each in self.base.manifest.files if each.file == self.base.manifest.moc)
        disk.check(self.sky / moc.file, moc.sha256)  # most of it goes on
        before = read_footprint(self.sky / moc.file)
        went, came = coarse_cells(objects.cells_before), coarse_cells(objects.cells_now)
        return changed_footprint(before, there=there, went=went, came=came)


def _check_copied(segment: Segment, names: Sequence[str]) -> None:
    """Compare with their checksums what goes on in new files, which vouch for what they are given.

    Raises:
        VersionCorrupt: one is not as it was written.
    """
    files = disk.read_json(segment.folder / "segment.json")["files"]
    assert isinstance(files, dict)
    for name in names:
        disk.check(segment.folder / name, files[name]["sha256"])


def _keys(tables: Sequence[pa.Table]) -> Int64[ndarray, " n"]:
    if not tables:
        return np.empty(0, np.int64)
    return np.unique(np.concatenate([table["object_key"].to_numpy() for table in tables]))


def _placed(sky: Path, temporary: Path, final: Path, name: str) -> FileRecord:
    return record(sky, temporary / name, place=final / name)
