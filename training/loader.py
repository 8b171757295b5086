"""Batches of masked tokens from shards on disk, in an order that a run can take up again.

Which rows a step takes, and what is masked in them, follows from the seed, the step and how many
were drawn of each data set before: these counts are all that a checkpoint needs to keep. Where a
batch has several rows of an object, those that follow the drawn one are not counted. The batch of a
step is one for all processes together; each makes its own places of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from numpy import ndarray
from torch import Tensor

from training.labels import NO_LABELS, Labels
from training.masking import Chance, MaskingConfig, sample_masks
from training.modalities import STREAM
from training.row_order import RowOrder
from training.shards import TokenSet
from training.transformer import Layout, is_sequence
from training.transformer_config import TransformerConfig

AHEAD = 2  # steps that are made while one is trained on
# A sequence is fed its first sentinel (after 4 special codes) before its first asked code.
START_CODE = 4

Position = dict[str, int]  # data set -> rows drawn so far, copies of theirs not counted


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass reads. Positions and ids are those of the model's Layout."""

    shown: Int[Tensor, "row input"]
    positions: Int[Tensor, "row input"]
    valid: Bool[Tensor, "row input"] | None  # None = all
    targets: Int[Tensor, "row target"]
    target_valid: Bool[Tensor, "row target"]
    previous: Int[Tensor, "row target"] | None  # what a sequence is fed; None = no sequence
    asked: Int[Tensor, " asked"]  # places in (row, target), stream after stream
    codes: Int[Tensor, " asked"]  # true codes there
    counts: tuple[int, ...]  # asked tokens of each stream
    objects: Int64[Tensor, " row"] | None  # with `labels`: what kinship asks for
    labels: Bool[Tensor, "row label"] | None
    origin: Int64[ndarray, "row 3"]  # data set, shard, row

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the copy to a GPU does not wait."""
        if device.type == "cpu":
            return self
        moved = {
            name: tensor.pin_memory().to(device, non_blocking=True)
            for name, tensor in self.tensors().items()
        }
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Batch(**(rest | moved))


@dataclass(frozen=True, slots=True)
class Step:
    """One process's part of one step, in as many batches as fit its memory."""

    number: int
    batches: tuple[Batch, ...]
    after: Position  # where the loader stands once this step is done


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderConfig:
    """What a batch is made of."""

    masking: MaskingConfig
    batch_size: int  # of all processes together
    micro_batch_size: int | None = None  # rows of one forward pass; None = all of a process's
    validation_share: float = 0.0
    max_validation_rows: int = 8192
    seed: int = 0
    fixed_shape: bool = False  # pad to the budgets, so that a compiled model sees one shape
    rows_per_object: int = 1  # that follow each other in a batch: its copies, each with its mask
    kinship: bool = False  # whether batches tell objects and labels


