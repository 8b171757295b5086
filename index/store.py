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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Int64
from numpy import ndarray

from index import disk
from index.errors import VersionCorrupt

PART_ROWS = 8192  # a part is written when so many vectors of a view wait


@dataclass(slots=True)
class _View:
    """One view of the store: sorted fingerprints, and where each vector lies."""

    parts: list[Path] = field(default_factory=list)
    fingerprints: ndarray = field(default_factory=lambda: np.empty(0, "S32"))  # ascending
    part: ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    row: ndarray = field(default_factory=lambda: np.empty(0, np.int64))


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
        found = self._find(view, fingerprints) >= 0
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
        known, place = self._places(view, fingerprints)
        part, row = known.part[place], known.row[place]
        out: ndarray | None = None
        for number in np.unique(part):
            self._check(known.parts[number], "vectors.npy")
            stored = disk.read_array(known.parts[number] / "vectors.npy", mapped=True)
            if out is None:
                out = np.empty((len(fingerprints), stored.shape[1]), np.float16)
            here = np.flatnonzero(part == number)
            out[here] = stored[row[here]]
        if out is None:
            raise ValueError("expected at least one fingerprint, got none")
        return out

    def precisions(self, view: str, fingerprints: Sequence[str]) -> list[str]:
        """The precision that each of these vectors was made in. Call `flush` before.

        Raises:
            VersionCorrupt: one is not in the store.
        """
        known, place = self._places(view, fingerprints)
        part = known.part[place]
        made_in = {number: _precision_of(known.parts[number]) for number in np.unique(part)}
        return [made_in[number] for number in part]

    def _places(self, view: str, fingerprints: Sequence[str]) -> tuple[_View, Int64[ndarray, " n"]]:
        place = self._find(view, fingerprints)
        if (place < 0).any():
            missing = fingerprints[int(np.argmax(place < 0))]
            raise VersionCorrupt(
                f"{self.folder / view} has no vector of the observation {missing}: "
                "build again from its file"
            )
        return self._view(view), place

    def _find(self, view: str, fingerprints: Sequence[str]) -> Int64[ndarray, " n"]:
        """Index into the view's sorted fingerprints, -1 where there is none."""
        known = self._view(view)
        wanted = _as_bytes(fingerprints)
        if not len(known.fingerprints):
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(known.fingerprints, wanted), len(known.fingerprints) - 1)
        return np.where(known.fingerprints[place] == wanted, place, -1).astype(np.int64)

    def _view(self, view: str) -> _View:
        if view not in self._views:
            self._views[view] = _View()
            if (self.folder / view).is_dir():
                for part in sorted((self.folder / view).iterdir()):
                    if not part.name.startswith(disk.TEMPORARY):
                        self._add_part(view, part)
                self._sort(view)
        return self._views[view]

    def _add_part(self, view: str, part: Path) -> None:
        known = self._views[view]
        self._check(part, "fingerprint.npy")
        stored = disk.read_array(part / "fingerprint.npy")
        fingerprints = np.ascontiguousarray(stored).view("S32").reshape(-1)
        number = len(known.parts)
        known.parts.append(part)
        known.fingerprints = np.concatenate([known.fingerprints, fingerprints])
        known.part = np.concatenate([known.part, np.full(len(stored), number, np.int64)])
        known.row = np.concatenate([known.row, np.arange(len(stored))])

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

    def _sort(self, view: str) -> None:
        known = self._views[view]
        order = np.argsort(known.fingerprints, kind="stable")
        known.fingerprints = known.fingerprints[order]
        known.part, known.row = known.part[order], known.row[order]

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
        self._sort(view)
        self._waiting[view][precision] = {}


PART_FILES = ("fingerprint.npy", "vectors.npy")


def _precision_of(part: Path) -> str:
    # parts without the field are older than any encoder that could be loaded in bfloat16
    return str(disk.read_json(part / "part.json").get("precision", "float32"))


def _as_bytes(fingerprints: Sequence[str]) -> ndarray:
    """Fingerprints as an array of 32 bytes each.

    Raises:
        ValueError: one is not 64 hexadecimal digits.
    """
    out = np.empty(len(fingerprints), "S32")
    for i, text in enumerate(fingerprints):
        try:
            out[i] = bytes.fromhex(text)
        except ValueError:
            text = ""
        if len(text) != 64:
            raise ValueError(
                f"expected fingerprints of 64 hexadecimal digits (sha256), got {fingerprints[i]!r}"
            )
    return out
