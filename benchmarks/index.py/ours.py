"""Our own index as an engine: a version of a synthetic sky, built and searched as users do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from peers import K
from synthetic_sky import VIEW, write_sky
from synthetic_vectors import Population

from index.asked_recall import DEFAULT_RECALL
from index.choosing import choose
from index.filtering import Filter
from index.version import Version
from index.versions import open_version

RECALLS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)  # asked for, from quick to thorough


def efforts() -> list[float]:
    """Recalls that can be asked for."""
    return list(RECALLS)


class Ours:
    """A sky in a folder. An effort is the recall asked for, None the default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version: Version | None = None

    def build(
        self,
        num_rows: int,
        seed: int,
        dim: int,
        segment_rows: list[int] | None = None,
    ) -> dict[str, float]:
        """Write and publish a version of synthetic rows; seconds without drawing the rows.

        `build_s` is everything; `objects_s` of it went to the object table, which peers have not.
        """
        population = Population(seed=seed, dim=dim)
        seconds = write_sky(
            self.folder,
            population,
            segment_rows=[num_rows] if segment_rows is None else segment_rows,
        )
        return {
            "build_s": seconds.vectors + seconds.codes + seconds.objects,
            "codes_s": seconds.codes,
            "objects_s": seconds.objects,
        }

    def open(self) -> None:
        """Open the published version."""
        self._version = open_version(self.folder)

    def search(
        self, query: Float32[ndarray, "1 dim"], effort: float | None
    ) -> Int64[ndarray, " k"]:
        """Row numbers of the K most similar; -1 where there are fewer."""
        return self._search(query, effort, None)

    def filtered(
        self, query: Float32[ndarray, "1 dim"], predicate: str, effort: float | None
    ) -> Int64[ndarray, " k"]:
        """The K most similar of the objects that a predicate is true for."""
        assert self._version is not None
        return self._search(query, effort, choose(self._version, where=predicate))

    def _search(
        self, query: ndarray, effort: float | None, chosen: Filter | None
    ) -> Int64[ndarray, " k"]:
        assert self._version is not None
        recall = DEFAULT_RECALL if effort is None else effort
        found = self._version.search(query, view=VIEW, k=K, chosen=chosen, recall=recall)
        return np.asarray(found.keys[0])