class Loader:
    """Reads token sets, see the module.

    Raises:
        ValueError: a set does not fit the model, no set has a stream of the model, no row is left
            to train on, or the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        sets: Sequence[TokenSet],
        model: TransformerConfig,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        labels: Labels = NO_LABELS,
    ) -> None:
        if config.batch_size % (world_size * config.rows_per_object):
            of_each = f", {config.rows_per_object} rows of each object"
            raise ValueError(
                f"batch_size {config.batch_size} cannot be shared evenly by {world_size} processes"
                + (of_each if config.rows_per_object > 1 else "")
            )
        self._labels = labels
        for each in sets:
            each.check(model.domains_in)
        seen = {key for each in sets for shard in each.shards for key in shard.tokens}
        lost = [key for key in model.domains_in if key not in seen]
        if lost:
            raise ValueError(f"no data set has the stream {lost[0]!r} of the model")
        self.sets, self.config, self.rank, self.world_size = tuple(sets), config, rank, world_size
        self.layout = Layout.of(model.domains_in)
        keys = self.layout.keys
        self._stream_of_position = self.layout.stream_of_position()
        self._askable = torch.tensor([key in model.asked for key in keys])
        kinds = [STREAM[key].kind for key in keys]
        self._kind_of_stream = torch.tensor([kinds.index(kind) for kind in kinds])
        self._sequences = {key: self.layout.slice(key) for key in keys if is_sequence(key)}
        self._orders = [
            RowOrder(each, keys, number, validation_share=config.validation_share, seed=config.seed)
            for number, each in enumerate(sets)
        ]
        weights = np.array([each.weight for each in sets], dtype=np.float64)
        usable = np.array([order.num_rows > 0 for order in self._orders])
        if not (weights * usable).sum():
            raise ValueError(f"{sum(map(len, sets)):,} rows of tokens leave none to train on")
        self._shares = np.cumsum(weights * usable) / (weights * usable).sum()

    @property
    def num_objects(self) -> int:
        """Objects of a step's batch, of all processes together."""
        return self.config.batch_size // self.config.rows_per_object

    def start(self) -> Position:
        """Where a fresh run stands."""
        return {each.name: 0 for each in self.sets}

    def steps(self, first: int, position: Position, *, last: int | None = None) -> Generator[Step]:
        """Steps from `first` on, each made ahead of its time by another thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            pending: deque[Future[Step]] = deque()
            number = first
            try:
                while pending or last is None or number <= last:
                    while len(pending) <= AHEAD and (last is None or number <= last):
                        drawn = self._draw(number, position)
                        pending.append(pool.submit(self._make, number, drawn, position))
                        position = _advanced(position, drawn, self.sets)
                        number += 1
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def held_out(self) -> Iterator[Batch]:
        """This process's part of the held-out rows, with the same masks every time."""
        found = []
        shares = np.diff(self._shares, prepend=0.0)
        for number, order in enumerate(self._orders):
            rows = order.held_out(round(self.config.max_validation_rows * shares[number]))
            found.append(np.column_stack([np.full(len(rows), number), rows]))
        origin = np.concatenate(found)
        # every process takes as many steps as the others
        origin = origin[: len(origin) - len(origin) % self.world_size]
        size = self.config.batch_size
        for start in range(0, len(origin), size):
            share = (min(start + size, len(origin)) - start) // self.world_size
            mine = range(start + self.rank * share, start + (self.rank + 1) * share)
            yield from self._batches(0, mine, origin[mine.start : mine.stop])

    def _draw(self, number: int, position: Position) -> Int64[ndarray, "place 2"]:
        """Data set, and which of its rows in their order, for every object of a step's batch."""
        size = self.num_objects
        chance = np.random.default_rng([self.config.seed, number]).random(size)
        which = np.searchsorted(self._shares, chance, side="right")
        nth = np.empty(size, dtype=np.int64)
        for each in range(len(self.sets)):
            mine = which == each
            nth[mine] = position[self.sets[each].name] + np.arange(mine.sum())
        return np.column_stack([which, nth])

    def _make(self, number: int, drawn: Int64[ndarray, "place 2"], position: Position) -> Step:
        copies = self.config.rows_per_object
        share = len(drawn) // self.world_size
        some = drawn[self.rank * share : (self.rank + 1) * share]
        mine = range(self.rank * share * copies, (self.rank + 1) * share * copies)
        origin = np.empty((share, copies, 3), dtype=np.int64)
        for each, order in enumerate(self._orders):
            rows = np.flatnonzero(some[:, 0] == each)
            origin[rows, :, 0] = each
            origin[rows, :, 1:] = order.copies(order.at(some[rows, 1]), copies)
        batches = tuple(self._batches(number, mine, origin.reshape(-1, 3)))
        return Step(number, batches, _advanced(position, drawn, self.sets))

    def _batches(
        self, number: int, places: range, origin: Int64[ndarray, "row 3"]
    ) -> Iterator[Batch]:
        size = self.config.micro_batch_size or max(len(places), 1)
        for start in range(0, len(places), size):
            yield self._batch(number, places[start : start + size], origin[start : start + size])

    def _batch(self, number: int, places: range, origin: Int64[ndarray, "row 3"]) -> Batch:
        ids, available = read_rows(self.sets, self.layout, origin)
        objects = labels = None
        if self.config.kinship and number:
            objects, labels = self._known(origin)
        chance = Chance.draw(
            self.config.seed, number, places,
            num_positions=self.layout.total, num_streams=len(self.layout.keys),
        )  # fmt: skip
        masks = sample_masks(
            available, self._stream_of_position, self.config.masking, chance,
            kind_of_stream=self._kind_of_stream, askable=self._askable,
            sequences=tuple(self._sequences.values()),
        )  # fmt: skip
        inputs, valid = masks.inputs, masks.input_valid
        targets, target_valid = masks.targets, masks.target_valid
        if self.config.fixed_shape:
            inputs, valid = _padded(inputs, valid, self.config.masking.num_input_tokens)
            targets, target_valid = _padded(
                targets, target_valid, self.config.masking.num_target_tokens
            )
        truth = ids.gather(1, targets)
        stream = torch.where(target_valid, self._stream_of_position[targets], -1)
        counts = torch.bincount(stream.flatten() + 1, minlength=len(self.layout.keys) + 1).tolist()
        asked = stream.flatten().argsort(stable=True)[counts[0] :]
        starts = torch.tensor([self.layout.id_start[key] for key in self.layout.keys])
        codes = truth.flatten()[asked] - starts[stream.flatten()[asked]]
        previous = None
        if self._sequences:
            targets, previous = self._in_sequence(targets, target_valid, stream, ids)
        return Batch(
            shown=ids.gather(1, inputs),
            positions=inputs,
            valid=None if bool(valid.all()) else valid,
            targets=targets,
            target_valid=target_valid,
            previous=previous,
            asked=asked,
            codes=codes,
            counts=tuple(counts[1:]),
            objects=objects,
            labels=labels,
            origin=origin,
        )

    def _known(
        self, origin: Int64[ndarray, "row 3"]
    ) -> tuple[Int64[Tensor, " row"], Bool[Tensor, "row label"]]:
        """Number and labels of the object of each row; a pair has the number of its first part."""
        objects = np.empty(len(origin), dtype=np.int64)
        labels = np.empty((len(origin), len(self._labels.names)), dtype=bool)
        for place, (number, shard, row) in enumerate(origin):
            parts = np.asarray(self.sets[number].shards[shard].objects[row])
            objects[place], labels[place] = parts[0], self._labels.of(parts).any(axis=0)
        return torch.from_numpy(objects), torch.from_numpy(labels)

    def _in_sequence(
        self,
        targets: Int[Tensor, "row target"],
        valid: Bool[Tensor, "row target"],
        stream: Int[Tensor, "row target"],
        ids: Int[Tensor, "row position"],
    ) -> tuple[Int[Tensor, "row target"], Int[Tensor, "row target"]]:
        """Positions of asked tokens counted from the first asked one, and the code before each."""
        previous = torch.zeros_like(targets)
        for key, where in self._sequences.items():
            mine = valid & (stream == self.layout.keys.index(key))
            far = torch.where(mine, targets, self.layout.total)
            first = far.amin(dim=1, keepdim=True)  # asked tokens follow each other
            before = ids.gather(1, (targets - 1).clamp(min=0)) - self.layout.id_start[key]
            before = torch.where(targets == first, START_CODE, before)
            previous = torch.where(mine, before, previous)
            targets = torch.where(mine, targets - first + where.start, targets)
        return targets, previous


