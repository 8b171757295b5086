"""The frozen product: observations in, one vector for every view of every object out.

A vector is the mean over the encoder's tokens of one view (`pooling` in the artefact's config.json
says which tokens): "image" reads the image, "spectrum" the spectrum, "joint" both and the
photometric scalars. Redshift is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from training import artifact, hub
from training.artifact import Artifact
from training.modalities import STREAM
from training.observations import Observation
from training.search_head import SEARCH_DIM
from training.tokenizers.image import ImageTokenizer
from training.tokens import key_of_image, key_of_spectrum, tokenize

SHIPPED = Path(__file__).parent  # artefacts that come with the package, a folder each
MAX_BATCH = 8  # objects through the networks at once; more is slower on a CPU (cache)
VIEWS = ("image", "spectrum", "joint")

Precision = Literal["float32", "bfloat16"]


class EncoderNotFound(ValueError):
    """There is no encoder of that name or at that path."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some views of some observations, ordered by observation, then by view."""

    rows: Int64[ndarray, " n"]  # index into the observations given
    views: tuple[str, ...]  # view of each vector
    vectors: Float32[ndarray, "n dim"]


def load(name_or_path: str | Path = "nano", *, precision: Precision = "float32") -> Encoder:
    """Load a shipped encoder by name, one of your own by its folder, or one of the Hub by its id.

    A text that is both, like "nano" where a folder ./nano is, names the shipped one; a Path is
    always a folder. An id is owner/name or owner/name@revision, see training.hub.

    Raises:
        EncoderNotFound: none of them exists, or the Hub does not give it.
        ValueError: the folder does not hold a whole encoder; names file and key.
    """
    own = Path(name_or_path)
    for folder in (own,) if isinstance(name_or_path, Path) else (SHIPPED / name_or_path, own):
        if (folder / artifact.CONFIG).is_file():
            return Encoder(artifact.load(folder), precision=precision)
    if isinstance(name_or_path, str) and not own.exists() and hub.is_id(name_or_path):
        try:
            folder = hub.fetch(name_or_path)
        except ValueError as error:
            raise EncoderNotFound(f"no folder {name_or_path!r} here, and {error}") from error
        return Encoder(artifact.load(folder), precision=precision)
    known = sorted(file.parent.name for file in SHIPPED.glob(f"*/{artifact.CONFIG}"))
    raise EncoderNotFound(
        f"no encoder {str(name_or_path)!r}: expected a folder with {artifact.CONFIG}"
        + (f", or one of: {', '.join(known)}" if known else "")
    )


def merge(observations: Sequence[Observation]) -> Observation:
    """What several surveys saw of one object, as one observation to embed.

    The first image, spectrum and XP coefficients and the first value of each scalar count.

    Raises:
        ValueError: no observation, or they are of different objects.
    """
    ids = {observation.object_id for observation in observations}
    if len(ids) != 1:
        raise ValueError(f"expected observations of one object, got {sorted(ids) or 'none'}")
    scalars: dict[str, float] = {}
    for observation in observations:
        scalars = {**observation.scalars, **scalars}
    images = [seen.image for seen in observations if seen.image is not None]
    spectral = [seen for seen in observations if seen.spectrum is not None]
    coefficients = [seen.xp for seen in observations if seen.xp is not None]
    # an encoder may read spectra of two surveys by two streams: the survey is the spectrum's
    return replace(
        spectral[0] if spectral else observations[0],
        image=images[0] if images else None,
        xp=coefficients[0] if coefficients else None,
        scalars=scalars,
    )


