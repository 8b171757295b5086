"""The codecs of a version: which views have one, segments coded by it, what recall it reaches.

A view that grows past `IndexConfig.exact_rows` gets a codec, trained on a sample of its vectors,
and its segments are coded from their `vectors.npy`; nothing is embedded. Versions after it go on
with the same codec, which only codes what is new, until the view has outgrown it. What a version
cannot carry over it measures: its curve of recall against effort, on its own rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from index import disk, recall
from index.asked_recall import DEFAULT_RECALL
from index.codec import Codec, IndexConfig, choose, read_codec, serves, train, write_codec
from index.filtering import Filter, Live
from index.manifest import CodecRecord, Manifest, SegmentRecord, record
from index.probing import Effort
from index.recall import NUM_QUERIES, Queries, RecallCurve
from index.search import find
from index.segment import Segment, code_segment

CODECS = "codecs"  # folder below a sky
MAX_CHANGED_SHARE = 0.1  # of the rows of a view: beyond, its curve is measured again
_POOL_ROWS = 4_096  # that directions are made of


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of the new version."""

    record: SegmentRecord
    live: Live
    num_changed: int  # rows that the version before did not have, or had and this one has not


@dataclass(frozen=True, slots=True)
class Coded:
    """What a version writes down of its codecs."""

    records: tuple[SegmentRecord, ...]
    codecs: tuple[CodecRecord, ...]
    curves: tuple[RecallCurve, ...]

    @property
    def recall(self) -> float | None:
        """recall@10 at the default effort, the lowest of all curves; None: all is exact."""
        reached = [curve.recall_at_10(DEFAULT_RECALL) for curve in self.curves]
        return min(reached, default=None)


def codecs_of(sky: Path, manifest: Manifest | None) -> dict[str, Codec]:
    """The codecs of a version by view.

    Raises:
        VersionCorrupt: one is missing, damaged, or another than the version was written with.
    """
    records = () if manifest is None else manifest.codecs
    for each in records:
        for file in each.files:
            disk.check(sky / file.file, file.sha256)
    return {each.view: read_codec(sky / CODECS / each.name) for each in records}


def code(
    sky: Path,
    parts: Sequence[Part],
    config: IndexConfig,
    *,
    known: Mapping[str, Codec],
    curves: Sequence[RecallCurve],
) -> Coded:
    """Code the segments of a version as far as that is due, and measure what changed enough.

    Args:
        sky: Its folder.
        parts: All segments.
        config: What the sky asks for.
        known: Codecs of the version before, by view, unless its vectors were other ones.
        curves: Measured in the version before, or carried by it.
    """
    records: list[SegmentRecord] = []
    codecs, kept = [], []
    for view in dict.fromkeys(part.record.view for part in parts):
        mine = [part for part in parts if part.record.view == view]
        codec = _codec(view, mine, config, known.get(view))
        if codec is not None:
            mine = [
                _coded(sky, part, codec) if part.record.num_rows >= config.indexed_rows else part
                for part in mine
            ]
            codecs.append(_written(sky, view, codec))
            before = next((each for each in curves if each.view == view), None)
            kept.append(_curve(view, mine, codec, before))
        records += [part.record for part in mine]
    return Coded(tuple(records), tuple(codecs), tuple(kept))


def _codec(
    view: str, parts: Sequence[Part], config: IndexConfig, known: Codec | None
) -> Codec | None:
    """The codec that a view goes on with, or a new one; None: it is scanned exactly."""
    num_rows = _num_live(parts)
    if not num_rows:
        return None
    wanted = choose(num_rows, parts[0].live.segment.dim, config)
    if wanted is None:
        return None
    if known is not None and serves(known.config, wanted, config):
        return known
    rng = np.random.default_rng(wanted.seed)
    sample, _ = _sample([part.live for part in parts], wanted.num_train, rng)
    seen = choose(num_rows, sample.shape[1], config, sample=sample)
    assert seen is not None
    return train(sample, seen)


def _num_live(parts: Sequence[Part]) -> int:
    return sum(part.record.num_rows - part.record.num_deleted for part in parts)