def read_rows(
    sets: Sequence[TokenSet], layout: Layout, origin: Int64[ndarray, "row 3"]
) -> tuple[Int64[Tensor, "row position"], Bool[Tensor, "row position"]]:
    """Layout ids of rows, and which of them are there.

    Args:
        sets: Token sets that fit the layout.
        layout: Of the model.
        origin: Data set, its shard and the row of it.

    Raises:
        ValueError: a code is beyond the vocabulary; names the shard.
    """
    ids = np.zeros((len(origin), layout.total), dtype=np.int64)
    available = np.zeros(ids.shape, dtype=bool)
    for number, index in np.unique(origin[:, :2], axis=0).tolist():
        mine = np.flatnonzero((origin[:, 0] == number) & (origin[:, 1] == index))
        shard, rows = sets[number].shards[index], origin[mine, 2]
        for key in layout.keys:
            if key not in shard.tokens:
                continue
            codes = shard.tokens[key][rows]
            if codes.max(initial=0) >= shard.schema[key][0]:
                raise ValueError(
                    f"{shard.folder}: {key} has the code {codes.max()}, its vocabulary "
                    f"{shard.schema[key][0]} codes: the shard is damaged"
                )
            where = layout.slice(key)
            ids[mine, where] = codes.astype(np.int64) + layout.id_start[key]
            there = np.arange(codes.shape[1]) < shard.lengths[key][rows][:, None]
            available[mine, where] = there
    return torch.from_numpy(ids), torch.from_numpy(available)


def _advanced(
    position: Mapping[str, int], drawn: Int64[ndarray, "place 2"], sets: Sequence[TokenSet]
) -> Position:
    counts = np.bincount(drawn[:, 0], minlength=len(sets))
    return {each.name: position[each.name] + int(n) for each, n in zip(sets, counts, strict=True)}


def _padded(
    positions: Int[Tensor, "row n"], valid: Bool[Tensor, "row n"], length: int
) -> tuple[Int[Tensor, "row length"], Bool[Tensor, "row length"]]:
    missing = (0, length - positions.shape[1])
    return torch.nn.functional.pad(positions, missing), torch.nn.functional.pad(valid, missing)
