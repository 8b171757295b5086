"""How well a sky finds what people call alike: nDCG@10 as AION-1 is measured, error and chance.

Source: Järvelin & Kekäläinen 2002, ACM TOIS 20, 422 (gain 2^relevance - 1, discount log2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from index.version import Version
from training.modalities import VIEWS

if TYPE_CHECKING:
    import pandas as pd

NUM_RESAMPLES = 1000  # of the bootstrap
_QUERIES_AT_A_TIME = 1024  # bounds memory: this many rows of scores at once


@runtime_checkable
class Ranking(Protocol):
    """What can be measured: discovery.Sky is one, OpenVersion another."""

    @property
    def version(self) -> int:
        """Number of the version."""
        ...

    @property
    def views(self) -> tuple[str, ...]:
        """Views that can be searched, preferred first."""
        ...

    def keys_in_view(
        self, object_ids: Sequence[str], view: str
    ) -> tuple[Int64[ndarray, " found"], Bool[ndarray, " object"]]:
        """Keys of those ids that are there in a view, and which of the ids they are."""
        ...

    def nearest(
        self,
        keys: Int64[ndarray, " query"],
        *,
        view: str,
        k: int,
        among: Int64[ndarray, " corpus"],
    ) -> Int64[ndarray, "query k"]:
        """Keys of the k most similar to each object, itself included; short rows end in -1."""
        ...


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """One version to measure, published or not."""

    of: Version

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.of.number

    @property
    def views(self) -> tuple[str, ...]:
        """Views that can be searched, preferred first."""
        return tuple(view for view in VIEWS if view in self.of.views)

    def keys_in_view(
        self, object_ids: Sequence[str], view: str
    ) -> tuple[Int64[ndarray, " found"], Bool[ndarray, " object"]]:
        """See Ranking."""
        keys = self.of.object_table.keys_of_ids(object_ids)
        found = keys >= 0
        found[found] = self.of.has_view(keys[found], view)
        return keys[found], found

    def nearest(
        self,
        keys: Int64[ndarray, " query"],
        *,
        view: str,
        k: int,
        among: Int64[ndarray, " corpus"],
    ) -> Int64[ndarray, "query k"]:
        """See Ranking."""
        return self.of.search(self.of.vectors(keys, view), view=view, k=k, keys=among).keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Means over queries."""

    label: str
    view: str
    version: int
    k: int
    num_queries: int
    num_corpus: int  # objects of that view with a known label; a query is not in its own corpus
    num_left_out: int  # labelled objects that this sky does not have in that view
    ndcg: float  # 0 to 1
    error: float  # standard error of ndcg by bootstrap over queries
    precision: float  # share of the k best whose relevance is above query_above
    chance: float  # expected nDCG of a random order, exact

    def to_json(self) -> dict[str, object]:
        """The document of `skykin evaluate --json`."""
        return {
            "label": self.label,
            "queries": self.num_queries,
            "corpus": self.num_corpus,
            f"ndcg@{self.k}": self.ndcg,
            "error": self.error,
            f"precision@{self.k}": self.precision,
            "chance": self.chance,
            "version": self.version,
        }


