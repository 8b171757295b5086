"""Immutable rows of one view: unit search vectors, whose they are, and what they were made from.

segments/<view>-<digest>/
    segment.json     counts, hashes of encoder and head, precision of the stored numbers and of the
                     encoder's arithmetic, checksums of the files
    vectors.npy      float16 (row, dim), unit length, memory-mapped
    object_key.npy   int64 (row,), ascending
    index.faiss      rows coded and listed (codec.py), in segments of a view that has a codec
    rows.parquet     survey, release, source_id, object_id as the survey gives it, source,
                     source_part, calibrated, notes, precision of the encoder's arithmetic,
                     fingerprint, position, catalogue values
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64
from numpy import ndarray

from index import disk
from index.codec import Codec, CodecConfig, fill, read_index, write_index
from index.device_rows import DeviceRows
from index.errors import VersionCorrupt
from index.mapped_vectors import MappedVectors
from index.probing import Lists

DEVICE_ROWS = 200_000  # up to here a segment without an index stays off another device
BLOCK_ROWS = 65_536  # rows read, transformed or scanned at a time
FILES = ("vectors.npy", "object_key.npy", "rows.parquet")
INDEX = "index.faiss"
_HEAD = (
    "view", "num_rows", "num_objects", "dim", "precision", "encoder_precisions", "encoder_hash",
    "head_hash",
)  # fmt: skip


class Segment:
    """An open segment. Opening checks that its files are there and of the recorded size.

    Attributes:
        device: Where it is searched: cpu, or a device of torch such as cuda.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self.device = device
        head = disk.read_json(folder / "segment.json")
        self.folder = folder
        self.name = folder.name
        self.view = str(head["view"])
        self.num_rows = int(str(head["num_rows"]))
        self.dim = int(str(head["dim"]))
        self.encoder_hash = str(head["encoder_hash"])
        self.head_hash = str(head["head_hash"])
        # segments without the field are older than any encoder that could be loaded in bfloat16
        made_in = head.get("encoder_precisions", ["float32"])
        assert isinstance(made_in, list)
        self.encoder_precisions: tuple[str, ...] = tuple(map(str, made_in))
        files = head["files"]
        assert isinstance(files, dict)
        for name, record in files.items():
            check_size(folder / name, record["num_bytes"])
        self.codec_hash = None if head.get("codec_hash") is None else str(head["codec_hash"])
        self._codec, self._index = head.get("codec"), files.get(INDEX)

    @cached_property
    def object_key(self) -> Int64[ndarray, " row"]:
        # stays mapped, and slices of it are no maps of their own, which take twice the time
        return np.asarray(self._load("object_key.npy", (self.num_rows,)))

    @cached_property
    def max_rows_per_object(self) -> int:
        """The most rows that one object has here (1 unless it was observed repeatedly)."""
        if not self.num_rows:
            return 0
        starts = np.flatnonzero(np.diff(self.object_key, prepend=-1))  # keys ascend
        return int(np.diff(starts, append=self.num_rows).max())

    @property
    def has_lists(self) -> bool:
        """Whether its rows are searched by `lists`."""
        return self._index is not None or self.on_device

    @property
    def on_device(self) -> bool:
        """Whether `lists` are on another device; small segments without an index stay here."""
        is_large = self._index is not None or self.num_rows > DEVICE_ROWS
        return self.device != "cpu" and is_large

    @cached_property
    def lists(self) -> Lists | DeviceRows | None:
        """Its coded rows, read into memory, or its rows on the device; None where it has none.

        Raises:
            VersionCorrupt: the index is not the file whose checksum the segment holds.
            GpuUnavailable: the device is not there, or has too little memory.
        """
        if self.on_device:
            coded: object = None
            if isinstance(self._codec, dict) and self._codec["kind"] == "sq8":
                assert self._index is not None
                coded = read_index(self.folder / INDEX, str(self._index["sha256"]))
            return DeviceRows(self._stored, device=self.device, index=coded)
        if self._index is None:
            return None
        assert isinstance(self._codec, dict)
        index = read_index(self.folder / INDEX, str(self._index["sha256"]))
        return Lists(index, CodecConfig(**self._codec), self.mapped)

    @cached_property
    def _stored(self) -> ndarray:
        return self._load("vectors.npy", (self.num_rows, self.dim))

    @cached_property
    def mapped(self) -> MappedVectors:
        """Its vectors, to be scanned where they lie."""
        path = self.folder / "vectors.npy"
        return MappedVectors(self._stored, disk.read_array(path, scattered=True))

    def vectors(self, rows: ndarray | slice) -> Float32[ndarray, "n dim"]:
        """Unit vectors of some rows. float16 on disk loses 3e-4 of a component at most."""
        if isinstance(rows, slice):
            return unit_rows(self.mapped.stored[rows])
        return unit_rows(self.mapped.rows(rows))

    def rows(self, columns: list[str] | None = None) -> pa.Table:
        """What each row was made from, with `object_key` in front."""
        path = self.folder / "rows.parquet"
        table = disk.read_table(path, columns)
        if table.num_rows != self.num_rows:
            raise VersionCorrupt(f"{path}: expected {self.num_rows} rows, got {table.num_rows}")
        if "precision" not in table.column_names and (columns is None or "precision" in columns):
            same = pa.array(self.encoder_precisions * self.num_rows, pa.string())
            table = table.append_column("precision", same)
        return table.add_column(0, "object_key", pa.array(self.object_key))

    def _load(self, name: str, shape: tuple[int, ...]) -> ndarray:
        array = disk.read_array(self.folder / name, mapped=True)
        if array.shape != shape:
            raise VersionCorrupt(f"{self.folder / name}: expected shape {shape}, got {array.shape}")
        return array


