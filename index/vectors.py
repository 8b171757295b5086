"""Observations to vectors as the store keeps them: float16, by view, with their precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16
from numpy import ndarray

from index.store import Store
from training import encoder as encoders
from training.encoder import Encoder
from training.observations import Observation
from training.precision import Precision


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of one view, one an observation."""

    view: str
    fingerprints: tuple[str, ...]
    values: Float16[ndarray, "n dim"]
    precision: Precision  # of the encoder's arithmetic


def embed_each(
    observations: Sequence[Observation], encoder: Encoder
) -> tuple[list[Vectors], Counter[str], dict[str, str]]:
    """Embed all views; count values below range by stream, see `Embedded`.

    What the encoder refuses is given by fingerprint, with its reason.
    """
    below_range: Counter[str] = Counter()
    if not observations:
        return [], below_range, {}
    try:
        vectors, below = vectors_of(observations, encoder, views=encoders.VIEWS)
        return vectors, Counter(below), {}
    except (ValueError, RuntimeError):
        vectors, refused = [], {}
        for observation in observations:
            try:
                mine, below = vectors_of([observation], encoder, views=encoders.VIEWS)
            except (ValueError, RuntimeError) as error:
                refused[observation.fingerprint] = f"cannot be embedded: {error}"
                continue
            vectors += mine
            below_range.update(below)
        return vectors, below_range, refused


def vectors_of(
    observations: Sequence[Observation], encoder: Encoder, *, views: Sequence[str]
) -> tuple[list[Vectors], Mapping[str, int]]:
    """Embed observations; vectors by view, in float16, and values below range by stream.

    Raises:
        ValueError: a vector is not finite in float16.
    """
    embedded = encoder.embed(observations, views=views)
    with np.errstate(over="ignore"):  # checked below
        values = embedded.vectors.astype(np.float16)
    if not np.isfinite(values).all():
        raise ValueError("its vector is not finite in float16")
    given = np.array(embedded.views)
    out = []
    for view in dict.fromkeys(embedded.views):
        here = np.flatnonzero(given == view)
        names = tuple(observations[embedded.rows[i]].fingerprint for i in here)
        out.append(Vectors(view, names, values[here], encoder.precision))
    return out, embedded.below_range


def add_vectors(store: Store, vectors: Vectors) -> None:
    """Append to the store, with the precision that the vectors were made in."""
    store.append(vectors.view, vectors.fingerprints, vectors.values, precision=vectors.precision)
