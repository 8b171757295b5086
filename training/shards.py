"""Token shards: what training reads, made once by the frozen tokenizers and mapped from disk.

A shard is a folder. A missing stream has length 0, it is never filled:

    shard.json      rows, and of each stream looked for its vocabulary and its tokens a row
    <stream>.npy    uint16 (row, token), codes, 0 beyond the length; no file where no row has it
    lengths.npy     uint16 (row, stream), tokens that a row has of each stream
    objects.npy     int64 (row, part), numbers of the objects; two parts where surveys are paired
    ids.npy         bytes (row,), source ids

shard.json is written last and the folder then gets its name: a shard is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt16
from numpy import ndarray
from numpy.typing import DTypeLike

from training.artifact import Codec
from training.observations import Observation
from training.tokens import tokenize
from training.transformer_config import Domain

FORMAT = 1
SHARD = "shard.json"
Schema = Mapping[str, tuple[int, int]]  # stream -> (vocabulary, tokens a row)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShard:
    """Tokens of many rows, in memory or mapped from disk."""

    tokens: Mapping[str, UInt16[ndarray, "row _"]]  # stream -> codes, 0 where absent
    lengths: Mapping[str, UInt16[ndarray, " row"]]  # stream -> tokens there are, 0 = absent
    schema: Schema  # of all streams looked for; those that no row has are not in `tokens`
    objects: Int64[ndarray, "row part"]  # rows of one object (its copies) share its number
    ids: ndarray  # (row,) bytes
    folder: Path | None = None  # where it was read

    def __len__(self) -> int:
        return len(self.objects)

    def write(self, folder: Path) -> None:
        """Write the shard, whole or not at all; one that is there is replaced."""
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for key, codes in self.tokens.items():
            np.save(partial / f"{key}.npy", np.ascontiguousarray(codes), allow_pickle=False)
        lengths = np.zeros((len(self), len(self.tokens)), dtype=np.uint16)
        for number, key in enumerate(self.tokens):
            lengths[:, number] = self.lengths[key]
        np.save(partial / "lengths.npy", lengths, allow_pickle=False)
        np.save(partial / "objects.npy", self.objects, allow_pickle=False)
        np.save(partial / "ids.npy", self.ids, allow_pickle=False)
        streams = {key: {"vocabulary": v, "num_tokens": n} for key, (v, n) in self.schema.items()}
        values = {
            "format": FORMAT, "rows": len(self), "streams": streams, "present": list(self.tokens)
        }  # fmt: skip
        (partial / SHARD).write_text(json.dumps(values, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    @classmethod
    def open(cls, folder: Path) -> TokenShard:
        """Map a shard into memory.

        Raises:
            ValueError: the folder is no shard, is damaged, or has no rows; names it.
        """
        try:
            values = json.loads((folder / SHARD).read_text())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}, expected {FORMAT}")
            rows, streams = int(values["rows"]), dict(values["streams"])
            schema = {
                key: (int(s["vocabulary"]), int(s["num_tokens"])) for key, s in streams.items()
            }
            tokens = {key: _mapped(folder / f"{key}.npy") for key in values["present"]}
            lengths = _mapped(folder / "lengths.npy")
            objects, ids = _mapped(folder / "objects.npy"), _mapped(folder / "ids.npy")
            expected: dict[str, tuple[ndarray, tuple[int, ...], DTypeLike]] = {
                "lengths": (lengths, (rows, len(tokens)), np.uint16),
                "objects": (objects, (rows, *objects.shape[1:2]), np.int64),
                "ids": (ids, (rows,), f"S{ids.dtype.itemsize}"),
            }
            for key in tokens:
                expected[key] = (tokens[key], (rows, schema[key][1]), np.uint16)
            for name, (array, shape, dtype) in expected.items():
                if array.shape != shape or array.dtype != np.dtype(dtype):
                    raise ValueError(
                        f"{name}.npy is {array.dtype} {array.shape}, expected "
                        f"{np.dtype(dtype)} {shape}"
                    )
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: not a whole token shard ({error})") from error
        if not rows:
            raise ValueError(f"{folder}: the shard is empty: it holds no rows")
        return cls(
            tokens=tokens,
            lengths={key: lengths[:, number] for number, key in enumerate(tokens)},
            schema=schema,
            objects=objects,
            ids=ids,
            folder=folder,
        )

    def take(self, rows: Int64[ndarray, " row"]) -> TokenShard:
        """Some rows, in memory."""
        return TokenShard(
            tokens={key: codes[rows] for key, codes in self.tokens.items()},
            lengths={key: lengths[rows] for key, lengths in self.lengths.items()},
            schema=self.schema,
            objects=self.objects[rows],
            ids=self.ids[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """Shards of one kind: what one survey, or one pair of surveys, saw.

    Raises:
        ValueError: no shard, or shards of different streams or vocabularies; names them.
    """

    name: str
    shards: tuple[TokenShard, ...]
    weight: float = 1.0  # how often its rows are drawn, beside other sets

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError(f"data set {self.name!r} has no token shards")
        first = self.shards[0]
        for other in self.shards[1:]:
            if other.schema != first.schema:
                raise ValueError(
                    f"data set {self.name!r} mixes shards of different kinds: "
                    f"{_difference(first, other)}"
                )

    @classmethod
    def open(cls, folder: Path, *, name: str, weight: float = 1.0) -> TokenSet:
        """All shards below a folder, in the order of their names; ValueError as `TokenShard`."""
        folders = sorted(file.parent for file in folder.glob(f"*/{SHARD}"))
        shards = tuple(TokenShard.open(each) for each in folders)
        return cls(name=name, shards=shards, weight=weight)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def objects(self) -> Iterator[Int64[ndarray, " n"]]:
        """Numbers of the objects of each shard, those of all parts; an object may come often."""
        for shard in self.shards:
            yield np.asarray(shard.objects).ravel()

    def check(self, domains: Mapping[str, Domain]) -> None:
        """Raise ValueError unless the set has a stream of the model, and each fits the model."""
        where = self.shards[0].folder or self.name
        shared = [key for key in self.shards[0].schema if key in domains]
        if not any(key in shard.tokens for shard in self.shards for key in shared):
            raise ValueError(f"{where}: data set {self.name!r} has none of the model's streams")
        for key in shared:
            vocabulary, num_tokens = self.shards[0].schema[key]
            domain = domains[key]
            if (vocabulary, num_tokens) != (domain.vocabulary, domain.num_tokens):
                raise ValueError(
                    f"{where}: {key} has {vocabulary} codes and {num_tokens} tokens in the token "
                    f"shards, {domain.vocabulary} and {domain.num_tokens} in the model: tokenize "
                    "again with the tokenizers of this model"
                )


def pack(
    observations: Sequence[Observation],
    codecs: Mapping[str, Codec],
    domains: Mapping[str, Domain],
) -> TokenShard:
    """Tokenize observations into a shard in memory, a row each; several may be of one object.

    Args:
        observations: What was seen.
        codecs: Tokenizers by codec name.
        domains: Streams of the model, for their vocabularies and lengths.
    """
    made = tokenize(observations, codecs, tuple(domains))
    num_rows = len(observations)
    tokens, lengths = {}, {}
    for key in made:
        domain = domains[key]
        codes = np.zeros((num_rows, domain.num_tokens), dtype=np.uint16)
        there = np.zeros(num_rows, dtype=np.uint16)
        for row, values in made[key].items():
            codes[row, : len(values)] = values.numpy()
            there[row] = len(values)
        tokens[key], lengths[key] = codes, there
    return TokenShard(
        tokens=tokens,
        lengths=lengths,
        schema={key: (domain.vocabulary, domain.num_tokens) for key, domain in domains.items()},
        objects=np.array([[object_number(seen.object_id)] for seen in observations], np.int64),
        ids=np.array([seen.source_id.encode() for seen in observations], dtype=np.bytes_),
    )


def object_number(object_id: str) -> int:
    """A number that an object has in every shard of every survey."""
    digest = hashlib.blake2b(object_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def concatenate(shards: Sequence[TokenShard]) -> TokenShard:
    """One shard of several of one schema, in memory."""
    schema = shards[0].schema
    tokens, lengths = {}, {}
    for key in schema:
        if not any(key in shard.tokens for shard in shards):
            continue
        nothing = np.zeros((1, schema[key][1]), np.uint16)
        tokens[key] = np.concatenate(
            [shard.tokens.get(key, nothing.repeat(len(shard), axis=0)) for shard in shards]
        )
        lengths[key] = np.concatenate(
            [shard.lengths.get(key, np.zeros(len(shard), np.uint16)) for shard in shards]
        )
    return TokenShard(
        tokens=tokens,
        lengths=lengths,
        schema=schema,
        objects=np.concatenate([shard.objects for shard in shards]),
        ids=np.concatenate([shard.ids for shard in shards]),
    )


def _mapped(file: Path) -> ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _difference(first: TokenShard, other: TokenShard) -> str:
    only = sorted(set(first.schema) ^ set(other.schema))
    names = [shard.folder.name if shard.folder else "one" for shard in (first, other)]
    if only:
        has, lacks = names if only[0] in first.schema else names[::-1]
        return f"{has} has the stream {only[0]}, {lacks} has not"
    key = next(key for key in first.schema if first.schema[key] != other.schema[key])
    return (
        f"{key} has {first.schema[key][0]} codes and {first.schema[key][1]} tokens in {names[0]}, "
        f"{other.schema[key][0]} and {other.schema[key][1]} in {names[1]}"
    )