def _sample(
    lives: Sequence[Live], num: int, rng: np.random.Generator
) -> tuple[Float32[ndarray, "row dim"], Int64[ndarray, " row"]]:
    """Vectors of live rows, each as likely as any other, none twice, and their keys."""
    rows = [
        np.arange(live.segment.num_rows) if live.alive is None else np.flatnonzero(live.alive)
        for live in lives
    ]
    ends = np.cumsum([len(some) for some in rows])
    chosen = np.sort(rng.choice(ends[-1], min(num, int(ends[-1])), replace=False))
    vectors, keys = [], []
    for live, some, end in zip(lives, rows, ends, strict=True):
        mine = some[chosen[(chosen >= end - len(some)) & (chosen < end)] - (end - len(some))]
        vectors.append(live.segment.vectors(mine))
        keys.append(live.segment.object_key[mine])
    return np.concatenate(vectors), np.concatenate(keys)


def _coded(sky: Path, part: Part, codec: Codec) -> Part:
    """A segment with an index by this codec."""
    segment = part.live.segment
    if segment.codec_hash == codec.digest:
        return part
    name = code_segment(segment, codec)
    folder = sky / "segments" / name
    written = part.record.model_copy(
        update={"name": name, "head": record(sky, folder / "segment.json")}
    )
    return replace(part, record=written, live=Live(Segment(folder), part.live.alive))


def _written(sky: Path, view: str, codec: Codec) -> CodecRecord:
    name = write_codec(sky / CODECS, view, codec)
    folder = sky / CODECS / name
    files = tuple(record(sky, folder / each) for each in ("codec.json", "trained.faiss"))
    return CodecRecord(view=view, name=name, files=files)


def _curve(
    view: str, parts: Sequence[Part], codec: Codec, before: RecallCurve | None
) -> RecallCurve:
    num_changed = sum(part.num_changed for part in parts)
    if before is not None and before.codec_hash == codec.digest:
        carried = before.carried(num_changed)
        if carried.num_changed <= MAX_CHANGED_SHARE * carried.num_rows:
            return carried
    return measure(view, [part.live for part in parts], codec.digest)


def measure(view: str, lives: Sequence[Live], codec_hash: str, *, seed: int = 0) -> RecallCurve:
    """Measure recall against effort in a view, on rows of it and on directions.

    Truth is the exact scan of the same segments.

    Args:
        view: That is searched.
        lives: Its segments.
        codec_hash: Of its codec.
        seed: Of the rows drawn.
    """
    rng = np.random.default_rng(seed)
    pool, pool_keys = _sample(lives, _POOL_ROWS, rng)
    chosen = rng.choice(len(pool), min(NUM_QUERIES, len(pool)), replace=False)
    rows, best = _truth(lives, pool[chosen], pool_keys[chosen])
    turned = recall.directions(pool, NUM_QUERIES, seed=seed)
    along, best_along = _truth(lives, turned, np.full(len(turned), -1))

    def candidates(vectors: ndarray, num: int, effort: Effort) -> ndarray:
        return find(vectors, lives, k=num, chosen=Filter(), effort=effort).keys

    return recall.measure(
        view, candidates, rows, along,
        near=recall.told_apart(best, best_along), codec_hash=codec_hash,
        num_rows=sum(live.num_rows for live in lives), efforts=recall.EFFORTS,
    )  # fmt: skip


def recall_again(lives: Sequence[Live], effort: Effort, *, seed: int) -> float:
    """recall@10 of an effort, on other rows than a curve of another seed was measured on."""
    vectors, keys = _sample(lives, NUM_QUERIES, np.random.default_rng(seed))
    queries, _ = _truth(lives, vectors, keys)
    found = find(vectors, lives, k=11, chosen=Filter(), effort=effort)
    return recall.recall_of(recall.without(found.keys, keys)[:, :10], queries.neighbours[:, :10])


def _truth(
    lives: Sequence[Live], vectors: Float32[ndarray, "query dim"], own: Int64[ndarray, " query"]
) -> tuple[Queries, Float32[ndarray, " query"]]:
    """Queries with what an exact scan finds but themselves, and the best score of each."""
    found = find(vectors, lives, k=max(recall.DEPTHS) + 1, chosen=Filter())
    others = recall.without(found.keys, own)[:, : max(recall.DEPTHS)]
    best = np.where(found.keys[:, 0] == own, found.scores[:, 1], found.scores[:, 0])
    return Queries(vectors, others, own), best
