"""The object table of an open version, read where it is asked for.

Partitions are mapped into memory in Arrow's layout, so what a search reads of them is page cache,
which the system takes back when it needs room. Held for an object are 4 bytes once its line was
asked for (in which partition it lies, and where), and 8 more once ids were: the head of a hash of
its id and its key, in one sorted number. Two ids with one head are told apart by reading them.

Partitions of skies from before they could be mapped are read from Parquet into memory as they were,
until a build, nightly or `skykin reindex` writes the next version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64, UInt64
from numpy import ndarray

from index.objects import CATALOGUE, OBJECT_FIELDS
from index.partitions import Partition, open_partition
from index.predicate import connection, quoted

_BLOCK = 1 << 18  # ids hashed at a time


@dataclass(frozen=True, slots=True)
class Positions:
    """Where some objects are (ICRS)."""

    keys: Int64[ndarray, " n"]
    ra_deg: Float64[ndarray, " n"]
    dec_deg: Float64[ndarray, " n"]


class ObjectTable:
    """The objects of a version. Lines are numbered through all partitions."""

    def __init__(self, sky: Path, partitions: Sequence[Partition], *, num_keys: int) -> None:
        self.sky = sky
        self.partitions = tuple(partitions)
        self.num_keys = num_keys  # all keys are below

    @cached_property
    def _batches(self) -> tuple[pa.RecordBatch, ...]:
        return tuple(open_partition(self.sky, each) for each in self.partitions)

    @cached_property
    def _starts(self) -> Int64[ndarray, " partition"]:
        """First line of each partition."""
        sizes = [each.num_objects for each in self.partitions]
        return np.cumsum([0, *sizes[:-1]])[: len(sizes)]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of all partitions by name; where their types differ, one that holds both."""
        if not self._batches:
            return pa.schema(OBJECT_FIELDS | CATALOGUE)
        schemas = [batch.schema for batch in self._batches]
        return pa.unify_schemas(schemas, promote_options="permissive")

    def keys(self) -> Iterator[Int64[ndarray, " n"]]:
        """Keys of all objects, partition by partition, in no order."""
        for batch in self._batches:
            yield batch.column("object_key").to_numpy()

    @cached_property
    def _line_of_key(self) -> ndarray:
        num_lines = sum(each.num_objects for each in self.partitions)
        small = num_lines < np.iinfo(np.int32).max
        lines = np.full(self.num_keys, -1, np.int32 if small else np.int64)
        for start, keys in zip(self._starts, self.keys(), strict=True):
            lines[keys] = np.arange(start, start + len(keys))
        return lines

    def lines(self, keys: Int64[ndarray, " n"]) -> Int64[ndarray, " n"]:
        """Lines of some objects, -1 for a key that is not here."""
        known = self._line_of_key
        there = (keys >= 0) & (keys < len(known))
        found = np.full(len(keys), -1, np.int64)
        found[there] = known[keys[there]]
        return found

    def take(self, lines: Int64[ndarray, " n"], columns: Sequence[str] | None = None) -> pa.Table:
        """Some lines, in their order.

        Args:
            lines: As `lines` gives them, none of them -1.
            columns: Some of `schema`, at least one; None: all.
        """
        asked = list(self.schema.names if columns is None else columns)
        names = list(dict.fromkeys(["object_key", *asked]))  # a partition may lack all others
        schema = pa.schema([self.schema.field(name) for name in names])
        if not len(lines):
            return schema.empty_table().select(asked)
        partition = np.searchsorted(self._starts, lines, side="right") - 1
        order = np.argsort(partition, kind="stable")
        pieces: dict[tuple[str, ...], list[pa.RecordBatch]] = {}  # of the same columns
        place: dict[tuple[str, ...], list[ndarray]] = {}
        numbers, starts = np.unique(partition[order], return_index=True)
        for number, here in zip(numbers, np.split(order, starts[1:]), strict=True):
            batch = self._batches[number]
            own = batch.select([name for name in names if name in batch.schema.names])
            kind = tuple(map(str, own.schema))
            piece = own.take(pa.array(lines[here] - self._starts[number]))
            pieces.setdefault(kind, []).append(piece)
            place.setdefault(kind, []).append(here)
        tables = [pa.Table.from_batches(each) for each in pieces.values()]
        table = pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")
        back = np.empty(len(lines), np.int64)
        back[np.concatenate([here for each in place.values() for here in each])] = np.arange(
            len(lines)
        )
        return table.select(asked).combine_chunks().take(pa.array(back))

    def where(self, condition: str) -> Bool[ndarray, " key"]:
        """Which objects, by key, a condition of predicate.py is true for.

        Raises:
            duckdb.Error: it compares unlike types, or a value is out of range.
        """
        alike: dict[tuple[str, ...], list[pa.RecordBatch]] = {}
        for batch in self._batches:
            alike.setdefault(tuple(map(str, batch.schema)), []).append(batch)
        chosen = np.zeros(self.num_keys, bool)
        with connection() as database:
            tables = [pa.Table.from_batches(some) for some in alike.values()]
            if len(tables) != 1:  # the first names columns and types, also where nothing else does
                tables.insert(0, self.schema.empty_table())
            for number, table in enumerate(tables):
                database.register(f"objects_{number}", table)
            union = " UNION ALL BY NAME ".join(
                f"SELECT * FROM objects_{number}" for number in range(len(tables))
            )
            # in no order, which costs five times as much as all the rest
            found = database.sql(
                f"SELECT {quoted('object_key')} FROM ({union}) AS objects WHERE {condition}"
            ).to_arrow_table()
        for keys in found["object_key"].chunks:
            chosen[keys.to_numpy()] = True
        return chosen

    def positions(self) -> Iterator[Positions]:
        """Keys and positions of the objects that have one, partition by partition."""
        for batch in self._batches:
            ra_deg, dec_deg = batch.column("ra_deg"), batch.column("dec_deg")
            keys = batch.column("object_key")
            if ra_deg.null_count:
                known = ra_deg.is_valid()
                keys, ra_deg, dec_deg = (each.filter(known) for each in (keys, ra_deg, dec_deg))
            if len(keys):
                yield Positions(
                    keys.to_numpy(),
                    ra_deg.to_numpy(),
                    dec_deg.to_numpy(zero_copy_only=False),
                )

    @property
    def _key_mask(self) -> np.uint64:
        """Low bits of a number of `_hashes` that hold the key; the others are the hash's."""
        return np.uint64((1 << (self.num_keys - 1).bit_length()) - 1)

    @cached_property
    def _hashes(self) -> UInt64[ndarray, " object"]:
        """High bits of the hash of each id, and the object's key, in one number; ascending."""
        numbers = np.empty(sum(each.num_objects for each in self.partitions), np.uint64)
        for first, batch in zip(self._starts, self._batches, strict=True):
            for start in range(0, batch.num_rows, _BLOCK):
                some = batch.slice(start, _BLOCK)
                keys = some.column("object_key").to_numpy().astype(np.uint64)
                heads = _hashes_of(some.column("object_id")) & ~self._key_mask
                numbers[first + start : first + start + len(keys)] = heads | keys
        numbers.sort()
        return numbers

    def keys_of_ids(self, object_ids: Sequence[str]) -> Int64[ndarray, " n"]:
        """Keys of object ids, -1 for an id that is not here."""
        keys = np.full(len(object_ids), -1, np.int64)
        # no id of a table has half a character of UTF-16, which Python's texts may have
        asked = [i for i, each in enumerate(object_ids) if _is_utf8(each)]
        if not asked or not len(self._hashes):
            return keys
        wanted = pa.array([object_ids[i] for i in asked], pa.string())
        own = self._key_mask
        heads = _hashes_of(wanted) & ~own
        first = np.searchsorted(self._hashes, heads)
        end = np.searchsorted(self._hashes, heads | own, side="right")
        place = np.array(asked, np.int64)
        for nth in range(int((end - first).max())):
            open_ = np.flatnonzero((first + nth < end) & (keys[place] < 0))
            candidates = (self._hashes[first[open_] + nth] & own).astype(np.int64)
            ids = self.take(self.lines(candidates), ["object_id"])["object_id"]
            same = pc.equal(ids, wanted.take(pa.array(open_))).to_numpy()
            keys[place[open_[same]]] = candidates[same]
        return keys


def _hashes_of(ids: pa.Array) -> UInt64[ndarray, " n"]:
    """The same for the same id, as long as this process runs."""
    hashes = np.empty(len(ids), np.uint64)
    with connection() as database:
        database.register("asked", pa.table({"id": ids, "line": pa.array(np.arange(len(ids)))}))
        found = database.execute("SELECT line, hash(id) AS hash FROM asked").fetchnumpy()
    hashes[np.asarray(found["line"])] = found["hash"]
    return hashes


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
