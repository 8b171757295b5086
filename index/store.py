"""Encoder vectors on disk, so that embedding, the costly stage, happens once.

A vector is keyed by (fingerprint of the observation, hash of the encoder, view). Vectors lie in
parts, which are written once and never change:

    store/<encoder hash, 16 digits>/<view>/<part>/part.json, fingerprint.npy, vectors.npy

`fingerprint.npy` is uint8 (n, 32), `vectors.npy` float16 (n, dim). The vectors of a part were made
in one precision of the encoder's arithmetic, which part.json tells. A part is named after its
content, so several writers may add parts to one store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int32, Int64, UInt8, UInt64
from numpy import ndarray

from index import disk
from index.errors import VersionCorrupt

PART_ROWS = 8192  # a part is written when so many vectors of a view wait


@dataclass(frozen=True, slots=True)
class _Places:
    """Where some vectors of a view lie, by the first eight bytes of their fingerprints."""

    starts: UInt64[ndarray, " n"]  # ascending
    part: Int32[ndarray, " n"]
    row: Int32[ndarray, " n"]

    @classmethod
    def of_part(cls, number: int, fingerprints: UInt8[ndarray, "n 32"]) -> _Places:
        starts = _starts(fingerprints)
        order = np.argsort(starts)
        part = np.full(len(starts), number, np.int32)
        return cls(starts[order], part, order.astype(np.int32))

    @classmethod
    def together(cls, several: Sequence[_Places]) -> _Places:
        """The same places as one; 16 bytes a vector, of which a sky may have 200 million."""
        starts = np.concatenate([each.starts for each in several])
        order = np.argsort(starts)
        return cls(
            starts[order],
            np.concatenate([each.part for each in several])[order],
            np.concatenate([each.row for each in several])[order],
        )


@dataclass(slots=True)
class _View:
    """One view of the store: its parts, and where each vector lies."""

    parts: list[Path] = field(default_factory=list)
    fingerprints: list[UInt8[ndarray, "n 32"]] = field(default_factory=list)  # of parts, mapped
    # Large ones first, each more than twice the next, so that a part is sorted in log(n) times.
    places: list[_Places] = field(default_factory=list)

    def find(
        self, wanted: UInt8[ndarray, "n 32"]
    ) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"]]:
        """Part and row of each of these fingerprints, -1 where there is none."""
        part, row = np.full(len(wanted), -1, np.int64), np.full(len(wanted), -1, np.int64)
        starts = _starts(wanted)
        for some in self.places:
            place = np.searchsorted(some.starts, starts)
            left = np.flatnonzero(part < 0)
            while len(left):  # twice only where two fingerprints begin alike
                left = left[place[left] < len(some.starts)]
                left = left[some.starts[place[left]] == starts[left]]
                at = place[left]
                same = self._are(wanted[left], some.part[at], some.row[at])
                part[left[same]], row[left[same]] = some.part[at[same]], some.row[at[same]]
                left = left[~same]
                place[left] += 1
        return part, row

    def merge(self) -> None:
        """Put the smallest places together, as far as they are of like size."""
        places = self.places
        while len(places) > 1 and len(places[-2].row) <= 2 * len(places[-1].row):
            places[-2:] = [_Places.together(places[-2:])]

    def _are(self, wanted: ndarray, part: ndarray, row: ndarray) -> Bool[ndarray, " n"]:
        """Whether the fingerprints at some places are these."""
        same = np.zeros(len(wanted), bool)
        for number, here in _groups(part.astype(np.int64)):
            same[here] = (self.fingerprints[number][row[here]] == wanted[here]).all(axis=1)
        return same


class Store:
    """The vectors of one encoder. One process appends; any number read.

    What was appended can be asked for at once, but is on disk only after `flush`.
    """

    def __init__(self, folder: Path, *, encoder_hash: str) -> None:
        self.folder = folder / encoder_hash[:16]
        self.encoder_hash = encoder_hash
        self._views: dict[str, _View] = {}
        self._whole: set[Path] = set()  # files that were read and compared with their checksum
        # view -> precision -> fingerprint -> float16 (dim,)
        self._waiting: dict[str, dict[str, dict[str, ndarray]]] = {}

    def has(self, view: str, fingerprints: Sequence[str]) -> Bool[ndarray, " n"]:
        """Which of these observations have a vector of the view."""
        waiting = self._waiting.get(view, {}).values()
        found = self._view(view).find(_as_bytes(fingerprints))[0] >= 0
        return found | np.array(
            [any(each in some for some in waiting) for each in fingerprints], dtype=bool
        )

    def append(
        self,
        view: str,
        fingerprints: Sequence[str],
        vectors: Float16[ndarray, "n dim"],
        *,
        precision: str,
    ) -> None:
        """Add vectors; those already there, in whichever precision, are left as they are.

        Raises:
            ValueError: a vector is not finite (float16 holds at most 65,504).
        """
        if not np.isfinite(vectors).all():
            bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(
                f"expected finite encoder vectors, got NaN or infinity in view {view!r} of the "
                f"observation {fingerprints[bad]}"
            )
        known = self.has(view, fingerprints)
        waiting = self._waiting.setdefault(view, {}).setdefault(precision, {})
        for i in np.flatnonzero(~known).tolist():
            waiting.setdefault(fingerprints[i], vectors[i])
        if len(waiting) >= PART_ROWS:
            self._write_part(view, precision)

    def flush(self) -> None:
        """Put everything appended so far on disk."""
        for view, waiting in self._waiting.items():
            for precision in waiting:
                self._write_part(view, precision)

    def vectors(self, view: str, fingerprints: Sequence[str]) -> Float16[ndarray, "n dim"]:
        """The vectors of these observations, in their order. Call `flush` before.

        Raises:
            VersionCorrupt: one is not in the store, or not as it was written.
        """
        parts, part, row = self._places(view, fingerprints)
        out: ndarray | None = None
        for number, here in _groups(part):
            self._check(parts[number], "vectors.npy")
            stored = disk.read_array(parts[number] / "vectors.npy", mapped=True)
            if out is None:
                out = np.empty((len(fingerprints), stored.shape[1]), np.float16)
            out[here] = stored[row[here]]
        if out is None:
            raise ValueError("expected at least one fingerprint, got none")
        return out

    def precisions(self, view: str, fingerprints: Sequence[str]) -> list[str]:
        """The precision that each of these vectors was made in. Call `flush` before.

        Raises:
            VersionCorrupt: one is not in the store.
        """
        parts, part, _ = self._places(view, fingerprints)
        made_in = {number: _precision_of(parts[number]) for number in np.unique(part).tolist()}
        return [made_in[number] for number in part.tolist()]

    def _places(
        self, view: str, fingerprints: Sequence[str]
    ) -> tuple[list[Path], Int64[ndarray, " n"], Int64[ndarray, " n"]]:
        known = self._view(view)
        part, row = known.find(_as_bytes(fingerprints))
        if (part < 0).any():
            missing = fingerprints[int(np.argmax(part < 0))]
            raise VersionCorrupt(
                f"{self.folder / view} has no vector of the observation {missing}: "
                "build again from its file"
            )
        return known.parts, part, row

    def _view(self, view: str) -> _View:
        if view not in self._views:
            known = self._views[view] = _View()
            if (self.folder / view).is_dir():
                for part in sorted((self.folder / view).iterdir()):
                    if not part.name.startswith(disk.TEMPORARY):
                        self._add_part(view, part)
                if known.places:
                    known.places = [_Places.together(known.places)]
        return self._views[view]

    def _add_part(self, view: str, part: Path) -> None:
        known = self._views[view]
        self._check(part, "fingerprint.npy")
        stored = disk.read_array(part / "fingerprint.npy", mapped=True)
        known.places.append(_Places.of_part(len(known.parts), stored))
        known.parts.append(part)
        known.fingerprints.append(stored)

    def _check(self, part: Path, name: str) -> None:
        """Compare a file with its checksum, once: what it holds would go on into segments."""
        if part / name in self._whole:
            return
        try:
            files = disk.read_json(part / "part.json")["files"]
            assert isinstance(files, dict)
            disk.check(part / name, files[name]["sha256"])
        except VersionCorrupt as error:
            raise VersionCorrupt(
                f"{error}. Remove the folder {part}: what it held is embedded again"
            ) from error
        self._whole.add(part / name)

    def _write_part(self, view: str, precision: str) -> None:
        waiting = self._waiting[view][precision]
        if not waiting:
            return
        self._view(view)  # listed before the new part is there, which is added below
        fingerprints = np.frombuffer(b"".join(map(bytes.fromhex, waiting)), np.uint8)
        vectors = np.stack(list(waiting.values()))  # (n, dim)
        digest = hashlib.sha256(fingerprints.tobytes())
        digest.update(vectors.tobytes())
        digest.update(precision.encode())
        final = self.folder / view / digest.hexdigest()[:16]
        with disk.new_folder(final.parent) as temporary:
            disk.write_array(temporary / "fingerprint.npy", fingerprints.reshape(-1, 32))
            disk.write_array(temporary / "vectors.npy", vectors)
            files = {name: disk.described(temporary / name) for name in PART_FILES}
            disk.write_json(
                temporary / "part.json",
                {
                    "encoder_hash": self.encoder_hash,
                    "view": view,
                    "precision": precision,
                    "num_rows": len(vectors),
                    "dim": int(vectors.shape[1]),
                    "files": files,
                },
            )
            disk.seal(temporary, final)
        self._add_part(view, final)
        self._views[view].merge()
        self._waiting[view][precision] = {}


PART_FILES = ("fingerprint.npy", "vectors.npy")


def _precision_of(part: Path) -> str:
    # parts without the field are older than any encoder that could be loaded in bfloat16
    return str(disk.read_json(part / "part.json").get("precision", "float32"))


def _as_bytes(fingerprints: Sequence[str]) -> UInt8[ndarray, "n 32"]:
    """Fingerprints as 32 bytes each.

    Raises:
        ValueError: one is not 64 hexadecimal digits.
    """
    out = bytearray()
    for text in fingerprints:
        try:
            content = bytes.fromhex(text)
        except ValueError:
            content = b""
        if len(text) != 64 or len(content) != 32:
            raise ValueError(
                f"expected fingerprints of 64 hexadecimal digits (sha256), got {text!r}"
            )
        out += content
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, 32)


def _starts(fingerprints: UInt8[ndarray, "n 32"]) -> UInt64[ndarray, " n"]:
    """The first eight bytes as numbers: by these a million are sorted in a tenth of the time."""
    return np.ascontiguousarray(fingerprints[:, :8]).view(np.uint64).reshape(-1)


def _groups(part: Int64[ndarray, " n"]) -> Iterator[tuple[int, Int64[ndarray, " m"]]]:
    """Each number of a part, and where it stands."""
    order = np.argsort(part, kind="stable")
    first = np.flatnonzero(np.diff(part[order], prepend=-1))
    for here in np.split(order, first[1:]):
        if len(here):
            yield int(part[here[0]]), here
