"""Small heads on frozen vectors or tokens: how much of a property an encoder's output tells.

Linear heads are scikit-learn's. The MLP has one hidden layer of 256 GELUs and dropout 0.1, as the
paper's. An attentive head pools the tokens by one learned query an output, after which it is
linear or that MLP. Whatever is learned, scales included, is learned on the training objects; a
tenth of these decides on the strength of a penalty or when to stop.

Source: arXiv 2510.17960, section 6 and its appendix; learning rates and patience are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy import ndarray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from training.features import Features

Kind = Literal["linear", "mlp", "attentive", "attentive-mlp"]
KINDS: tuple[Kind, ...] = ("linear", "mlp", "attentive", "attentive-mlp")

HIDDEN = 256
DROPOUT = 0.1
HEAD_DIM = 64  # of the attention, as in the encoder
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
BATCH = 256  # or a quarter of the objects, where that is less
MAX_EPOCHS, MIN_STEPS = 100, 1000  # whichever is more; few objects make short epochs
PATIENCE, MIN_PATIENCE_STEPS = 10, 120  # likewise, without a better validation loss
HELD_BACK = 0.1  # of the training objects, to decide when to stop
_PENALTIES = np.logspace(-2, 6, 17)  # of ridge, on standardised vectors
_INVERSE_PENALTIES = np.logspace(-4, 1, 6)  # of logistic regression
_NUM_SCALED = 1024  # objects whose tokens give the scale of tokens


@dataclass(frozen=True, slots=True)
class Split:
    """Objects to learn from, and objects to be judged by."""

    train: Int64[ndarray, " n"]
    test: Int64[ndarray, " m"]


def kind_of(name: str) -> Kind:
    """The probe of a name.

    Raises:
        ValueError: there is none.
    """
    for kind in KINDS:
        if kind == name:
            return kind
    raise ValueError(f"unknown probe {name!r}: expected one of {', '.join(KINDS)}")


def pools(kind: Kind) -> bool:
    """Whether a head reads tokens and pools them itself."""
    return kind.startswith("attentive")


def regress(
    kind: Kind,
    features: Features,
    targets: Float64[ndarray, "object output"],
    split: Split,
    *,
    seed: int,
) -> Float64[ndarray, "test output"]:
    """Predict numbers of the test objects; NaN in a target = not known, not learned from."""
    if kind == "linear":
        return np.stack([_ridge(features, column, split) for column in targets.T], axis=1)
    known = targets[split.train]
    mean, scale = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    scaled = torch.from_numpy((targets - mean) / np.where(scale > 0, scale, 1)).float()
    there = ~torch.isnan(scaled)
    scaled = scaled.nan_to_num()

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        weight = there[objects]
        return ((outputs - scaled[objects]) ** 2 * weight).sum() / weight.sum().clamp(min=1)

    outputs = _learn(kind, features, targets.shape[1], split, loss, seed=seed)
    return outputs.double().numpy() * scale + mean


def classify(
    kind: Kind,
    features: Features,
    classes: Int64[ndarray, " object"],
    split: Split,
    *,
    seed: int,
) -> Int64[ndarray, " test"]:
    """Predict the class, a number from 0, of the test objects."""
    if kind == "linear":
        return _logistic(features, classes, split, seed=seed)
    truth = torch.from_numpy(classes)

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        return F.cross_entropy(outputs, truth[objects])

    outputs = _learn(kind, features, int(classes.max()) + 1, split, loss, seed=seed)
    return outputs.argmax(dim=1).numpy()


def _ridge(
    features: Features, target: Float64[ndarray, " object"], split: Split
) -> Float64[ndarray, " test"]:
    """Ridge regression, its penalty by leave-one-out on the training objects."""
    train = split.train[~np.isnan(target[split.train])]
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES))
    model.fit(features.values[train].astype(np.float64), target[train])
    return np.asarray(model.predict(features.values[split.test].astype(np.float64)), np.float64)


def _logistic(
    features: Features, classes: Int64[ndarray, " object"], split: Split, *, seed: int
) -> Int64[ndarray, " test"]:
    """Logistic regression, its penalty by the accuracy on the objects held back."""
    learn, check = _hold_back(split.train, seed)

    def fit(inverse_penalty: float, objects: Int64[ndarray, " n"]) -> Pipeline:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000)
        )
        return model.fit(features.values[objects], classes[objects])

    accuracies = [
        fit(penalty, learn).score(features.values[check], classes[check])
        for penalty in _INVERSE_PENALTIES
    ]
    best = _INVERSE_PENALTIES[int(np.argmax(accuracies))]  # the strongest of equals
    predicted = fit(best, split.train).predict(features.values[split.test])
    return np.asarray(predicted, np.int64)


class Head(nn.Module):
    """From vectors (object, dim), or from tokens (object, token, dim), to outputs."""

    mean: Tensor
    scale: Tensor

    def __init__(self, kind: Kind, dim: int, num_outputs: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.attention = Attention(dim, num_outputs) if pools(kind) else None
        mlp = kind.endswith("mlp")
        self.hidden = (
            nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT)) if mlp else None
        )
        width = HIDDEN if mlp else dim
        self.weight = nn.Parameter(torch.randn(num_outputs, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(
        self, inputs: Float[Tensor, "object *token dim"], padding: Bool[Tensor, "object token"]
    ) -> Float[Tensor, "object output"]:
        x = (inputs - self.mean) / self.scale
        x = x[:, None] if self.attention is None else self.attention(x, padding)
        if self.hidden is not None:
            x = self.hidden(x)
        # One row for all outputs, or after attention a row for each.
        outputs: Tensor = (x * self.weight).sum(dim=-1) + self.bias
        return outputs


class Attention(nn.Module):
    """Cross-attention of one learned query an output over tokens of LayerNorm."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.num_heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(num_outputs, dim))
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, tokens: Float[Tensor, "object token dim"], padding: Bool[Tensor, "object token"]
    ) -> Float[Tensor, "object output dim"]:
        key, value = self.key_value(self.norm(tokens)).chunk(2, dim=-1)
        query = self.query.expand(len(tokens), -1, -1)
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (query, key, value)
        )  # (object, head, output or token, width)
        allowed = ~padding[:, None, None, :]
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.proj(pooled.transpose(1, 2).flatten(-2))


