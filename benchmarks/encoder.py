"""Encoder speed and fidelity beside the reference package: one run, same weights, same inputs.

    python benchmarks/encoder.py [--images 256] [--seed N] [--quick] [--json]

Needs polymathic-aion (extra dev). An encoder of AION-1 Base size with random weights is written in
the released layout, by the reference package, and loaded by both. Every weight is drawn so that it
matters: the reference's own initialisation closes its gates and leaves all objects alike. Images
are simulated galaxies and stars, four bands of 96 px, no two the same.

Speed: batches of both in turn, from images in memory to one vector an object; each with the batch
size that suits it. The reference runs as its documentation has it, in float32, with all 576 tokens
counted (its default of 256 would drop half of each image). Ours runs in bfloat16, once with the
tokenizer in float32 (what `precision="bfloat16"` means) and once all of it ("bfloat16-all").

Fidelity: tokens and encoder outputs in float32 against the reference's, token by token; then the
vectors that the fast way gives against the reference's: recall@10 (of the ten nearest by centred
cosine) and the smallest cosine of a vector with its own, both less the mean over the images.
stdout with --json is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aion import AION
from aion.codecs.image import ImageCodec
from aion.modalities import LegacySurveyImage
from numpy import ndarray
from torch import Tensor, nn

from training import encoder
from training.observations import Observation
from training.surveys.simulated import clear_sky, draw

BANDS = ["DES-G", "DES-R", "DES-I", "DES-Z"]
KEY = "tok_image"
LEVELS = [7, 5, 5, 5, 5]
NUM_TOKENS = 576
REFERENCE_BATCH = {"cpu": 8, "cuda": 128}
GFLOP_PER_OBJECT = 174  # Base, an image: 111 the transformer's, 63 the tokenizer's


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one each run")
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    num = 24 if given.quick else given.images
    torch.manual_seed(seed)
    observations = list(images(num, seed))
    with tempfile.TemporaryDirectory() as folder:
        reference = write_reference(Path(folder))
        report = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "seed": seed,
            "images": num,
            **measure(Path(folder), reference, observations),
        }
    print(json.dumps(report, indent=None if given.json else 2))


def images(num: int, seed: int) -> Sequence[Observation]:
    """Simulated objects with their images alone."""
    seen = draw(clear_sky(num_objects=num, seed=seed, i_band_fraction=1.0))
    return [replace(each, spectrum=None, xp=None, scalars={}) for each in seen]


def write_reference(folder: Path) -> Reference:
    """AION-1 Base for images, drawn at random; written in the released layout too."""
    codec = ImageCodec(quantizer_levels=LEVELS)
    enliven(codec)
    codec.save_pretrained(
        str(folder), modality=LegacySurveyImage, config={"quantizer_levels": LEVELS}
    )
    config = {
        "domains_in": [KEY], "domains_out": [KEY], "dim": 768, "encoder_depth": 12,
        "decoder_depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "qkv_bias": False,
        "proj_bias": False, "mlp_bias": False, "norm_bias": False, "act_layer": "SiLU",
        "gated_mlp": True, "qk_norm": True,
    }  # fmt: skip
    model = AION(config=config)
    enliven(model)
    model.save_pretrained(str(folder), config=config)
    released = folder / "config.json"
    released.write_text(json.dumps(json.loads(released.read_text()) | {"pooling": "context"}))
    return Reference(codec, model)


def enliven(module: nn.Module) -> None:
    """Draw all weights so that each matters and variance is kept from layer to layer."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "emb" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "token_emb" in name:
                parameter.normal_()
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.1)


class Reference:
    """The reference package, from images in memory to vectors."""

    def __init__(self, codec: ImageCodec, model: AION) -> None:
        self.codec, self.model, self.device = codec.eval(), model.eval(), "cpu"

    def to(self, device: str) -> Reference:
        """Move both networks."""
        self.codec, self.model, self.device = self.codec.to(device), self.model.to(device), device
        return self

    def tokens(self, observations: Sequence[Observation]) -> Tensor:
        flux = torch.stack([torch.from_numpy(flux_of(seen)) for seen in observations])
        image = LegacySurveyImage(flux=flux.to(self.device), bands=BANDS)
        return self.codec.encode(image).reshape(len(observations), -1)

    def outputs(self, tokens: Tensor) -> Tensor:
        return self.model.encode({KEY: tokens}, num_encoder_tokens=tokens.shape[1])

    def vectors(self, observations: Sequence[Observation]) -> ndarray:
        return self.outputs(self.tokens(observations)).mean(dim=1).float().cpu().numpy()


def flux_of(seen: Observation) -> ndarray:
    assert seen.image is not None
    assert [band.upper() for band in seen.image.bands] == BANDS
    return np.array(seen.image.flux)


def measure(
    folder: Path, reference: Reference, observations: Sequence[Observation]
) -> dict[str, Any]:
    """All figures of one run."""
    exact = encoder.load(folder)
    with torch.inference_mode():
        raced = race(fast_ways(folder, "cpu"), reference, observations)
        mismatches, relative, centred_relative = fidelity(exact, reference, observations)
    report: dict[str, Any] = {
        "cpu": raced["bfloat16"],
        "cpu_tokenizer_too": raced["bfloat16-all"],
        "gpu": None,
        "token_mismatches": mismatches,
        "tokens_compared": NUM_TOKENS * len(observations),
        "token_output_max_relative_error": relative,
        "token_output_max_relative_error_centred": centred_relative,
    }
    if torch.cuda.is_available():
        report["gpu"] = on_gpu(folder, reference.to("cuda"), observations)
    return report


