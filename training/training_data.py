"""What tokenizers are fitted on: the modalities of many observations, kept in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from training.compact_images import CompactImage, compact
from training.observations import Ellipses, Field, ObservationBatch, Spectrum, XpCoefficients

RESERVOIR_SIZE = 100_000  # numbers kept of each stream, as the release keeps


class Reservoir:
    """An even sample of a stream of rows of numbers, whose length nobody needs to know.

    Algorithm R of Vitter 1985: every row has had the same chance to be among those that are kept.
    """

    def __init__(self, size: int = RESERVOIR_SIZE, *, seed: int = 0) -> None:
        self.num_seen = 0
        self._rows: list[ndarray] = []
        self._size = size
        self._rng = np.random.default_rng(seed)

    def add(self, row: ndarray | float) -> None:
        """See one more row; refuses nothing, not even NaN."""
        values = np.atleast_1d(np.asarray(row, dtype=np.float64))
        self.num_seen += 1
        if len(self._rows) < self._size:
            self._rows.append(values)
            return
        place = int(self._rng.integers(self.num_seen))
        if place < self._size:
            self._rows[place] = values

    def rows(self) -> Float64[ndarray, "row column"]:
        """What was kept."""
        return np.stack(self._rows) if self._rows else np.zeros((0, 1))


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What tokenizers are fitted on."""

    images: list[CompactImage] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)  # of the objects on these images
    spectra: list[Spectrum] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    ellipses: list[Ellipses] = field(default_factory=list)
    scalars: dict[str, Reservoir] = field(default_factory=dict)  # token key -> rows of numbers


def collect(
    batches: Iterable[ObservationBatch],
    *,
    max_images: int = 50_000,
    max_spectra: int = 50_000,
    max_fields: int = 50_000,
    max_ellipses: int = 50_000,
) -> TrainingData:
    """Keep the modalities of a stream of observations: the first ones; of numbers a sample."""
    data = TrainingData()
    for batch in batches:
        for seen in batch.observations:
            if seen.image is not None and len(data.images) < max_images:
                data.images.append(compact(seen.image))
                data.image_ids.append(seen.object_id)
            if seen.spectrum is not None and len(data.spectra) < max_spectra:
                data.spectra.append(seen.spectrum)
            if seen.object_mask is not None and len(data.fields) < max_fields:
                data.fields.append(seen.object_mask)
            if seen.ellipses is not None and len(data.ellipses) < max_ellipses:
                data.ellipses.append(seen.ellipses)
            for key, value in seen.scalars.items():
                data.scalars.setdefault(key, Reservoir()).add(value)
            for key, coefficients in _arms(seen.xp).items():
                data.scalars.setdefault(key, Reservoir()).add(coefficients)
    return data


def _arms(xp: XpCoefficients | None) -> dict[str, ndarray]:
    arms = {} if xp is None else {"tok_xp_bp": xp.bp, "tok_xp_rp": xp.rp}
    return {key: coefficients for key, coefficients in arms.items() if coefficients is not None}
