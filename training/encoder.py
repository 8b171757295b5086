"""The frozen product: observations in, one vector for every view of every object out.

Views: "image" reads the image, "spectrum" the spectrum, "xp" the Gaia BP and RP coefficients,
"joint" all of these, the object mask, the ellipses and the photometric scalars. Redshift, position
and extinction are never read. A vector is the mean over the encoder's tokens of one view, or what
the artefact's pooling makes of them, and may hold more behind it (docs/encoder.md).
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from training import artifact, hub
from training.artifact import Artifact
from training.fibre_light import NUM_LIGHT, light_of
from training.halves import Item, Made, in_halves
from training.modalities import STREAM, VIEWS
from training.observations import Observation
from training.precision import Precision, check_precision, device_of, in_bfloat16
from training.search_head import SEARCH_DIM, SearchHead
from training.tokenizers.fast_image import speed_up
from training.tokenizers.image import ImageTokenizer
from training.tokenizers.spectrum import SpectrumTokenizer
from training.tokens import Summaries, Tokens, below_range, refuse_uncovered, streams_of, tokenize
from training.turns import in_turns, means

SHIPPED = Path(__file__).parent  # artefacts that come with the package, a folder each
MAX_BATCH = 8  # objects through the networks at once; more is slower on a CPU (cache)
GPU_BATCH = 256

__all__ = [
    "VIEWS", "Embedded", "Encoder", "EncoderNotFound", "NothingToRead", "load",
]  # fmt: skip

log = logging.getLogger(__name__)
FOREIGN = (
    "view %s of survey %r was not there when the search head was trained: its vectors are "
    "standardised by the statistics of the surveys that were"
)
Network = TypeVar("Network", bound=nn.Module)


class EncoderNotFound(ValueError):
    """There is no encoder of that name or at that path."""


class NothingToRead(ValueError):
    """An observation has nothing that the encoder makes a vector of."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some views of some observations, ordered by observation, then by view."""

    rows: Int64[ndarray, " n"]  # index into the observations given
    views: tuple[str, ...]  # view of each vector
    vectors: Float32[ndarray, "n dim"]
    # By stream, how many of the observations have a value below all that its tokenizer tells apart.
    below_range: Mapping[str, int] = field(default_factory=dict)


def load(
    name_or_path: str | Path = "nano", *, precision: Precision = "float32", device: str = "cpu"
) -> Encoder:
    """Load a shipped encoder by name, one of your own by its folder, or one of the Hub by its id.

    A text that is both, like "nano" where a folder ./nano is, names the shipped one; a Path is
    always a folder. An id is owner/name or owner/name@revision, see training.hub.

    Raises:
        EncoderNotFound: none of them exists, or the Hub does not give it.
        ValueError: the folder does not hold a whole encoder; names file and key. Or an unknown
            precision or device.
    """
    check_precision(precision)
    device_of(device)
    own = Path(name_or_path)
    for folder in (own,) if isinstance(name_or_path, Path) else (SHIPPED / name_or_path, own):
        if (folder / artifact.CONFIG).is_file():
            return Encoder(artifact.load(folder), precision=precision, device=device)
    if isinstance(name_or_path, str) and not own.exists() and hub.is_id(name_or_path):
        try:
            folder = hub.fetch(name_or_path)
        except ValueError as error:
            raise EncoderNotFound(f"no folder {name_or_path!r} here, and {error}") from error
        return Encoder(artifact.load(folder), precision=precision, device=device)
    known = sorted(file.parent.name for file in SHIPPED.glob(f"*/{artifact.CONFIG}"))
    raise EncoderNotFound(
        f"no encoder {str(name_or_path)!r}: expected a folder with {artifact.CONFIG}"
        + (f", or one of: {', '.join(known)}" if known else "")
    )


