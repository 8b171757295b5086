"""What a frozen encoder makes of whole streams, computed once and kept in memory.

Each row of tokens is encoded in some contexts: of the kinds of stream that it has (images, spectra,
numbers ...) each is shown or hidden by the toss of a coin, never all hidden. Rows that show the
same kinds lie together, so that a batch of them has the same tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy import ndarray
from torch import Tensor

from training.loader import read_rows
from training.modalities import STREAM
from training.precision import quick_autocast
from training.row_order import is_held_out
from training.shards import TokenSet
from training.transformer import Encoded, Transformer, is_sequence

_ROWS_AT_ONCE = 32  # through the encoder

Show = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that have something to ask for and something to show."""

    ids: Int64[Tensor, "row position"]  # of the model's layout
    there: Bool[Tensor, "row position"]
    held_out: Bool[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows in a context, all of the same kinds of stream."""

    shown: tuple[str, ...]  # kinds
    rows: Int64[Tensor, " kept"]  # of Rows; one may come again, as another context shows the same
    positions: Int64[Tensor, " token"]
    outputs: Float[Tensor, "kept token dim"]  # bfloat16
    valid: Bool[Tensor, "kept token"]
    hidden: Bool[Tensor, "kept position"]  # what there is besides and can be asked for

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, some: Int64[Tensor, " n"] | Bool[Tensor, " kept"]) -> Kept:
        """Some of them."""
        return replace(
            self, rows=self.rows[some], outputs=self.outputs[some], valid=self.valid[some],
            hidden=self.hidden[some],
        )  # fmt: skip

    def encoded(
        self, device: torch.device, some: Int64[Tensor, "kept some"] | None = None
    ) -> Encoded:
        """As the decoder takes it; autocast, where there is, makes bfloat16 of it again.

        Args:
            device: Where the decoder is.
            some: Which of the tokens of each row; None: all.
        """
        outputs, valid = self.outputs, self.valid
        positions = self.positions.expand(len(self), -1)
        if some is not None:
            outputs = outputs.gather(1, some[..., None].expand(-1, -1, outputs.shape[2]))
            positions, valid = positions.gather(1, some), valid.gather(1, some)
        return Encoded(outputs.to(device).float(), positions.to(device), valid.to(device))


def open_rows(
    transformer: Transformer,
    sets: Sequence[TokenSet],
    asked: Sequence[str],
    *,
    most: int,
    validation_share: float,
) -> Rows:
    """Read rows of token sets, at most so many, spread over all.

    Raises:
        ValueError: a set does not fit the model, or no row has one of the asked streams and
            something beside.
    """
    layout = transformer.layout
    origins, held = [], []
    for number, each in enumerate(sets):
        each.check(transformer.config.domains_in)
        for index, shard in enumerate(each.shards):
            where = np.full((len(shard), 3), (number, index, 0), dtype=np.int64)
            where[:, 2] = np.arange(len(shard))
            origins.append(where)
            held.append(is_held_out(np.asarray(shard.objects), validation_share))
    ids, there = read_rows(sets, layout, np.concatenate(origins))
    is_asked = torch.zeros(layout.total, dtype=torch.bool)
    for key in asked:
        is_asked[layout.slice(key)] = True
    useful = torch.nonzero(there[:, is_asked].any(dim=1) & there[:, ~is_asked].any(dim=1))[:, 0]
    if not len(useful):
        raise ValueError(
            f"none of {len(ids):,} rows has {' or '.join(asked)}, and something to show beside it"
        )
    spread = torch.linspace(0, len(useful) - 1, min(most, len(useful))).round().long()
    useful = useful[spread]
    return Rows(ids[useful], there[useful], torch.from_numpy(np.concatenate(held))[useful])


def keep(
    transformer: Transformer,
    rows: Rows,
    asked: Sequence[str],
    *,
    contexts: int,
    seed: int,
    progress: Show,
) -> list[Kept]:
    """Encode every row in so many contexts; streams that are asked for are never shown."""
    layout = transformer.layout
    of_kind: dict[str, list[int]] = defaultdict(list)  # positions
    for key in layout.keys:
        if key not in asked:
            of_kind[STREAM[key].kind] += range(layout.total)[layout.slice(key)]
    where = {kind: torch.tensor(positions) for kind, positions in of_kind.items()}
    has = torch.stack([rows.there[:, mine].any(dim=1) for mine in where.values()], dim=1).numpy()
    drawn = _toss(has, tuple(where), contexts, np.random.default_rng([seed, 1]))
    total = sum(map(len, drawn.values()))
    done, kept = 0, []
    for shown, members in sorted(drawn.items()):
        positions = torch.cat([where[kind] for kind in shown]).sort().values
        some = torch.tensor(members)
        outputs = torch.empty(
            len(some), len(positions), transformer.config.dim, dtype=torch.bfloat16
        )
        for start in range(0, len(some), _ROWS_AT_ONCE):
            chunk = some[start : start + _ROWS_AT_ONCE]
            outputs[start : start + len(chunk)] = _encode(transformer, rows, chunk, positions)
            done += len(chunk)
            progress("encoding whole streams", done / total)
        hidden = rows.there[some].clone()
        hidden[:, positions] = False
        for key in layout.keys:
            if key in asked or key not in transformer.config.asked or is_sequence(key):
                hidden[:, layout.slice(key)] = False
        kept.append(Kept(shown, some, positions, outputs, rows.there[some][:, positions], hidden))
    return kept


def _toss(
    has: Bool[ndarray, "row kind"], kinds: tuple[str, ...], contexts: int, rng: np.random.Generator
) -> dict[tuple[str, ...], list[int]]:
    """Rows by the kinds that they show."""
    drawn: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, mine in enumerate(has):
        for _ in range(contexts):
            tossed = mine & (rng.random(len(kinds)) < 0.5)
            shown = tossed if tossed.any() else mine
            drawn[tuple(compress(kinds, shown))].append(row)
    return drawn


@torch.no_grad()
def _encode(
    transformer: Transformer,
    rows: Rows,
    some: Int64[Tensor, " n"],
    positions: Int[Tensor, " token"],
) -> Float[Tensor, "n token dim"]:
    device = transformer.mask_token.device
    ids, valid = rows.ids[some][:, positions], rows.there[some][:, positions]
    with quick_autocast(device):
        encoded = transformer.encode_selected(
            ids.to(device), positions.expand(len(some), -1).to(device), valid.to(device)
        )
    return encoded.outputs.bfloat16().cpu()
