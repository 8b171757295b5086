"""Sources to tokens and back: order, padding, the transformer's vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.observations import Ellipses
from training.tokenizers.ellipses import (
    EllipsesTokenizer,
    EllipsesTokenizerConfig,
    EllipseTensors,
    stack,
    unstack,
)


def sources(count: int, seed: int = 0) -> Ellipses:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-0.4, 95.4, (2, count)).astype(np.float32)
    order = np.argsort(np.hypot(x - 47.5, y - 47.5))
    e1, e2 = rng.normal(0, 0.3, (2, count)).astype(np.float32)
    radius = rng.lognormal(0, 1, count).astype(np.float32)
    return Ellipses(x=x[order], y=y[order], shape_e1=e1, shape_e2=e2, shape_r_arcsec=radius)


@pytest.fixture(scope="module")
def fitted() -> EllipsesTokenizer:
    tokenizer = EllipsesTokenizer(EllipsesTokenizerConfig(num_bins=256, reservoir_size=0))
    tokenizer.fit(stack([sources(20, seed) for seed in range(100)]))
    return tokenizer


def test_sources_come_back_to_half_a_pixel_and_one_bin(fitted: EllipsesTokenizer) -> None:
    before = [sources(count, count) for count in (1, 7, 10, 0)]

    *after, nothing = unstack(fitted.decode(fitted.encode(stack(before))))

    assert len(nothing.x) == 0
    for old, new in zip(before[:3], after, strict=True):
        assert len(new.x) == len(old.x)
        near = np.hypot(new.x[:, None] - old.x, new.y[:, None] - old.y)
        match = near.argmin(axis=1)  # rounded positions may change the order
        assert sorted(match) == list(range(len(old.x)))
        np.testing.assert_allclose(new.x, old.x[match], atol=0.5)
        np.testing.assert_allclose(new.y, old.y[match], atol=0.5)
        assert (new.shape_r_arcsec >= old.shape_r_arcsec[match] * (1 - 1e-5)).all()  # upper edges
        np.testing.assert_allclose(new.shape_e1, old.shape_e1[match], atol=0.3)


def test_the_nearest_ten_sources_are_kept(fitted: EllipsesTokenizer) -> None:
    many = stack([sources(20)])
    first = EllipseTensors(many.values[:, :10], many.present[:, :10])
    assert torch.equal(fitted.encode(many), fitted.encode(first))


def test_each_quantity_has_its_own_codes_above_those_of_the_transformer(
    fitted: EllipsesTokenizer,
) -> None:
    tokens = fitted.encode(stack([sources(10), sources(3)]))
    start = 204
    for quantity, count in enumerate((96, 96, 256, 256, 256)):
        codes = tokens[:, quantity::5]
        assert ((codes == 0) | ((codes >= start) & (codes < start + count))).all()
        start += count
    assert fitted.num_codes == start
    assert (tokens[1, 15:] == 0).all()


def test_a_code_of_another_quantity_makes_no_source(fitted: EllipsesTokenizer) -> None:
    tokens = fitted.encode(stack([sources(3)]))
    tokens[0, 5] = fitted.num_codes - 1  # a radius where x belongs
    assert fitted.decode(tokens).present[0].tolist() == [True, False, True] + [False] * 7


def test_a_source_outside_the_image_or_nan_is_refused(fitted: EllipsesTokenizer) -> None:
    batch = stack([sources(2)])
    for value, message in ((96.0, "pixels 0 to 95"), (torch.nan, "NaN")):
        wrong = batch.values.clone()
        wrong[0, 1, 0] = value
        with pytest.raises(ValueError, match=message):
            fitted.encode(EllipseTensors(wrong, batch.present))
    with pytest.raises(ValueError, match="divisible by 5"):
        EllipsesTokenizerConfig(num_tokens=49)