class Encoder:
    """An encoder that does not learn any more.

    Attributes:
        hash: sha256 of transformer and tokenizers; vectors of another hash do not compare.
        head_hash: sha256 of the search head, "" where the artefact has none.
        dim: Length of an encoder vector.
        carries_light: Whether vectors have the light in a fibre (fibre_light.py).
        num_latents: How many numbers at their end the image tokenizer gives (image_latents.py).
        turns_pictures: Whether vectors of pictures are means over their eight turns (turns.py),
            which takes eight times as long; where false, they are of the picture as it is.
        search_dim: Length of a search vector.
        precision: "bfloat16" is the arithmetic of the transformer alone, since a rounding in a
            tokenizer can change a token; "bfloat16-all" that of the network tokenizers too.
        max_objects: Objects through the transformer at once; halved where they do not fit.

    The parts that it is made of stay as they are, and share their weights with it where they can.

    Raises:
        ValueError: an unknown precision, or a device that there is not.
    """

    search_dim = SEARCH_DIM

    def __init__(
        self, parts: Artifact, *, precision: Precision = "float32", device: str = "cpu"
    ) -> None:
        check_precision(precision)
        self._device = device_of(device)
        self.hash = parts.encoder_hash
        self.head_hash = parts.head_hash
        self.dim, self.carries_light = parts.vector_dim, parts.carries_light
        self.num_latents = parts.num_latents
        self.turns_pictures = parts.pooling is not None and parts.pooling.config.picture_turns
        self.precision: Precision = precision
        self.device = str(self._device)
        self.max_objects = MAX_BATCH if self._device.type == "cpu" else GPU_BATCH
        self.transformer = _own(parts.transformer).to(device)
        self.pooling = None if parts.pooling is None else _own(parts.pooling).to(device)
        self.codecs = {name: _own(codec).to(device) for name, codec in parts.codecs.items()}
        self.head = parts.head
        self._keys = tuple(parts.transformer.config.domains_in)
        if precision != "float32":
            in_bfloat16(self.transformer.encoder)
        for codec in self.codecs.values():
            if isinstance(codec, ImageTokenizer):
                codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                if precision == "bfloat16-all":
                    in_bfloat16(codec.encoder)
                elif precision == "bfloat16" and self._device.type == "cpu":
                    speed_up(codec)

    def views(self, observation: Observation) -> tuple[str, ...]:
        """Views that this encoder can make of an observation, in the order of VIEWS."""
        return tuple(self._feeds(observation))

    def embed(self, observations: Sequence[Observation], views: Iterable[str] = VIEWS) -> Embedded:
        """Vectors of the asked views, as far as each observation has them.

        All tokens of a view are used, however many. Neither order nor batch size changes a vector
        by more than rounding (1e-5 in float32), nor does a turn of a picture where
        `turns_pictures`. Objects that do not fit into memory together are taken in halves, and a
        warning is logged.

        Raises:
            NothingToRead: an observation has no view at all (`views` tells); names it.
            ValueError: an unknown view is asked for, or a tokenizer refuses what was seen.
        """
        asked = tuple(views)
        unknown = sorted(set(asked) - set(VIEWS))
        if unknown:
            raise ValueError(f"unknown view {unknown[0]!r}, expected some of {', '.join(VIEWS)}")
        seen, row_of = list(observations), list(range(len(observations)))
        if self.turns_pictures:
            seen, row_of = in_turns(observations)
        wanted: list[tuple[int, str, tuple[str, ...]]] = []  # row, view, streams to feed
        for row, observation in enumerate(seen):
            feeds = self._feeds(observation)
            if not feeds:
                raise NothingToRead(
                    f"{observation.survey} {observation.object_id}: nothing that this encoder makes"
                    f" a vector of; it reads the streams {', '.join(self._keys)}"
                )
            is_first = row == 0 or row_of[row - 1] != row_of[row]
            wanted += [
                (row, view, feeds[view])
                for view in VIEWS
                if view in feeds and view in asked
                # a turn changes no view without an image
                if is_first or _shows_image(feeds[view])
            ]
        spectra = self.codecs.get("spectrum")
        if isinstance(spectra, SpectrumTokenizer):
            for row, _, keys in wanted:
                if any(STREAM[key].kind == "spectrum" for key in keys):
                    refuse_uncovered(seen[row], spectra)
        rows = sorted({row for row, _, _ in wanted})
        summaries: Summaries | None = {} if self.num_latents else None
        asked_keys = {key for _, _, keys in wanted for key in keys}
        tokens = self._tokens(seen, rows, asked_keys, summaries)
        objects = [{key: tokens[key][row] for key in keys} for row, _, keys in wanted]
        lengths = [sum(map(len, mine.values())) for mine in objects]
        order = sorted(range(len(wanted)), key=lengths.__getitem__)  # equal lengths go together
        vectors = np.zeros((len(wanted), self.transformer.config.dim), dtype=np.float32)
        start = 0
        while start < len(order):
            some = order[start : start + self.max_objects]
            start += len(some)
            pooled = self._fitting(lambda part: self._pooled([objects[n] for n in part]), some)
            vectors[some] = torch.cat(pooled).numpy()
        if self.pooling is not None and wanted:
            surveys = [seen[row].survey for row, _, _ in wanted]
            given = torch.from_numpy(vectors).to(self.device)
            centred = self.pooling.centred(given, [view for _, view, _ in wanted], surveys)
            vectors = centred.cpu().numpy()
        if self.carries_light:
            light = [light_of(seen[row], view) for row, view, _ in wanted]
            vectors = np.hstack([vectors, np.reshape(light, (-1, NUM_LIGHT)).astype(np.float32)])
        if summaries is not None:
            vectors = np.hstack([vectors, self._latents(summaries, wanted)])
        made = [(row_of[row], view) for row, view, _ in wanted]
        if len(seen) > len(observations):
            made, vectors = means(made, vectors)
        known = [observations[row] for row in sorted({row for row, _ in made})]
        return Embedded(
            np.array([row for row, _ in made], dtype=np.int64),
            tuple(view for _, view in made),
            vectors,
            below_range(known, self.codecs, tuple(tokens)),
        )

    def search_vectors(
        self,
        vectors: Float32[ndarray, "n dim"],
        view: str,
        surveys: str | Sequence[str] | None = None,
    ) -> Float32[ndarray, "n 256"]:
        """Turn encoder vectors of one view into unit vectors of the search space.

        Args:
            vectors: As `embed` gives them.
            view: What they were made from.
            surveys: Whose observations, one for all or one each; None: not known. Those that the
                head never saw take the statistics of the view, and a warning is logged.

        Raises:
            ValueError: the artefact has no search head, or not for this view.
        """
        if self.head is None:
            raise ValueError("this encoder has no search head: its folder lacks head/")
        named = [surveys] if isinstance(surveys, str) else surveys or []
        for survey in self.head.foreign(view, named):
            log.warning(FOREIGN, view, survey)
        with torch.inference_mode():
            return self.head(torch.from_numpy(vectors), view, surveys).numpy()

    def use_head(self, head: SearchHead, head_hash: str) -> None:
        """Search with another head than the artefact's, made for its vectors.

        Raises:
            ValueError: it is for vectors of another length.
        """
        if head.config.dim != self.dim:
            raise ValueError(
                f"expected a search head for vectors of {self.dim} dimensions, got one for "
                f"{head.config.dim}"
            )
        self.head, self.head_hash = head, head_hash

    def _feeds(self, observation: Observation) -> dict[str, tuple[str, ...]]:
        """The streams that each view of an observation is made of, views in the order of VIEWS."""
        streams = [key for key in streams_of(self._keys, observation) if STREAM[key].searchable]
        feeds = {
            view: tuple(key for key in streams if STREAM[key].kind == kind)
            for view, kind in (("image", "image"), ("spectrum", "spectrum"), ("xp", "multi_scalar"))
        }
        feeds = {view: keys for view, keys in feeds.items() if keys}
        photometry = any(STREAM[key].kind == "scalar" for key in streams)
        if feeds and len(feeds) + photometry >= 2:
            feeds["joint"] = tuple(streams)
        return feeds

    def _tokens(
        self,
        observations: Sequence[Observation],
        rows: Sequence[int],
        keys: set[str],
        summaries: Summaries | None,
    ) -> Tokens:
        tokens: Tokens = defaultdict(dict)
        ordered = tuple(key for key in self._keys if key in keys)
        for start in range(0, len(rows), self.max_objects):
            for made in self._fitting(
                lambda some: self._tokenized(observations, ordered, some, summaries),
                rows[start : start + self.max_objects],
            ):
                for key, codes in made.items():
                    tokens[key].update(codes)
        return tokens

    def _tokenized(
        self,
        observations: Sequence[Observation],
        keys: Sequence[str],
        rows: Sequence[int],
        summaries: Summaries | None,
    ) -> Tokens:
        with self._autocast("bfloat16-all"):
            return tokenize(
                observations, self.codecs, keys, rows, device=self.device, at_once=len(rows),
                summaries=summaries,
            )  # fmt: skip

    def _latents(
        self, summaries: Summaries, wanted: Sequence[tuple[int, str, tuple[str, ...]]]
    ) -> Float32[ndarray, "n latent"]:
        """Those of each wanted row, view and streams; zeros where no image is among them."""
        assert self.pooling is not None
        latents = np.zeros((len(wanted), self.num_latents), dtype=np.float32)
        seen = [
            (number, summaries[row])
            for number, (row, _, keys) in enumerate(wanted)
            if _shows_image(keys)
        ]
        if seen:
            features = torch.stack([each for _, each in seen]).to(self.device)
            with torch.inference_mode():
                latents[[number for number, _ in seen]] = self.pooling.latents(features).cpu()
        return latents

    def _pooled(self, objects: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "n dim"]:
        with torch.no_grad(), self._autocast("bfloat16", "bfloat16-all"):
            encoded = self.transformer.encode_packed(objects)
            if self.pooling is None or not self.pooling.config.attentive:
                return self.transformer.pool(encoded).float().cpu()
            assert encoded.packing is not None
            outputs = self.transformer.pooled_tokens(encoded)
        with torch.no_grad():
            return self.pooling.attend(outputs, encoded.packing.lengths).cpu()

    def _autocast(self, *precisions: Precision) -> torch.autocast:
        return torch.autocast(
            self._device.type,
            torch.bfloat16,
            enabled=self.precision in precisions,
            cache_enabled=False,
        )

    def _fitting(self, run: Callable[[Sequence[Item]], Made], items: Sequence[Item]) -> list[Made]:
        """Run on all items; what does not fit into memory in halves, and so from then on."""
        made, smaller = in_halves(run, items)
        if smaller < len(items):
            self.max_objects = min(self.max_objects, smaller)
        return made


def _shows_image(keys: Sequence[str]) -> bool:
    return any(STREAM[key].kind == "image" for key in keys)


def _own(networks: Network) -> Network:
    """A copy of the modules, to be changed at will, on the same memory."""
    memo: dict[int, object] = {
        id(each): nn.Parameter(each.detach(), requires_grad=each.requires_grad)
        for each in networks.parameters()
    }
    return copy.deepcopy(networks, memo | {id(each): each.detach() for each in networks.buffers()})