def write_segment(
    parent: Path,
    *,
    view: str,
    keys: Int64[ndarray, " row"],
    rows: pa.Table,
    blocks: Iterable[ndarray],
    dim: int,
    encoder_hash: str,
    head_hash: str,
    codec: Codec | None = None,
) -> str:
    """Write a segment and give its name, which tells its content.

    Args:
        parent: Folder of all segments.
        view: What the vectors were made from.
        keys: Object of each row, ascending.
        rows: One line a row, without `object_key`; `precision` is the encoder's.
        blocks: The vectors in order, unit length, a block of rows at a time.
        dim: Of the vectors.
        encoder_hash: Of the encoder that made them.
        head_hash: Of its search head.
        codec: Of the view; None: the segment is scanned exactly.

    Raises:
        ValueError: keys are not ascending, or rows and keys differ in number.
        DiskFull: nothing is left behind.
    """
    if (np.diff(keys) < 0).any():
        raise ValueError("expected the rows of a segment in ascending order of object_key")
    if rows.num_rows != len(keys):
        raise ValueError(f"expected {len(keys)} rows, one a key, got {rows.num_rows}")
    with disk.new_folder(parent) as temporary:
        disk.write_array_blocks(
            temporary / "vectors.npy",
            blocks,
            shape=(len(keys), dim),
            dtype=np.dtype(np.float16),
        )
        disk.write_array(temporary / "object_key.npy", keys)
        disk.write_table(temporary / "rows.parquet", rows)
        head: dict[str, object] = {
            "view": view,
            "num_rows": len(keys),
            "num_objects": len(np.unique(keys)),
            "dim": dim,
            "precision": "float16",
            "encoder_precisions": pc.unique(rows["precision"]).sort().to_pylist(),
            "encoder_hash": encoder_hash,
            "head_hash": head_hash,
        }
        return _sealed(temporary, parent, head, codec)


def code_segment(segment: Segment, codec: Codec) -> str:
    """Write a segment again with an index by a codec, and give its name; nothing is embedded.

    Its other files never change and are linked where the file system can, else copied.

    Raises:
        DiskFull: nothing is left behind.
    """
    head = disk.read_json(segment.folder / "segment.json")
    parent = segment.folder.parent
    with disk.new_folder(parent) as temporary:
        for name in FILES:
            disk.link_or_copy(segment.folder / name, temporary / name)
        same = {key: head[key] for key in (*_HEAD, "files")}
        return _sealed(temporary, parent, same, codec)


def _sealed(temporary: Path, parent: Path, head: dict[str, object], codec: Codec | None) -> str:
    """Put a segment in its place whose rows are written; gives its name."""
    files = head.get("files") or {name: disk.described(temporary / name) for name in FILES}
    assert isinstance(files, dict)
    files = {name: files[name] for name in FILES}
    if codec is not None:
        stored = disk.read_array(temporary / "vectors.npy", mapped=True)
        starts = range(0, len(stored), BLOCK_ROWS)
        # as they are stored, so that coding them again gives the same
        blocks = (unit_rows(stored[start : start + BLOCK_ROWS]) for start in starts)
        write_index(temporary / INDEX, fill(codec, blocks))
        files[INDEX] = disk.described(temporary / INDEX)
    head = {
        **head,
        "codec_hash": None if codec is None else codec.digest,
        "codec": None if codec is None else asdict(codec.config),
        "files": files,
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
    name = f"{head['view']}-{digest[:16]}"
    disk.write_json(temporary / "segment.json", head)
    disk.seal(temporary, parent / name)
    return name


def check_size(path: Path, num_bytes: int) -> None:
    """Raise VersionCorrupt unless the file is there with so many bytes."""
    with disk.found(path):
        found = path.stat().st_size
    if found != num_bytes:
        raise VersionCorrupt(f"{path}: expected {num_bytes:,} bytes, got {found:,}")


def unit_rows(vectors: ndarray) -> Float32[ndarray, "n dim"]:
    """Stored vectors as float32 of unit length, which rounding to float16 took from them."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float32).tiny)
