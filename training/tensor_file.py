"""Tensors on disk: safetensors files that carry their own checksum, and the Hub's checksums.

safetensors notices a damaged header, never a flipped weight. Files written here hold in their
metadata the sha256 of the whole file with zeros in the place of that sum; files in the cache of
huggingface_hub are named by what the Hub says of their content. Either is checked where it is
there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX_SUFFIX = ".index.json"  # beside the shards of a file that was too large for one
NO_SUM = "0" * 64
_HEADER_START = b'{"__metadata__":{"sha256":"'  # of a file that carries its checksum
_SUM_START = 8 + len(_HEADER_START)  # the length of the header comes first
_BLOCK_BYTES = 1 << 22


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with its checksum, whole or not at all.

    The same tensors and metadata give the same bytes.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    partial = file.with_name(file.name + ".partial")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode  # the library leaves files that only their owner can read
    try:
        save_file(plain, partial, {"format": "pt", **(metadata or {}), "sha256": NO_SUM})
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{file}: cannot be written ({error})") from error
    with partial.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        # the library writes metadata in an order of its own, another one each time
        del header["__metadata__"]["sha256"]
        rest = dict(sorted(header["__metadata__"].items()))
        header["__metadata__"] = {"sha256": NO_SUM, **rest}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        stream.seek(8)
        stream.write(text.ljust(length))
    digest = _sha256(partial, without_sum=True)
    with partial.open("r+b") as stream:
        stream.seek(_SUM_START)
        stream.write(digest.encode())
    partial.chmod(mode)
    os.replace(partial, file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or the shards that the index beside it names.

    Tensors are views of the mapped file: memory is used as they are read.

    Raises:
        ValueError: a file is missing, cut short, foreign or damaged; names it.
    """
    index = file.with_name(file.name + INDEX_SUFFIX)
    if file.is_file() or not index.is_file():
        return _read_one(file)
    tensors: dict[str, Tensor] = {}
    where = _weight_map(index)
    for shard in sorted(set(where.values())):
        for name, tensor in _read_one(file.with_name(shard)).items():
            if where.get(name) != shard:
                raise ValueError(f"{file.with_name(shard)}: {name!r} is not in {index.name}")
            tensors[name] = tensor
    lost = sorted(set(where) - set(tensors))
    if lost:
        raise ValueError(f"{index}: {where[lost[0]]} does not hold {lost[0]!r}")
    return tensors


def files_of(file: Path) -> tuple[Path, ...]:
    """The files that hold what `read_tensors` reads; ValueError as it."""
    index = file.with_name(file.name + INDEX_SUFFIX)
    if file.is_file() or not index.is_file():
        return (file,)
    shards = sorted(set(_weight_map(index).values()))
    return (index, *(file.with_name(shard) for shard in shards))


def checked_sha256(file: Path) -> str:
    """The sha256 of a file, checked against the name that the Hub's cache gave it.

    A cache holds files of a repository as links to blobs named by sha256 (large files) or by the
    git object of the content (small ones).
    Source: https://huggingface.co/docs/hub/local-cache

    Raises:
        ValueError: the file is missing, or not what its name says.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    digest = _sha256(file)
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs":
        if len(blob.name) == 64:
            found = digest
        elif len(blob.name) == 40:
            found = _git_object(blob)
        else:
            return digest
        if found != blob.name:
            raise ValueError(
                f"{file}: damaged: its content has the checksum {found[:12]}, the Hub's is "
                f"{blob.name[:12]}; delete {blob} and fetch it again"
            )
    return digest


def _read_one(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    with file.open("rb") as stream:
        start = stream.read(_SUM_START)
        stored = stream.read(len(NO_SUM))
    if start[8:] == _HEADER_START and _sha256(file, without_sum=True).encode() != stored:
        raise ValueError(f"{file}: damaged or cut short: its content is not that of its checksum")
    try:
        return load_file(file)
    except (SafetensorError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        read = json.loads(index.read_text())
        where = read["weight_map"] if isinstance(read, dict) else None
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of shards ({error!r})") from error
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index}: weight_map: expected file names by tensor name")
    for name, shard in where.items():
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{index}: weight_map: {name}: expected a .safetensors file beside the index, "
                f"got {shard!r}"
            )
    return where


def _sha256(file: Path, *, without_sum: bool = False) -> str:
    """Of the whole file, or with zeros in the place of the sum that it carries."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if without_sum:
            digest.update(stream.read(_SUM_START))
            digest.update(NO_SUM.encode())
            stream.seek(_SUM_START + len(NO_SUM))
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _git_object(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
