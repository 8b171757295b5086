"""A tiny transformer that has learnt tokens whose joint distribution is known.

B (tok_z, 4 codes) has a sloping prior. A (tok_flux_r) is B or a neighbour of it, C (tok_flux_g) is
B or anything. All four tokens of the image are one code M: B // 2, or any of two.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

NUM = 4
PRIOR = np.arange(2, NUM + 2) / np.arange(2, NUM + 2).sum()
_STEPS = np.abs(np.subtract.outer(np.arange(NUM), np.arange(NUM)))
A_GIVEN_B = np.select([_STEPS == 0, _STEPS == 1], [0.5, 0.25], 0.0)
A_GIVEN_B /= A_GIVEN_B.sum(axis=1, keepdims=True)
C_GIVEN_B = 0.6 * np.eye(NUM) + 0.4 / NUM
M_GIVEN_B = 0.7 * (np.arange(NUM)[:, None] // 2 == np.arange(2)) + 0.3 / 2

Table = Float64[ndarray, "b code"]


def b_given(*tables_and_codes: tuple[Table, int]) -> Float64[ndarray, " b"]:
    """P(B) given codes of streams that depend on B alone, by the theorem of Bayes."""
    weight = PRIOR.copy()
    for table, code in tables_and_codes:
        weight = weight * table[:, code]
    return weight / weight.sum()


def draw_joint(num: int, rng: np.random.Generator) -> dict[str, Int64[Tensor, "object token"]]:
    """Objects with all their streams."""

    def pick(chances: ndarray) -> ndarray:
        return (rng.random((len(chances), 1)) > chances.cumsum(axis=1)).sum(axis=1)

    b = pick(np.tile(PRIOR, (num, 1)))
    columns = {
        "tok_flux_r": pick(A_GIVEN_B[b]),
        "tok_flux_g": pick(C_GIVEN_B[b]),
        "tok_z": b,
    }
    codes = {key: torch.from_numpy(mine)[:, None].long() for key, mine in columns.items()}
    return codes | {"tok_image": torch.from_numpy(pick(M_GIVEN_B[b])).long()[:, None].expand(-1, 4)}


def tiny(domains: dict[str, Domain], *, seed: int = 0, depth: int = 1) -> Transformer:
    """A transformer that trains in seconds."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=depth, decoder_depth=1, domains_in=domains
    )
    return Transformer(config)


def train(
    model: Transformer, codes: dict[str, Int64[Tensor, "object token"]], *, steps: int, batch: int
) -> None:
    """Masked modelling of whole rows: some tokens shown, all others asked for."""
    layout = model.layout
    ids = torch.cat([codes[key] + layout.id_start[key] for key in layout.keys], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    model.train()
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(ids)
        shown = _choose(batch, model.stream_of_position)
        where, valid = _front(shown)
        asked, asked_valid = _front(~shown)
        mine = ids[rows]
        encoded = model.encode_selected(mine.gather(1, where), where, valid)
        states = model.decode(encoded, asked, asked_valid)
        truth, stream = mine.gather(1, asked), model.stream_of_position[asked]
        losses = []
        for number, key in enumerate(layout.keys):
            there = asked_valid & (stream == number)
            if there.any():
                target = truth[there] - layout.id_start[key]
                losses.append(F.cross_entropy(model.logits(key, states[there]), target))
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)


def _choose(batch: int, stream: Tensor) -> Tensor:
    """Some streams whole or in part; at least one token shown, and one not."""
    lot = torch.rand(batch, int(stream.max()) + 1)
    shown = (lot < torch.rand(batch, 1))[:, stream] & (torch.rand(batch, len(stream)) < 0.8)
    shown[torch.arange(batch), torch.randint(len(stream), (batch,))] = True
    hidden = torch.randint(len(stream), (batch,))
    shown[torch.arange(batch), hidden] &= shown.sum(dim=1) < len(stream)
    return shown


def _front(chosen: Tensor) -> tuple[Tensor, Tensor]:
    longest = int(chosen.sum(dim=1).max())
    where = (~chosen).int().argsort(dim=1, stable=True)[:, :longest]
    return where, chosen.gather(1, where)


def learnt(seed: int = 0) -> Transformer:
    """The transformer that knows the joint distribution of this module."""
    scalars = {
        key: Domain(vocabulary=NUM, grid=(1, 1)) for key in ("tok_flux_r", "tok_flux_g", "tok_z")
    }
    model = tiny({**scalars, "tok_image": Domain(vocabulary=2, grid=(2, 2))}, seed=seed)
    train(model, draw_joint(100_000, np.random.default_rng(seed)), steps=600, batch=128)
    return model
