"""A sky of synthetic vectors, written by the index's own writers: what benchmarks search.

One survey, one view, one row an object; object_key is the number of the row. The object table has
the attributes of synthetic_vectors as columns, so that predicates can ask for them. Objects lie
10,000 to a square degree. Rows have no fingerprint, as there is no store and no file behind them:
such a sky can be searched, verified and indexed again, but nothing can be built on top of it.

Memory stays at some hundred bytes a row, whatever the dimension: vectors go by block by block.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from synthetic_vectors import ATTRIBUTES, BLOCK_ROWS, Block, Population

from index import disk
from index.codec import BY_THE_RULE, IndexConfig
from index.coding import Coded, Part, code
from index.filtering import Live
from index.footprint import footprint, write_footprint
from index.inputs import write_inputs
from index.manifest import (
    FORMAT,
    EncoderReference,
    Manifest,
    SegmentRecord,
    SkyHead,
    git_revision,
    record,
    write_head,
)
from index.objects import CATALOGUE, OBJECT_FIELDS, ROW_FIELDS, healpix_cells
from index.partitions import Partition, divide, write_partition
from index.segment import Segment, write_segment
from index.versions import publish

VIEW = "image"
SURVEY = "synthetic"
_PER_SQUARE_DEGREE = 10_000
_POSITIONS = 100  # stream of random numbers, none of synthetic_vectors


@dataclass(frozen=True, slots=True)
class Seconds:
    """What writing took, without drawing the vectors."""

    vectors: float  # and rows
    codes: float  # codec, lists, curve of recall
    objects: float  # object table, footprint, manifest


def write_sky(
    sky: Path,
    population: Population,
    *,
    segment_rows: Sequence[int],
    index: IndexConfig = BY_THE_RULE,
) -> Seconds:
    """Write a sky and publish its version 1.

    Args:
        sky: Folder that is not there yet.
        population: What the vectors are drawn from.
        segment_rows: Rows of each segment, at least 1 each; the first has the lowest keys.
        index: What overrides the rule for codecs.

    Raises:
        ValueError: the folder is there, or no rows are asked for.
    """
    num_rows = sum(segment_rows)
    if sky.exists():
        raise ValueError(f"expected a folder that is not there yet, got {sky}")
    if not segment_rows or min(segment_rows) < 1:
        raise ValueError(f"expected segments of at least one row, got {list(segment_rows)}")
    sky.mkdir(parents=True)
    encoder = _encoder(population)
    write_head(sky, SkyHead(format=FORMAT, encoder=encoder, index=index))
    drawing = _Drawing(population, num_rows)
    ra_deg, dec_deg = positions(population.seed, num_rows)

    started = time.perf_counter()
    parts, first = [], 0
    for number in segment_rows:
        keys = np.arange(first, first + number)
        name = write_segment(
            sky / "segments",
            view=VIEW,
            keys=keys,
            rows=_rows(keys, ra_deg[keys], dec_deg[keys]),
            blocks=drawing.take(number),
            dim=population.dim,
            encoder_hash=encoder.hash,
            head_hash=encoder.head_hash,
        )
        folder = sky / "segments" / name
        written = SegmentRecord(
            name=name, view=VIEW, num_rows=number, head=record(sky, folder / "segment.json")
        )
        parts.append(Part(written, Live(Segment(folder), None), number))
        first += number
    vectors_written = time.perf_counter()
    coded = code(sky, parts, index, known={}, curves=())
    coded_at = time.perf_counter()
    _write_version(sky, encoder, coded, _objects(sky, drawing, ra_deg, dec_deg), ra_deg, dec_deg)
    publish(sky, 1)
    return Seconds(
        vectors=vectors_written - started - drawing.seconds,
        codes=coded_at - vectors_written,
        objects=time.perf_counter() - coded_at,
    )


def positions(
    seed: int, num_rows: int
) -> tuple[Float64[ndarray, " row"], Float64[ndarray, " row"]]:
    """Right ascension and declination, uniform over a part of the sky with 10,000 to a degree²."""
    ra_deg, dec_deg = np.empty(num_rows), np.empty(num_rows)
    square_degrees = min(num_rows / _PER_SQUARE_DEGREE, 360 * np.degrees(1))
    width_deg = min(360.0, max(1.0, square_degrees**0.5))
    top = min(1.0, np.radians(square_degrees / width_deg))  # sine of the highest declination
    for number in range(ceil(num_rows / BLOCK_ROWS)):
        here = slice(number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, num_rows))
        drawn = np.random.default_rng([seed, _POSITIONS, number]).random((BLOCK_ROWS, 2))
        drawn = drawn[: here.stop - here.start]
        ra_deg[here] = width_deg * drawn[:, 0]
        dec_deg[here] = np.degrees(np.arcsin(top * drawn[:, 1]))
    return ra_deg, dec_deg


class _Drawing:
    """Vectors in order, cut to any length; their attributes are kept, their time is counted."""

    def __init__(self, population: Population, num_rows: int) -> None:
        self.attributes = {name: np.empty(num_rows) for name in ATTRIBUTES}
        self.seconds = 0.0
        self._blocks = population.blocks(num_rows)
        self._left: Float32[ndarray, "row dim"] = np.empty((0, population.dim), np.float32)

    def take(self, num_rows: int) -> Iterator[Float32[ndarray, "row dim"]]:
        while num_rows:
            if not len(self._left):
                started = time.perf_counter()
                block = next(self._blocks)
                self._keep(block)
                self._left = block.vectors
                self.seconds += time.perf_counter() - started
            some, self._left = self._left[:num_rows], self._left[num_rows:]
            num_rows -= len(some)
            yield some

    def _keep(self, block: Block) -> None:
        here = slice(block.start, block.start + len(block.vectors))
        for name, values in self.attributes.items():
            values[here] = block.attribute(name)


def _encoder(population: Population) -> EncoderReference:
    def digest(part: str) -> str:
        return hashlib.sha256(f"{part} of {population}".encode()).hexdigest()

    return EncoderReference(
        name="synthetic",
        hash=digest("encoder"),
        head_hash=digest("head"),
        dim=population.dim,
        search_dim=population.dim,
        precision="float32",
    )


def _rows(keys: Int64[ndarray, " row"], ra_deg: ndarray, dec_deg: ndarray) -> pa.Table:
    """ROW_FIELDS; what all rows share is written once, as a dictionary."""
    names = pc.cast(pa.array(keys), pa.string())
    columns: dict[str, pa.Array] = {
        "source_id": names,
        "object_id": names,
        "calibrated": pa.array(np.ones(len(keys), bool)),
        "ra_deg": pa.array(ra_deg),
        "dec_deg": pa.array(dec_deg),
    }
    same = {"reader": SURVEY, "survey": SURVEY, "release": "1", "precision": "float32"}
    first = pa.array(np.zeros(len(keys), np.int8))
    for name, value in same.items():
        columns[name] = pa.DictionaryArray.from_arrays(first, pa.array([value]))
    return pa.table(
        {
            name: columns[name] if name in columns else pa.nulls(len(keys), kind)
            for name, kind in ROW_FIELDS.items()
        }
    )


def _objects(
    sky: Path, drawing: _Drawing, ra_deg: ndarray, dec_deg: ndarray
) -> tuple[Partition, ...]:
    """Write the object table, one cell of HEALPix order 0 after the other."""
    cells = np.empty(len(ra_deg), np.int64)
    for start in range(0, len(cells), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        cells[here] = healpix_cells(ra_deg[here], dec_deg[here])
    partitions: list[Partition] = []
    base = (cells >> 58).astype(np.int8)
    for pixel in np.unique(base):
        keys = np.flatnonzero(base == pixel)
        offsets = pa.array(np.arange(len(keys) + 1, dtype=np.int32))
        views = pa.array([VIEW]).take(pa.array(np.zeros(len(keys), np.int8)))
        columns: dict[str, pa.Array] = {
            "object_key": pa.array(keys),
            "object_id": pc.cast(pa.array(keys), pa.string()),
            "ra_deg": pa.array(ra_deg[keys]),
            "dec_deg": pa.array(dec_deg[keys]),
            "views": pa.ListArray.from_arrays(offsets, views),
            "_healpix_29": pa.array(cells[keys]),
        }
        columns |= {name: pa.nulls(len(keys), kind) for name, kind in CATALOGUE.items()}
        columns |= {name: pa.array(drawing.attributes[name][keys]) for name in ATTRIBUTES}
        assert list(columns)[: len(OBJECT_FIELDS)] == list(OBJECT_FIELDS)
        table = pa.table(columns)
        partitions += [
            write_partition(sky, cell, table.take(pa.array(lines)))
            for cell, lines in divide(cells[keys])
        ]
    return tuple(partitions)


def _write_version(
    sky: Path,
    encoder: EncoderReference,
    coded: Coded,
    partitions: tuple[Partition, ...],
    ra_deg: ndarray,
    dec_deg: ndarray,
) -> None:
    final = sky / "versions" / "1"
    with disk.new_folder(final.parent) as temporary:
        files = [record(sky, sky / file) for each in partitions for file in each.files]
        files += [file for codec in coded.codecs for file in codec.files]
        write_inputs(temporary / "inputs.parquet", [])
        write_footprint(temporary / "moc.fits", footprint(ra_deg, dec_deg))
        for name in ("inputs.parquet", "moc.fits"):
            files.append(record(sky, temporary / name, place=final / name))
        manifest = Manifest(
            number=1,
            built_at_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            software=f"skykin {version_of('skykin')}",
            git_revision=git_revision(),
            encoder=encoder,
            segments=coded.records,
            codecs=coded.codecs,
            curves=coded.curves,
            recall=coded.recall,
            partitions=partitions,
            files=tuple(files),
            inputs="versions/1/inputs.parquet",
            moc="versions/1/moc.fits",
            num_objects=len(ra_deg),
            num_rows=len(ra_deg),
            num_without_position=0,
            next_object_key=len(ra_deg),
        )
        disk.write_json(temporary / "manifest.json", manifest.model_dump(mode="json"))
        disk.seal(temporary, final)