def _learn(
    kind: Kind,
    features: Features,
    num_outputs: int,
    split: Split,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
) -> Float32[Tensor, "test output"]:
    """Train a head until the objects held back are predicted no better; outputs of the test."""
    learn, check = _hold_back(split.train, seed)
    rng = np.random.default_rng(seed)
    batch = min(BATCH, -(-len(learn) // 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(kind, features.dim, num_outputs, *_scale(features, learn))
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        steps = -(-len(learn) // batch)  # an epoch
        patience = max(PATIENCE, MIN_PATIENCE_STEPS // steps)
        best, best_loss, best_epoch = head.state_dict(), np.inf, 0
        for epoch in range(max(MAX_EPOCHS, MIN_STEPS // steps)):
            head.train()
            order = rng.permutation(learn)
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                optimizer.zero_grad()
                loss(head(*_inputs(features, some)), torch.from_numpy(some)).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
            now = float(loss(_predict(head, features, check), torch.from_numpy(check)))
            if now < best_loss:
                best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
                best_loss, best_epoch = now, epoch
            elif epoch - best_epoch >= patience:
                break
        head.load_state_dict(best)
        return _predict(head, features, split.test)


def _hold_back(
    train: Int64[ndarray, " n"], seed: int
) -> tuple[Int64[ndarray, " learn"], Int64[ndarray, " check"]]:
    order = np.random.default_rng(seed).permutation(train)
    num = max(1, round(HELD_BACK * len(train)))
    return np.sort(order[num:]), np.sort(order[:num])


def _inputs(features: Features, objects: Int64[ndarray, " n"]) -> tuple[Tensor, Tensor]:
    if features.starts is None:
        vectors = torch.from_numpy(features.values[objects]).float()
        return vectors, torch.zeros(len(objects), 1, dtype=torch.bool)
    return features.tokens(objects)


def _scale(features: Features, objects: Int64[ndarray, " n"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension; those that do not vary keep their scale."""
    if features.starts is None:
        values = features.values[objects].astype(np.float64)
        mean, square = values.mean(axis=0), (values**2).mean(axis=0)
    else:
        total, squares, num = np.zeros(features.dim), np.zeros(features.dim), 0
        for number in objects[:: max(1, len(objects) // _NUM_SCALED)]:
            rows = features.values[features.starts[number] : features.starts[number + 1]]
            rows = rows.astype(np.float64)
            total, squares, num = total + rows.sum(0), squares + (rows**2).sum(0), num + len(rows)
        mean, square = total / num, squares / num
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    deviation[deviation < 1e-6 * np.abs(mean) + 1e-12] = 1
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def _predict(
    head: Head, features: Features, objects: Int64[ndarray, " n"]
) -> Float32[Tensor, "n output"]:
    head.eval()
    with torch.inference_mode():
        parts = [
            head(*_inputs(features, objects[start : start + BATCH]))
            for start in range(0, len(objects), BATCH)
        ]
    return torch.cat(parts)