def evaluate(
    sky: Ranking,
    labels: str | Path,
    label: str,
    *,
    query_above: float = 0.9,
    view: str | None = None,
    k: int = 10,
    seed: int = 0,
) -> Evaluation:
    """Search with every object of a class and measure how far up its like come.

    Args:
        sky: What to measure.
        labels: CSV with object_id and one column a label, relevance 0 to 1, blank = unknown.
        label: The column to use.
        query_above: Objects of higher relevance are the queries.
        view: View to search in; None = the first that the sky has.
        k: How many results count.
        seed: Of the bootstrap.

    Raises:
        ValueError: the file, the label or a value in it is not as expected, or there is nothing to
            ask (no query) or to find (no second object of relevance above 0).
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    view = view or sky.views[0]
    if view not in sky.views:
        raise ValueError(f"this sky has no view {view!r}, it has {', '.join(sky.views)}")
    known = read_labels(labels, label)
    version = sky.version
    keys, found = sky.keys_in_view(known.index.to_list(), view)
    relevance = known.to_numpy(dtype=np.float64)[found]
    order = np.argsort(keys)
    keys, relevance = keys[order], relevance[order]
    queries = np.flatnonzero(relevance > query_above)
    if len(queries) == 0:
        highest = f"the highest is {relevance.max():g}" if len(relevance) else "none is known"
        raise ValueError(
            f"no object of this sky has {label} above {query_above:g} in view {view} ({highest})"
        )
    gains = 2.0**relevance - 1
    if np.count_nonzero(gains) < 2:
        raise ValueError(f"only one object has {label} above 0: there is nothing to find")
    ranked = np.concatenate(
        [
            _ranked(sky, keys, queries[start : start + _QUERIES_AT_A_TIME], view, k)
            for start in range(0, len(queries), _QUERIES_AT_A_TIME)
        ]
    )  # (query, k) places in `keys`, -1 where results end early
    values = ndcg(gains, queries, ranked)
    hits = (ranked >= 0) & (relevance[ranked] > query_above)
    return Evaluation(
        label=label,
        view=view,
        version=version,
        k=k,
        num_queries=len(queries),
        num_corpus=len(keys),
        num_left_out=len(known) - len(keys),
        ndcg=float(values.mean()),
        error=bootstrap_error(values, seed=seed),
        precision=float(hits.sum(axis=1).mean() / min(k, len(keys) - 1)),
        chance=float(chance_ndcg(gains, queries, k).mean()),
    )


def read_labels(file: str | Path, label: str) -> pd.Series[float]:
    """Known relevances of one label, by object id (a string, however many digits it has).

    Raises:
        ValueError: no such file or column, an id comes twice, or a value is not in 0 to 1.
    """
    import pandas as pd  # half a second, which a quiet night has not

    path = Path(file)
    if not path.is_file():
        raise ValueError(f"labels file {path} does not exist")
    try:
        # The header is read as a line like any other: pandas would rename a column that comes
        # twice, and shift all columns where lines are longer than their header.
        table = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV table ({' '.join(str(error).split())})") from error
    columns = table.iloc[0].tolist()
    table = table.iloc[1:].set_axis(columns, axis="columns")
    if label == "object_id":
        raise ValueError("object_id names the objects, it is no label")
    for column in ("object_id", label):
        if columns.count(column) != 1:
            how_often = "no" if column not in columns else "more than one"
            raise ValueError(
                f"{path}: {how_often} column {column!r}; the columns are {', '.join(columns)}"
            )
    table["object_id"] = table["object_id"].str.strip()
    twice = table["object_id"][table["object_id"].duplicated()]
    if len(twice):
        raise ValueError(f"{path}: object {twice.iloc[0]} is listed twice")
    texts = table.set_index("object_id")[label].str.strip()
    texts = texts[texts != ""]
    values = pd.to_numeric(texts, errors="coerce")
    wrong = texts[~values.between(0, 1)]
    if len(wrong):
        raise ValueError(
            f"{path}: {label} of object {wrong.index[0]} must be a relevance from 0 to 1, or blank "
            f"for unknown, got {wrong.iloc[0]!r}"
        )
    return values.astype(float)


def ndcg(
    gains: Float64[ndarray, " corpus"],
    queries: Int64[ndarray, " query"],
    ranked: Int64[ndarray, "query k"],
) -> Float64[ndarray, " query"]:
    """Discounted gain of each ranking over that of the best order of the corpus without the query.

    Args:
        gains: Gain of every object of the corpus.
        queries: Places in the corpus of the queries.
        ranked: Places found for each query, best first, -1 where a row ends early.
    """
    k = ranked.shape[1]
    found = np.where(ranked >= 0, gains[ranked], 0.0)
    return found @ _discounts(k) / _ideal_dcg(gains, queries, k)


def chance_ndcg(
    gains: Float64[ndarray, " corpus"], queries: Int64[ndarray, " query"], k: int
) -> Float64[ndarray, " query"]:
    """Expected nDCG@k of a random order of the corpus without the query, exact.

    Every place holds the mean gain on average, so no sampling is needed.
    """
    others = len(gains) - 1
    mean = (gains.sum() - gains[queries]) / others
    return mean * _discounts(min(k, others)).sum() / _ideal_dcg(gains, queries, k)


def bootstrap_error(values: Float64[ndarray, " query"], *, seed: int) -> float:
    """Standard error of the mean, by drawing the queries again with replacement."""
    rng = np.random.default_rng(seed)
    num = len(values)
    means = [values[rng.integers(num, size=num)].mean() for _ in range(NUM_RESAMPLES)]
    return float(np.std(means))


def _discounts(k: int) -> Float64[ndarray, " k"]:
    return 1 / np.log2(np.arange(2, k + 2))


def _ideal_dcg(
    gains: Float64[ndarray, " corpus"], queries: Int64[ndarray, " query"], k: int
) -> Float64[ndarray, " query"]:
    """DCG@k of the best order of all others: the k + 1 largest gains without the query's own."""
    depth = min(k, len(gains) - 1)
    best = np.sort(gains)[::-1][: depth + 1]
    own = np.searchsorted(-best, -gains[queries])  # where the query's gain stands among the best
    rank = np.arange(depth)
    return best[rank + (rank >= own[:, None])] @ _discounts(depth)


def _ranked(
    sky: Ranking, keys: Int64[ndarray, " corpus"], queries: Int64[ndarray, " _"], view: str, k: int
) -> Int64[ndarray, "_ k"]:
    """Places in `keys` of the k nearest of each query, itself left out."""
    own = keys[queries]
    found = sky.nearest(own, view=view, k=k + 1, among=keys)  # (query, k + 1) keys
    others = found != own[:, None]
    # The query stands among its nearest, though not always first: a twin ties with it.
    others &= np.cumsum(others, axis=1) <= k
    others &= found >= 0
    ranked = np.full((len(queries), k), -1, dtype=np.int64)
    places = np.cumsum(others, axis=1) - 1
    row, column = np.nonzero(others)
    ranked[row, places[row, column]] = np.searchsorted(keys, found[row, column])
    return ranked
