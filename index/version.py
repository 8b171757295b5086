"""One open version of a sky: its objects, their rows and vectors, and searching them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from index import disk, lease, search, separations
from index.asked_recall import DEFAULT_RECALL, check_recall
from index.errors import UnknownObject, VersionCorrupt
from index.filtering import Filter, Filters, Live
from index.footprint import read_footprint
from index.live_rows import LiveRows
from index.manifest import Manifest, read_manifest
from index.object_table import ObjectTable
from index.partitions import read_partitions
from index.predicate import condition
from index.probing import Effort
from index.recall import RecallCurve
from index.search import Neighbors
from index.segment import Segment, check_size
from index.segment_rows import SegmentRows

if TYPE_CHECKING:
    from mocpy import MOC

    from index.cluster import Holders, Missing  # which imports this module

FEW_EXCLUDED = 1_000  # objects to exclude: up to here they are found and dropped
_HIDDEN = ("object_key", "views", "_healpix_29")  # not for predicates


class Version:
    """An open version. Opening checks that every file is there and of the recorded size.

    Attributes:
        number: Of the version, from 1.
        path: Its folder.
        manifest: What it wrote down about itself.
        encoder: Name and hashes of the encoder that made the vectors.
        views: Views that have at least one row.
        num_objects: Objects in it.
        device: Where large segments are searched: cpu, or a device of torch such as cuda.
        holders: Who holds its segments and searches them (cluster.py); None: this process.
    """

    holders: Holders | None = None

    def __init__(self, sky: Path, number: int, *, held: bool = True, device: str = "cpu") -> None:
        self.device = device
        self.sky = sky
        self.number = number
        self.path = sky / "versions" / str(number)
        if held:  # files are opened when they are needed; who has the sky's lock needs no lease
            lease.hold(self.path, self)
        self.manifest: Manifest = read_manifest(sky, number)
        self.encoder = self.manifest.encoder
        self.num_objects = self.manifest.num_objects
        self.num_without_position = self.manifest.num_without_position
        for file in self.manifest.files:
            check_size(sky / file.file, file.num_bytes)
        # that choosing.py made; a filter knows which rows are deleted, so each version has its own
        self.filters, self.everything = Filters(), Filter()
        self.segments = tuple(self._open_segment(i) for i in range(len(self.manifest.segments)))
        for live in self.segments:
            if live.segment.on_device:  # here, as two threads that search first would copy it twice
                assert live.segment.lists is not None
        alive = {
            record.view for record in self.manifest.segments if record.num_rows > record.num_deleted
        }
        self.views: tuple[str, ...] = tuple(sorted(alive))
        self._curves = {each.view: each for each in self.manifest.curves}
        self._efforts = lru_cache(maxsize=256)(partial(_efforts, self._curves))

    def _open_segment(self, i: int) -> Live:
        record = self.manifest.segments[i]
        head = self.sky / record.head.file
        check_size(head, record.head.num_bytes)
        disk.check(head, record.head.sha256)  # it holds the checksums of all else
        segment = Segment(head.parent, device=self.device)
        made_by = (segment.encoder_hash, segment.head_hash)
        if made_by != (self.encoder.hash, self.encoder.head_hash):
            raise VersionCorrupt(f"{segment.folder} was made by another encoder than the version")
        if record.deleted is None:
            return Live(segment, None)
        path = self.sky / record.deleted.file
        check_size(path, record.deleted.num_bytes)
        disk.check(path, record.deleted.sha256)  # a bit would bring a row back
        bits = np.unpackbits(disk.read_array(path), count=segment.num_rows)
        return Live(segment, bits == 0)

    @cached_property
    def moc(self) -> MOC | None:
        """Where this sky has objects (see footprint.py); None when no object has a position."""
        return None if self.manifest.moc is None else read_footprint(self.sky / self.manifest.moc)

    @cached_property
    def object_table(self) -> ObjectTable:
        """Every object, read where it is asked for."""
        num_keys = self.manifest.next_object_key
        return ObjectTable(self.sky, self.manifest.partitions, num_keys=num_keys)

    @cached_property
    def table(self) -> pa.Table:
        """The whole object table in memory, ordered by object_key: to make the next version of."""
        return read_partitions(self.sky, self.manifest.partitions)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Columns that a predicate may use, and their types."""
        schema = self.object_table.schema
        return {field.name: str(field.type) for field in schema if field.name not in _HIDDEN}

    def keys_of(self, object_ids: Sequence[str]) -> Int64[ndarray, " n"]:
        """Keys of object ids, in their order; UnknownObject names those that are not here."""
        keys = self.object_table.keys_of_ids(object_ids)
        if (keys < 0).any():
            missing = [object_ids[i] for i in np.flatnonzero(keys < 0).tolist()]
            more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
            raise UnknownObject(
                f"version {self.number} of {self.sky} has no object "
                f"{', '.join(repr(each) for each in missing[:5])}{more}"
            )
        return keys

    def known_keys(self, object_ids: Sequence[str]) -> dict[str, int]:
        """Keys of those object ids that are here."""
        keys = self.object_table.keys_of_ids(object_ids)
        return {object_ids[i]: int(keys[i]) for i in np.flatnonzero(keys >= 0).tolist()}

    def objects(self, keys: Int64[ndarray, " n"], columns: Sequence[str] | None = None) -> pa.Table:
        """The lines of some objects, in their order; UnknownObject for a key that is not here.

        Args:
            keys: Any, in any order.
            columns: Of the table; None: all.
        """
        lines = self.object_table.lines(keys)
        if (lines < 0).any():
            raise UnknownObject(
                f"version {self.number} of {self.sky} has no object with key {keys[lines < 0][0]}"
            )
        return self.object_table.take(lines, columns)

    def ids_of(self, keys: Int64[ndarray, " n"]) -> list[str]:
        """Ids of some objects, in their order; UnknownObject for a key that is not here."""
        return list(self.objects(keys, ["object_id"])["object_id"].to_pylist())

    def where(self, predicate: str) -> Int64[ndarray, " n"]:
        """Keys, ascending, of the objects that a predicate is true for (see predicate.py).

        Raises:
            ValueError: it is no predicate, names an unknown column or compares unlike types.
        """
        return np.flatnonzero(self.allowed_by(predicate))

    def allowed_by(self, predicate: str) -> Bool[ndarray, " key"]:
        """As `where`, by key."""
        sql = condition(predicate, self.columns)
        try:
            return self.object_table.where(sql)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot apply the predicate {predicate!r}: {reason}") from error

    def in_cone(
        self, ra_deg: float, dec_deg: float, radius_arcsec: float
    ) -> tuple[Int64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Keys and separations (arcsec) within a radius, nearest first (see separations.py)."""
        return separations.in_cone(self.object_table, ra_deg, dec_deg, radius_arcsec)

    def nearest(self, ra_deg: float, dec_deg: float) -> tuple[int, float] | None:
        """Key and separation (arcsec) of the object nearest to a position, however far."""
        return separations.nearest(self.object_table, ra_deg, dec_deg)

    def vectors(self, keys: Int64[ndarray, " n"], view: str) -> Float32[ndarray, "n dim"]:
        """Unit search vectors of some objects; the first row of the view where there are several.

        Raises:
            UnknownObject: an object has no such view.
        """
        segment, row = self._rows_of(keys, view)
        if (row < 0).any():
            lacking = self.objects(keys[row < 0][:1], ["object_id"])["object_id"][0].as_py()
            raise UnknownObject(
                f"object {lacking!r} has no {view} view: this version has {', '.join(self.views)}"
            )
        out = np.empty((len(keys), self.encoder.search_dim), np.float32)
        for number in np.unique(segment):
            here = segment == number
            out[here] = self.segments[number].segment.vectors(row[here])
        return out

    def has_view(self, keys: Int64[ndarray, " n"], view: str) -> Bool[ndarray, " n"]:
        """Which of these objects have a row of the view."""
        return self._rows_of(keys, view)[1] >= 0

    def rows(self, keys: Int64[ndarray, " n"], columns: Sequence[str] | None = None) -> pa.Table:
        """What objects were made from, one line a row.

        Columns object_key, view, survey, release, source_id, source, source_part, calibrated, notes
        and those of the catalogue. A joint view of several surveys has "a+b" as survey and no
        source.

        Args:
            keys: Any, in any order.
            columns: Those to read besides object_key and view; None: all.
        """
        tables = [each.read(each.of(keys), columns) for each in self.segment_rows]
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()

    def surveys(self, keys: Int64[ndarray, " n"]) -> pa.Table:
        """Columns object_key, view, survey of `rows`, and its order, without reading the rest."""
        columns: dict[str, list[ndarray]] = {"object_key": [], "view": [], "survey": []}
        for each in self.segment_rows:
            rows, surveys = each.of(keys), each.surveys
            if len(rows):
                segment = each.live.segment
                columns["object_key"].append(segment.object_key[rows])
                columns["view"].append(np.full(len(rows), segment.view, object))
                columns["survey"].append(np.array(surveys.names, object)[surveys.of_row[rows]])
        kinds = {"object_key": pa.int64(), "view": pa.string(), "survey": pa.string()}
        return pa.table(
            {
                name: pa.array(np.concatenate([np.empty(0, object), *columns[name]]), kind)
                for name, kind in kinds.items()
            }
        )

    @cached_property
    def segment_rows(self) -> tuple[SegmentRows, ...]:
        """What the rows of each segment were made from, read where it is asked for."""
        return tuple(SegmentRows(live) for live in self.segments)

    @cached_property
    def live_rows(self) -> LiveRows:
        """All rows that are not deleted: what the next version is made of."""
        return LiveRows(self.segment_rows)

    def search(
        self,
        queries: Float32[ndarray, "query dim"],
        *,
        view: str,
        k: int,
        keys: Int64[ndarray, " allowed"] | None = None,
        chosen: Filter | None = None,
        exclude: Int64[ndarray, " excluded"] | None = None,
        recall: float | int = DEFAULT_RECALL,
        missing: list[Missing] | None = None,
    ) -> Neighbors:
        """The k most similar objects, best first, ties by key.

        Exact where the view has no codec. Else as far as the measured curve says that the asked
        recall needs (see recall.py), or every row where no effort reached it.

        Args:
            queries: Any length but zero; scaled to unit length.
            view: One of `views`, or "any": ranks of each view are fused (see search.fuse).
            k: At least 1. Rows shorter than k end in key -1, score -inf.
            keys: Only these objects; None: all.
            chosen: Only what this filter of `choosing.choose` allows; with `keys` what both allow.
            exclude: Never these.
            recall: Share of the exact answer that is to be found, on average; 1 = look at every
                row.
            missing: Gets what actors of a cluster that were lost would have searched.

        Raises:
            PartMissing: `missing` is None, and actors of a cluster were lost.
            ValueError: k below 1, recall not in (0, 1], an unknown view, a zero query or queries of
                another length.
        """
        if k < 1:
            raise ValueError(f"expected k of 1 or more, got {k}")
        if view != "any" and view not in self.views:
            raise ValueError(
                f"unknown view {view!r}: this version has {', '.join((*self.views, 'any'))}"
            )
        if queries.shape[1] != self.encoder.search_dim:
            raise ValueError(
                f"expected queries of {self.encoder.search_dim} dimensions, got {queries.shape[1]}"
            )
        queries = search.unit_queries(queries)
        check_recall(recall)
        num_keys = self.manifest.next_object_key
        if chosen is None:
            chosen = self.everything
        if keys is not None:
            chosen &= Filter.of_keys(keys, num_keys)
        left_out = np.empty(0, np.int64) if exclude is None else np.unique(exclude)
        if len(left_out) > FEW_EXCLUDED:
            chosen &= Filter.of_keys(left_out, num_keys, without=True)
            left_out = left_out[:0]
        # few are found and then dropped, for which a kept filter serves
        k, asked = k + len(left_out), k
        if view != "any":
            found = self._find(queries, view, k, chosen, recall, missing)
            return search.without(found, left_out, k=asked)
        depth = max(4 * k, 200)  # a rank below it would add less than 1 / 260
        each_view = [
            search.without(
                self._find(queries, each, depth, chosen, recall, missing), left_out, k=depth
            )
            for each in self.views
        ]
        return search.fuse(each_view, k=asked)

    def _find(
        self,
        queries: Float32[ndarray, "query dim"],
        view: str,
        k: int,
        chosen: Filter,
        recall: float | int,
        missing: list[Missing] | None,
    ) -> Neighbors:
        """Search one view.

        Queries that turn out to be directions are asked again as such; those for which lists held
        fewer than k, exactly.
        """
        segments = self._of_view(view)
        find: Callable[..., Neighbors] = search.find
        if self.holders is not None:
            find = partial(self.holders.find, missing=missing)
        curve = self._curves.get(view)
        if curve is None or recall == 1:
            return find(queries, segments, k=k, chosen=chosen)
        effort, effort_far = self._efforts(view, recall, k)
        found = find(queries, segments, k=k, chosen=chosen, effort=effort)
        best = found.scores[:, 0]
        if effort is not None and min(best.tolist(), default=np.inf) < curve.near:
            far = best < curve.near
            again = find(queries[far], segments, k=k, chosen=chosen, effort=effort_far)
            found.keys[far], found.scores[far] = again.keys, again.scores
        if effort is not None and min(found.keys[:, -1].tolist(), default=0) < 0:
            short = found.keys[:, -1] < 0
            again = find(queries[short], segments, k=k, chosen=chosen)
            found.keys[short], found.scores[short] = again.keys, again.scores
        return found

    def _of_view(self, view: str) -> list[Live]:
        return [live for live in self.segments if live.segment.view == view]

    def _rows_of(self, keys: ndarray, view: str) -> tuple[ndarray, ndarray]:
        """Segment and row of the first live row of each key in a view, -1 where there is none."""
        segment = np.full(len(keys), -1, np.int64)
        row = np.full(len(keys), -1, np.int64)
        for number, live in enumerate(self.segments):
            if live.segment.view != view:
                continue
            first = self.segment_rows[number].first(keys)
            found = (first >= 0) & (row < 0)
            segment[found], row[found] = number, first[found]
        return segment, row


def _efforts(
    curves: Mapping[str, RecallCurve], view: str, recall: float | int, k: int
) -> tuple[Effort | None, Effort | None]:
    """For rows and for directions; to look them up takes as long as a tenth of a search."""
    rows, along = (curves[view].effort(recall, direction=each, k=k) for each in (False, True))
    return rows, along