class Encoder:
    """An encoder that does not learn any more.

    Attributes:
        hash: sha256 of transformer and tokenizers; vectors of another hash do not compare.
        head_hash: sha256 of the search head, "" where the artefact has none.
        dim: Length of an encoder vector.
        search_dim: Length of a search vector.
        precision: Arithmetic of the transformer; tokenizers always work in float32.
    """

    search_dim = SEARCH_DIM

    def __init__(self, parts: Artifact, *, precision: Precision = "float32") -> None:
        self.hash = parts.encoder_hash
        self.head_hash = parts.head_hash
        self.dim = parts.transformer.config.dim
        self.precision: Precision = precision
        self.transformer = parts.transformer
        self.codecs = dict(parts.codecs)
        self.head = parts.head
        self._keys = tuple(parts.transformer.config.domains_in)
        for codec in self.codecs.values():
            if isinstance(codec, ImageTokenizer):
                codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def views(self, observation: Observation) -> tuple[str, ...]:
        """Views that this encoder can make of an observation, in the order of VIEWS."""
        image = key_of_image(self._keys, observation) is not None
        spectrum = key_of_spectrum(self._keys, observation) is not None
        scalars = bool(self._scalar_keys(observation))
        exists = {
            "image": image,
            "spectrum": spectrum,
            "joint": (image or spectrum) and image + spectrum + scalars >= 2,
        }
        return tuple(view for view in VIEWS if exists[view])

    def embed(self, observations: Sequence[Observation], views: Iterable[str] = VIEWS) -> Embedded:
        """Vectors of the asked views, as far as each observation has them.

        Neither order nor batch size changes a vector by more than rounding (1e-5 in float32).

        Raises:
            ValueError: an unknown view is asked for.
        """
        asked = tuple(views)
        unknown = sorted(set(asked) - set(VIEWS))
        if unknown:
            raise ValueError(f"unknown view {unknown[0]!r}, expected some of {', '.join(VIEWS)}")
        wanted = [
            (row, view)
            for row, observation in enumerate(observations)
            for view in self.views(observation)
            if view in asked
        ]
        vectors = np.zeros((len(wanted), self.dim), dtype=np.float32)
        place = {pair: number for number, pair in enumerate(wanted)}
        with torch.inference_mode():
            tokens = tokenize(observations, self.codecs, self._keys, {row for row, _ in wanted})
            for keys, pairs in self._buckets(observations, wanted).items():
                for start in range(0, len(pairs), MAX_BATCH):
                    some = pairs[start : start + MAX_BATCH]
                    feed = {key: torch.stack([tokens[key][row] for row, _ in some]) for key in keys}
                    with self._autocast():
                        pooled = self.transformer.pool(self.transformer.encode(feed))
                    vectors[[place[pair] for pair in some]] = pooled.float().numpy()
        rows = np.array([row for row, _ in wanted], dtype=np.int64)
        return Embedded(rows, tuple(view for _, view in wanted), vectors)

    def search_vectors(
        self, vectors: Float32[ndarray, "n dim"], view: str
    ) -> Float32[ndarray, "n 256"]:
        """Turn encoder vectors of one view into unit vectors of the search space.

        Raises:
            ValueError: the artefact has no search head, or not for this view.
        """
        if self.head is None:
            raise ValueError("this encoder has no search head: its folder lacks head/")
        with torch.inference_mode():
            return self.head(torch.from_numpy(vectors), view).numpy()

    def _buckets(
        self, observations: Sequence[Observation], wanted: Sequence[tuple[int, str]]
    ) -> dict[tuple[str, ...], list[tuple[int, str]]]:
        """Group what is wanted by the exact streams to feed, so that no batch needs padding."""
        buckets: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
        for row, view in wanted:
            observation = observations[row]
            feed = []
            if view in ("image", "joint"):
                feed.append(key_of_image(self._keys, observation))
            if view in ("spectrum", "joint"):
                feed.append(key_of_spectrum(self._keys, observation))
            if view == "joint":
                feed.extend(self._scalar_keys(observation))
            buckets[tuple(key for key in feed if key is not None)].append((row, view))
        return buckets

    def _scalar_keys(self, observation: Observation) -> tuple[str, ...]:
        return tuple(
            key
            for key in self._keys
            if key in observation.scalars
            and STREAM[key].kind == "scalar"
            and STREAM[key].searchable
        )

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")
