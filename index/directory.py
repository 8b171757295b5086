"""The names of all objects: keys and ids alone, as an update asks for no more of most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from numpy import ndarray

from index.partitions import Partition, read_columns


@dataclass(frozen=True, slots=True)
class Directory:
    """Objects by key, ascending, and their ids."""

    keys: Int64[ndarray, " object"]
    ids: pa.Array

    @classmethod
    def read(cls, sky: Path, partitions: Sequence[Partition]) -> Directory:
        """Those of an object table.

        Raises:
            VersionCorrupt: a file is missing or damaged.
        """
        tables = [read_columns(sky, each, ["object_key", "object_id"]) for each in partitions]
        keys = np.concatenate(
            [np.empty(0, np.int64), *(each["object_key"].to_numpy() for each in tables)]
        )
        chunks = [chunk for each in tables for chunk in each["object_id"].chunks]
        ids = pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())
        order = np.argsort(keys)
        return cls(keys[order], ids.take(pa.array(order)))

    def keys_of(self, ids: pa.Array) -> dict[str, int]:
        """Keys of those ids that are here."""
        found = pc.is_in(self.ids, value_set=ids)
        lines = np.flatnonzero(found.to_numpy(zero_copy_only=False))
        names = self.ids.take(pa.array(lines)).to_pylist()
        return dict(zip(names, self.keys[lines].tolist(), strict=True))

    def ids_of(self, keys: Int64[ndarray, " n"]) -> list[str]:
        """Ids of some objects, in their order.

        Raises:
            ValueError: a key is not here.
        """
        lines = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        if len(keys) and not (len(self.keys) and (self.keys[lines] == keys).all()):
            raise ValueError("expected keys of objects that are here")
        return list(self.ids.take(pa.array(lines)).to_pylist())
