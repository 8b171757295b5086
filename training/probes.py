"""Small heads on frozen vectors or tokens: how much of a property an encoder's output tells.

Linear heads are scikit-learn's, the others those of probe_heads. Whatever is learned, scales
included, is learned on the training objects; a tenth of these decides on the strength of a penalty
or when to stop.

Source: arXiv 2510.17960, section 6 and its appendix; learning rates and patience are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from training.features import Features
from training.probe_heads import Head

Kind = Literal["linear", "mlp", "attentive", "attentive-mlp"]
KINDS: tuple[Kind, ...] = ("linear", "mlp", "attentive", "attentive-mlp")

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
    device: str = "cpu",
) -> Float64[ndarray, "test output"]:
    """Predict numbers of the test objects; NaN in a target = not known, not learned from.

    Raises:
        ValueError: a target is infinite or known for no training object, or a feature not finite.
    """
    check_features(features, split)
    check_targets(targets, split)
    if kind == "linear":
        return np.stack([_ridge(features, column, split) for column in targets.T], axis=1)
    known = targets[split.train]
    mean, scale = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    scaled = torch.from_numpy((targets - mean) / np.where(scale > 0, scale, 1)).float().to(device)
    there = ~torch.isnan(scaled)
    scaled = scaled.nan_to_num()

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        weight = there[objects]
        return ((outputs - scaled[objects]) ** 2 * weight).sum() / weight.sum().clamp(min=1)

    learnt = learn(
        head_of(kind, features, targets.shape[1]), features, split.train, loss,
        seed=seed, device=device,
    )  # fmt: skip
    outputs = predict(learnt.head, features, split.test, device=device)
    return outputs.double().numpy() * scale + mean


def classify(
    kind: Kind,
    features: Features,
    classes: Int64[ndarray, " object"],
    split: Split,
    *,
    seed: int,
    device: str = "cpu",
) -> Int64[ndarray, " test"]:
    """Predict the class, a number from 0, of the test objects.

    Raises:
        ValueError: a feature is not finite.
    """
    check_features(features, split)
    if kind == "linear":
        return _logistic(features, classes, split, seed=seed)
    truth = torch.from_numpy(classes).to(device)

    def loss(outputs: Tensor, objects: Tensor) -> Tensor:
        return F.cross_entropy(outputs, truth[objects])

    make = head_of(kind, features, int(classes.max()) + 1)
    learnt = learn(make, features, split.train, loss, seed=seed, device=device)
    return predict(learnt.head, features, split.test, device=device).argmax(dim=1).numpy()


def check_features(features: Features, split: Split) -> None:
    """Raise ValueError where an output of the encoder is NaN or infinite, naming the object."""
    for number in np.concatenate([split.train, split.test]).tolist():
        start, stop = number, number + 1
        if features.starts is not None:
            start, stop = features.starts[number], features.starts[number + 1]
        if not np.isfinite(features.values[start:stop]).all():
            raise ValueError(f"the encoder's output of object {number} holds NaN or infinity")


def check_targets(targets: Float64[ndarray, "object output"], split: Split) -> None:
    """Raise ValueError where a target is infinite, or there is none to learn from."""
    if np.isinf(targets).any():
        raise ValueError("a target is infinite: expected numbers, or NaN where it is not known")
    unknown = np.isnan(targets[split.train]).all(axis=0)
    if unknown.any():
        raise ValueError(f"target {int(unknown.argmax())} is known for no training object")


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


@dataclass(frozen=True, slots=True)
class Learnt:
    """A trained head, and the objects that decided when to stop."""

    head: nn.Module  # of (inputs, padding)
    held_back: Int64[ndarray, " n"]


def head_of(kind: Kind, features: Features, num_outputs: int) -> Callable[[Tensor, Tensor], Head]:
    """How to make a head, from the mean and the scale of its inputs."""
    attentive, mlp = pools(kind), kind.endswith("mlp")
    return lambda mean, scale: Head(
        features.dim, num_outputs, mean, scale, attentive=attentive, mlp=mlp
    )


def learn(
    make: Callable[[Tensor, Tensor], nn.Module],
    features: Features,
    train: Int64[ndarray, " n"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    seed: int,
    device: str = "cpu",
    batch_size: int = BATCH,
    held_back: float = HELD_BACK,
) -> Learnt:
    """Train a head until the objects held back are predicted no better.

    Args:
        make: Makes the head from the mean and the scale of each dimension of its inputs.
        features: What it reads.
        train: Objects to learn from, those held back among them.
        loss: Of outputs and the numbers of their objects, both on the device.
        seed: Of weights, order and dropout.
        device: Where it is trained.
        batch_size: Objects a step, or a quarter of all where that is less.
        held_back: Share of the objects that decide when to stop.
    """
    some_of, check = _hold_back(train, seed, held_back)
    rng = np.random.default_rng(seed)
    batch = min(batch_size, -(-len(some_of) // 4))
    held = torch.from_numpy(check).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make(*_scale(features, some_of)).to(device)
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        steps = -(-len(some_of) // batch)  # an epoch
        patience = max(PATIENCE, MIN_PATIENCE_STEPS // steps)
        best, best_loss, best_epoch = head.state_dict(), np.inf, 0
        for epoch in range(max(MAX_EPOCHS, MIN_STEPS // steps)):
            head.train()
            order = rng.permutation(some_of)
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                optimizer.zero_grad()
                outputs = head(*_inputs(features, some, device))
                torch.autograd.backward(loss(outputs, torch.from_numpy(some).to(device)))
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
            found = predict(head, features, check, device=device, batch_size=batch_size)
            now = float(loss(found.to(device), held))
            if now < best_loss:
                best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
                best_loss, best_epoch = now, epoch
            elif epoch - best_epoch >= patience:
                break
        head.load_state_dict(best)
        return Learnt(head, check)


def _hold_back(
    train: Int64[ndarray, " n"], seed: int, share: float = HELD_BACK
) -> tuple[Int64[ndarray, " learn"], Int64[ndarray, " check"]]:
    order = np.random.default_rng(seed).permutation(train)
    num = max(1, round(share * len(train)))
    return np.sort(order[num:]), np.sort(order[:num])


def _inputs(
    features: Features, objects: Int64[ndarray, " n"], device: str
) -> tuple[Tensor, Tensor]:
    if features.starts is None:
        vectors = torch.from_numpy(features.values[objects]).float().to(device)
        return vectors, torch.zeros(len(objects), 1, dtype=torch.bool, device=device)
    tokens, padding = features.tokens(objects)
    return tokens.to(device), padding.to(device)


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


def predict(
    head: nn.Module,
    features: Features,
    objects: Int64[ndarray, " n"],
    *,
    device: str = "cpu",
    batch_size: int = BATCH,
) -> Float32[Tensor, "*outputs"]:
    """What a head gives for some objects, these first; ValueError where that is not finite."""
    head.eval()
    with torch.no_grad():
        outputs = torch.cat(
            [
                head(*_inputs(features, objects[start : start + batch_size], device)).cpu()
                for start in range(0, len(objects), batch_size)
            ]
        )
    if not torch.isfinite(outputs).all():
        raise ValueError("the head gives NaN or infinity: its training has diverged")
    return outputs
