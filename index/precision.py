"""Two precisions in one sky: how far vectors of one differ from those of the other, measured.

The vectors of an encoder lie close together around their mean, so a plain cosine is near one
whatever rounding does. What search goes by is how an object differs from the others: both sets of
vectors are centred on their own mean, and the object whose two vectors then point furthest apart
decides.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from numpy import ndarray

from index import workers
from index.embedding import InputFile, Job, read_observations
from index.errors import EncoderMismatch
from index.inputs import content_of, file_state
from index.store import Store
from index.vectors import Vectors, embed_each
from training import encoder as encoders
from training.encoder import Encoder
from training.observations import Observation
from training.precision import Precision

# An object's vector then turns by 8 degrees at most. nano keeps 0.99998 with its transformer in
# bfloat16 and 0.994 with its tokenizers too (16 objects a view); untrained tokenizers 0.90.
ENOUGH_COSINE = 0.99
MOST_OBSERVATIONS = 64  # that are embedded in both precisions
FEWEST_OBSERVATIONS = 8  # of a view: fewer lie too close to their own mean to tell


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the vectors of two precisions agree."""

    centred_cosine: dict[str, float]  # view -> the smallest of an object, with float16 rounding
    vectors: tuple[Vectors, ...]  # in the precision that was asked for
    below_range: Counter[str]  # see training.encoder.Embedded
    num_observations: int


def checked(text: str) -> Precision:
    """The text as a precision; ValueError names those there are."""
    for known in get_args(Precision):
        if text == known:
            return known
    raise ValueError(f"expected a precision of {' or '.join(get_args(Precision))}, got {text!r}")


def measure(
    files: Sequence[InputFile],
    *,
    survey: str,
    encoder: Encoder,
    own: Precision,
    job: Job,
    store: Store,
    num_workers: int,
) -> Agreement:
    """Embed some of the observations that the store lacks in both precisions, and compare.

    Args:
        files: What the build is going to read.
        survey: Whose reader reads them.
        encoder: In the precision that was asked for.
        own: The sky's precision.
        job: What a worker needs to know.
        store: Whose vectors count as there, in whichever precision.
        num_workers: Processes of the build; 0 reads in this process too.

    Raises:
        EncoderMismatch: too few observations to tell, or the precisions differ too much.
    """
    sample = _sample(files, survey, encoder, store, num_workers=num_workers)
    if not sample:
        return Agreement({}, (), Counter(), 0)
    sky = store.folder.parents[1]
    vectors, below_range, refused = embed_each(sample, encoder)  # the build lists what is refused
    sample = [each for each in sample if each.fingerprint not in refused]
    if len(sample) < FEWEST_OBSERVATIONS:
        raise _too_few(len(sample), "", encoder=encoder, own=own, sky=sky)
    others, _, _ = embed_each(sample, encoders.load(job.encoder, precision=own))
    one, two = _by_view(vectors), _by_view(others)
    measured = {}
    for view in one:
        both = sorted(one[view].keys() & two[view].keys())
        if len(both) < FEWEST_OBSERVATIONS:
            raise _too_few(len(both), f" of the view {view}", encoder=encoder, own=own, sky=sky)
        sides = (np.stack([side[view][name] for name in both]) for side in (one, two))
        measured[view] = smallest_cosine(*sides)
    for view, cosine in measured.items():
        if not cosine > ENOUGH_COSINE:  # NaN is not enough either
            raise EncoderMismatch(
                f"{sky} was made in {own}, and vectors of this encoder in {encoder.precision} do "
                f"not fit in with it: over {len(one[view])} new observations the smallest "
                f"centred cosine of the view {view} is {cosine:.6f}, and more than "
                f"{ENOUGH_COSINE} is needed. Build with --precision {own}, or build a new sky"
            )
    return Agreement(measured, tuple(vectors), below_range, len(sample))


def _too_few(
    num: int, of_view: str, *, encoder: Encoder, own: Precision, sky: Path
) -> EncoderMismatch:
    return EncoderMismatch(
        f"{sky} was made in {own}, and whether vectors in {encoder.precision} fit in with it "
        f"cannot be measured: there are {num} new observations{of_view}, and at least "
        f"{FEWEST_OBSERVATIONS} are needed. Build with --precision {own}, or with more files"
    )


def smallest_cosine(one: ndarray, two: ndarray) -> float:
    """The smallest cosine of two vectors of one object, each set (n, dim) centred on its mean.

    NaN where an object lies at the very mean, as all do that are alike.
    """
    one, two = (each.astype(np.float64) for each in (one, two))
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    with np.errstate(invalid="ignore"):
        return float(((one * two).sum(axis=1) / lengths).min())


def _sample(
    files: Sequence[InputFile], survey: str, encoder: Encoder, store: Store, *, num_workers: int
) -> list[Observation]:
    """Observations that the build is going to embed, the first in the order of the files."""
    sample: dict[str, Observation] = {}
    tasks = deque(files)
    # One worker, so that the order is that of the files. A file that ends it is told by the build.
    pieces = workers.stream(partial(_handler, survey), tasks, num_workers=min(1, num_workers))
    with closing(pieces):
        for _, piece in pieces:
            if isinstance(piece, workers.Died):
                continue
            for observation in piece:
                name = observation.fingerprint
                if not all(store.has(view, [name])[0] for view in encoder.views(observation)):
                    sample.setdefault(name, observation)
            if len(sample) >= MOST_OBSERVATIONS:
                break
    return list(sample.values())[:MOST_OBSERVATIONS]


def _by_view(vectors: Sequence[Vectors]) -> dict[str, dict[str, ndarray]]:
    """View, then fingerprint, to vector."""
    found: dict[str, dict[str, ndarray]] = {}
    for some in vectors:
        found.setdefault(some.view, {}).update(zip(some.fingerprints, some.values, strict=True))
    return found


def _handler(survey: str) -> workers.Handler:
    return partial(_read, survey=survey)


def _read(file: InputFile, *, survey: str) -> Iterator[list[Observation]]:
    """Observations of a file that is not what the sky has already, a few at a time."""
    try:
        for path in (file.path, *file.companions):
            file_state(path)
        if content_of(file.path, file.companions) == file.known_sha256:
            return
    except (OSError, ValueError):
        return
    some: list[Observation] = []
    for item in read_observations(survey, Path(file.path)):
        if isinstance(item, Observation):
            some.append(item)
        if len(some) >= FEWEST_OBSERVATIONS:
            yield some
            some = []
    yield some