def fast_ways(folder: Path, device: str) -> dict[str, encoder.Encoder]:
    """Our encoder in its reduced precisions: of the transformer alone, of the tokenizer too."""
    return {
        precision: encoder.load(folder, precision=precision, device=device)
        for precision in ("bfloat16", "bfloat16-all")
    }


def race(
    ours: Mapping[str, encoder.Encoder],
    reference: Reference,
    observations: Sequence[Observation],
) -> dict[str, dict[str, float]]:
    """Of each of our ways beside the reference: objects per second, and how far vectors agree."""
    runs: dict[str, Callable[[Sequence[Observation]], ndarray]] = {
        name: partial(embed, each) for name, each in ours.items()
    }
    at_once = REFERENCE_BATCH[reference.device]
    runs["reference"] = lambda some: np.concatenate(
        [reference.vectors(part) for part in parts(some, at_once)]
    )
    spent = dict.fromkeys(runs, 0.0)
    made: dict[str, list[ndarray]] = {name: [] for name in runs}
    step = max(at_once, *(each.max_objects for each in ours.values()))
    for run in runs.values():
        run(observations[:step])  # allocates
    for some in parts(observations, step):  # in turn: all suffer alike from a busy machine
        for name, run in runs.items():
            began = time.perf_counter()
            made[name].append(run(some))
            spent[name] += time.perf_counter() - began
    vectors = {name: np.concatenate(each) for name, each in made.items()}
    expected, per_s = vectors.pop("reference"), len(observations) / spent.pop("reference")
    return {
        name: {
            "reference_per_s": per_s,
            "ours_per_s": len(observations) / spent[name],
            "ratio": len(observations) / spent[name] / per_s,
            "centred_cosine_min": float(centred_cosine(mine, expected).min()),
            "recall@10": recall_at_10(mine, expected),
        }
        for name, mine in vectors.items()
    }


def embed(ours: encoder.Encoder, some: Sequence[Observation]) -> ndarray:
    return ours.embed(some, ["image"]).vectors


def fidelity(
    exact: encoder.Encoder, reference: Reference, observations: Sequence[Observation]
) -> tuple[int, float, float]:
    """Tokens that differ, and the largest relative error of a token's output in float32.

    The second error is of outputs less their mean over the images at the same place, so that an
    encoder which gives all images the same would fail.
    """
    mismatches, mine, theirs = 0, [], []
    codec = exact.codecs["image"]
    for some in parts(observations, 8):
        tokens = reference.tokens(some)
        stacked = torch.from_numpy(np.stack([flux_of(seen) for seen in some]))
        flux = torch.zeros(len(some), 9, *stacked.shape[2:])
        flux[:, 5:] = stacked
        channels = torch.zeros(len(some), 9, dtype=torch.bool)
        channels[:, 5:] = True
        own = codec.encode(flux, channels)  # type: ignore[call-arg, arg-type]
        mismatches += int((own != tokens).sum())
        theirs.append(reference.outputs(tokens))
        mine.append(exact.transformer.context(exact.transformer.encode({KEY: tokens.long()})))
    a, b = torch.cat(mine), torch.cat(theirs)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("an encoder output is not finite")
    return mismatches, relative_error(a, b), relative_error(a - a.mean(0), b - b.mean(0))


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest distance of a token's outputs from the reference's, in units of their size."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def on_gpu(
    folder: Path, reference: Reference, observations: Sequence[Observation]
) -> dict[str, Any]:
    """Both on one GPU, and the rate of its bfloat16 matrix products.

    The objects go round until there are enough of them to measure; recall is that of copies too.
    """
    repeated = list(observations) * max(1, 4096 // len(observations))
    with torch.inference_mode():
        raced = race(fast_ways(folder, "cuda"), reference, repeated)["bfloat16-all"]
        rate = matrix_rate()
    return {
        "device": torch.cuda.get_device_name(),
        **raced,
        "matrix_tflops": rate / 1e12,
        "share_of_matrix_rate": raced["ours_per_s"] * GFLOP_PER_OBJECT * 1e9 / rate,
        "hours_for_200_million": 200e6 / raced["ours_per_s"] / 3600,
    }


def matrix_rate() -> float:
    """Floating-point operations a second of large bfloat16 products on the GPU."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for repeats in (3, 50):  # the first to warm up
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        torch.cuda.synchronize()
    return 50 * 2 * 8192**3 / (time.perf_counter() - began)


def centred(vectors: ndarray) -> ndarray:
    less_mean = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    return less_mean / np.linalg.norm(less_mean, axis=1, keepdims=True)


def centred_cosine(a: ndarray, b: ndarray) -> ndarray:
    """Cosine of each vector with its own counterpart, both less their means."""
    return (centred(a) * centred(b)).sum(axis=1)


def recall_at_10(ours: ndarray, reference: ndarray) -> float:
    """Share of the reference's ten nearest that are among ours, over all objects as queries."""
    nearest = []
    for vectors in (centred(ours), centred(reference)):
        cosine = vectors @ vectors.T
        np.fill_diagonal(cosine, -np.inf)
        nearest.append(np.argsort(-cosine, axis=1)[:, :10])
    shared = [len(set(a) & set(b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / 10


def parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


if __name__ == "__main__":
    main()
