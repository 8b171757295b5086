"""One open version of a sky: its objects, their rows and vectors, and searching them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Float64, Int64
from mocpy import MOC
from numpy import ndarray

from index import disk, lease, search
from index.directory import Directory
from index.errors import UnknownObject, VersionCorrupt
from index.filtering import Filter, Filters, Live
from index.footprint import read_footprint
from index.manifest import Manifest, read_manifest
from index.partitions import read_partitions
from index.predicate import condition, connection
from index.recall import DEFAULT_RECALL
from index.search import Neighbors
from index.segment import Segment, check_size
from training.observations import check_position

MANY_IDS = 1_000  # beyond, all ids are hashed once instead of looked up by halves
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
    """

    def __init__(self, sky: Path, number: int, *, held: bool = True, device: str = "cpu") -> None:
        self.device = device
        self.sky = sky
        self.number = number
        self.path = sky / "versions" / str(number)
        if held:  # files are opened when they are needed; who has the sky's lock needs no lease
            lease.hold(self.path, self)
        self.manifest: Manifest = read_manifest(sky, number)
        if self.manifest.number != number:
            raise VersionCorrupt(
                f"{self.path / 'manifest.json'} is of version {self.manifest.number}"
            )
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

    def _open_segment(self, i: int) -> Live:
        record = self.manifest.segments[i]
        head = self.sky / record.head.file
        check_size(head, record.head.num_bytes)
        if disk.sha256_of(head) != record.head.sha256:  # it holds the checksums of all else
            raise VersionCorrupt(f"{head}: its content has changed: the checksum does not hold")
        segment = Segment(head.parent, device=self.device)
        made_by = (segment.encoder_hash, segment.head_hash)
        if made_by != (self.encoder.hash, self.encoder.head_hash):
            raise VersionCorrupt(f"{segment.folder} was made by another encoder than the version")
        if record.deleted is None:
            return Live(segment, None)
        path = self.sky / record.deleted.file
        check_size(path, record.deleted.num_bytes)
        bits = np.unpackbits(disk.read_array(path), count=segment.num_rows)
        return Live(segment, bits == 0)

    @cached_property
    def moc(self) -> MOC | None:
        """Where this sky has objects (see footprint.py); None when no object has a position."""
        return None if self.manifest.moc is None else read_footprint(self.sky / self.manifest.moc)

    @cached_property
    def table(self) -> pa.Table:
        """The whole object table, ordered by object_key."""
        return read_partitions(self.sky, self.manifest.partitions)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Columns that a predicate may use, and their types."""
        return {
            field.name: str(field.type) for field in self.table.schema if field.name not in _HIDDEN
        }

    def keys_of(self, object_ids: Sequence[str]) -> Int64[ndarray, " n"]:
        """Keys of object ids, in their order; UnknownObject names those that are not here."""
        place = self._places_of_ids(object_ids)
        if (place < 0).any():
            missing = [object_ids[i] for i in np.flatnonzero(place < 0).tolist()]
            more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
            raise UnknownObject(
                f"version {self.number} of {self.sky} has no object "
                f"{', '.join(repr(each) for each in missing[:5])}{more}"
            )
        return self._keys[place]

    def known_keys(self, object_ids: Sequence[str]) -> dict[str, int]:
        """Keys of those object ids that are here."""
        place = self._places_of_ids(object_ids)
        return {
            object_ids[i]: int(self._keys[place[i]]) for i in np.flatnonzero(place >= 0).tolist()
        }

    def objects(self, keys: Int64[ndarray, " n"]) -> pa.Table:
        """The lines of some objects, in their order; UnknownObject for a key that is not here."""
        return self.table.take(pa.array(self._place(keys)))

    def where(self, predicate: str) -> Int64[ndarray, " n"]:
        """Keys, ascending, of the objects that a predicate is true for (see predicate.py).

        Raises:
            ValueError: it is no predicate, names an unknown column or compares unlike types.
        """
        sql = condition(predicate, self.columns)
        with connection() as database:
            database.register("objects", self.table)
            try:
                found = database.execute(
                    f"SELECT object_key FROM objects WHERE {sql} ORDER BY object_key"
                ).fetchnumpy()
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"cannot apply the predicate {predicate!r}: {reason}") from error
        return np.asarray(found["object_key"], dtype=np.int64)

    def in_cone(
        self, ra_deg: float, dec_deg: float, radius_arcsec: float
    ) -> tuple[Int64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Keys and separations (arcsec) within a radius, nearest first.

        Objects without a position are never found: `num_without_position` says how many.

        Raises:
            ValueError: the position is off the sky or the radius not in (0, 648,000] arcsec.
        """
        check_position(ra_deg, dec_deg)
        if not 0 < radius_arcsec <= 648_000:
            raise ValueError(
                f"expected a radius above 0 and up to 648,000 arcsec, got {radius_arcsec}"
            )
        keys, points = self._positions
        centre = _points(np.array([ra_deg]), np.array([dec_deg]))[0]
        chord = np.linalg.norm(points - centre, axis=1)
        separations = np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600
        inside = np.flatnonzero(separations <= radius_arcsec)
        inside = inside[np.lexsort((keys[inside], separations[inside]))]
        return keys[inside], separations[inside]

    def vectors(self, keys: Int64[ndarray, " n"], view: str) -> Float32[ndarray, "n dim"]:
        """Unit search vectors of some objects; the first row of the view where there are several.

        Raises:
            UnknownObject: an object has no such view.
        """
        segment, row = self._rows_of(keys, view)
        if (row < 0).any():
            lacking = self.objects(keys[row < 0][:1])["object_id"][0].as_py()
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

    def rows(self, keys: Int64[ndarray, " n"]) -> pa.Table:
        """What objects were made from, one line a row.

        Columns object_key, view, survey, release, source_id, source, source_part, calibrated, notes
        and those of the catalogue. A joint view of several surveys has "a+b" as survey and no
        source.
        """
        wanted, lines, first = np.unique(keys), [], 0
        for there in self.live_keys:
            starts = np.searchsorted(there, wanted, side="left")
            ends = np.searchsorted(there, wanted, side="right")
            lines += [np.arange(a, b) for a, b in zip(starts + first, ends + first, strict=True)]
            first += len(there)
        found = np.sort(np.concatenate([np.empty(0, np.int64), *lines]))
        return self.all_rows.take(pa.array(found))

    @cached_property
    def all_rows(self) -> pa.Table:
        """Every live row, oldest segment first."""
        tables = []
        for live in self.segments:
            table = live.segment.rows()
            view = pa.array([live.segment.view] * table.num_rows, pa.string())
            table = table.add_column(1, "view", view)
            tables.append(table if live.alive is None else table.filter(pa.array(live.alive)))
        return pa.concat_tables(tables, promote_options="permissive")

    def row_columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all live rows, line by line as in `all_rows`, which reads every one."""
        known = self._row_columns
        missing = [name for name in names if name not in known]
        if missing:
            tables = [self._columns_of(live, missing) for live in self.segments]
            table = pa.concat_tables(tables, promote_options="permissive")
            known.update({name: table[name] for name in missing})
        return pa.table({name: known[name] for name in names})

    @cached_property
    def _row_columns(self) -> dict[str, pa.ChunkedArray]:
        return {}

    def _columns_of(self, live: Live, names: list[str]) -> pa.Table:
        num, same = live.segment.num_rows, pa.scalar(live.segment.view, pa.string())
        stored = [name for name in names if name not in ("object_key", "view")]
        table = live.segment.rows(stored) if stored else None
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        for name in names:
            if name == "object_key":
                columns[name] = pa.array(live.segment.object_key)
            elif name == "view":
                columns[name] = pa.repeat(same, num)
            else:
                assert table is not None
                columns[name] = table[name]
        found = pa.table(columns)
        return found if live.alive is None else found.filter(pa.array(live.alive))

    def rows_at(self, lines: Int64[ndarray, " n"], columns: list[str] | None = None) -> pa.Table:
        """Some lines of `all_rows`, ascending; of files only what holds them is read.

        Catalogue columns that no segment of these lines has are not there.

        Args:
            lines: Numbers of lines.
            columns: To read, beside `object_key` and `view`; None: all.
        """
        of_segment, row = self.row_places
        tables = []
        for number in np.unique(of_segment[lines]).tolist():
            segment = self.segments[number].segment
            table = segment.rows_at(row[lines[of_segment[lines] == number]], columns)
            view = pa.repeat(pa.scalar(segment.view, pa.string()), table.num_rows)
            tables.append(table.add_column(1, "view", view))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    @cached_property
    def directory(self) -> Directory:
        """Keys and ids of all objects, without the rest of the table."""
        return Directory.read(self.sky, self.manifest.partitions)

    @cached_property
    def live_keys(self) -> tuple[Int64[ndarray, " row"], ...]:
        """Keys, ascending, of the live rows of each segment."""
        return tuple(
            live.segment.object_key if live.alive is None else live.segment.object_key[live.alive]
            for live in self.segments
        )

    @cached_property
    def row_places(self) -> tuple[Int64[ndarray, " row"], Int64[ndarray, " row"]]:
        """Segment (index into `segments`) and row in it of each line of `all_rows`."""
        rows = [
            np.arange(live.segment.num_rows) if live.alive is None else np.flatnonzero(live.alive)
            for live in self.segments
        ]
        segment = [np.full(len(some), number) for number, some in enumerate(rows)]
        return np.concatenate(segment), np.concatenate(rows)

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

        Raises:
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
        if not 0 < recall <= 1:
            raise ValueError(f"expected a recall above 0 and up to 1, got {recall}")
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
            found = self._find(queries, view, k, chosen, recall)
            return search.without(found, left_out, k=asked)
        depth = max(4 * k, 200)  # a rank below it would add less than 1 / 260
        each_view = [
            search.without(self._find(queries, each, depth, chosen, recall), left_out, k=depth)
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
    ) -> Neighbors:
        """Search one view; queries that turn out to be directions are asked again as such."""
        segments = self._of_view(view)
        curve = self.manifest.curve_of(view)
        if curve is None or recall == 1:
            return search.find(queries, segments, k=k, chosen=chosen)
        near = curve.effort(recall, direction=False, k=k)
        found = search.find(queries, segments, k=k, chosen=chosen, effort=near)
        far = np.flatnonzero(found.scores[:, 0] < curve.near)
        if near is not None and len(far):
            effort = curve.effort(recall, direction=True, k=k)
            again = search.find(queries[far], segments, k=k, chosen=chosen, effort=effort)
            found.keys[far], found.scores[far] = again.keys, again.scores
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
            rows = np.arange(live.segment.num_rows)
            rows = rows if live.alive is None else rows[live.alive]
            here = live.segment.object_key[rows]
            if not len(here):
                continue
            place = np.minimum(np.searchsorted(here, keys), len(here) - 1)
            found = (here[place] == keys) & (row < 0)
            segment[found], row[found] = number, rows[place[found]]
        return segment, row

    @cached_property
    def _keys(self) -> Int64[ndarray, " object"]:
        return self.table["object_key"].to_numpy()

    @cached_property
    def _ids(self) -> tuple[pa.StringArray, Int64[ndarray, " object"]]:
        """Ids as the table has them, and the lines of the table in the order of their ids."""
        ids = self.table["object_id"].combine_chunks()
        return ids, pc.sort_indices(ids).to_numpy().astype(np.int64)

    def _places_of_ids(self, object_ids: Sequence[str]) -> Int64[ndarray, " n"]:
        """Lines of the table, -1 for an id that is not here."""
        ids, order = self._ids
        if len(object_ids) > MANY_IDS:
            found = pc.index_in(pa.array(object_ids, pa.string()), value_set=ids)
            return found.fill_null(-1).to_numpy().astype(np.int64)
        place = np.full(len(object_ids), -1, np.int64)
        for number, each in enumerate(object_ids):
            # UTF-8, by which Arrow sorts, has the order of code points, by which Python compares
            i = bisect_left(order, each, key=lambda line: ids[int(line)].as_py())
            if i < len(order) and ids[int(order[i])].as_py() == each:
                place[number] = order[i]
        return place

    @cached_property
    def _positions(self) -> tuple[ndarray, ndarray]:
        known = self.table["ra_deg"].is_valid().to_numpy()
        some = self.table.filter(pa.array(known))
        points = _points(some["ra_deg"].to_numpy(), some["dec_deg"].to_numpy())
        return self._keys[known], points

    def _place(self, keys: ndarray) -> ndarray:
        if not len(self._keys):
            place = np.zeros(len(keys), np.int64)
            found = np.zeros(len(keys), bool)
        else:
            place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found = self._keys[place] == keys
        if not found.all():
            raise UnknownObject(
                f"version {self.number} of {self.sky} has no object with key {keys[~found][0]}"
            )
        return place


def _points(ra_deg: ndarray, dec_deg: ndarray) -> Float64[ndarray, "n 3"]:
    """Points on the unit sphere."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
