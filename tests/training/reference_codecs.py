"""The reference codecs of AION-1 at their released sizes, with random weights, and ours of them.

The reference (polymathic-aion 0.0.2) writes the files, ours are read from them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training.modalities import STREAM
from training.tokenizers import released
from training.tokenizers.released import Codec

TABLE = {"codebook_size": 1024, "reservoir_size": 100_000}
ARCSINH = {"compression_fns": ["arcsinh"] * 2, "decompression_fns": ["sinh"] * 2}
# As published on the Hub; of segmentation_map only the codes (1000) and tokens (144) are known.
SETTINGS: dict[str, dict[str, Any]] = {
    "ImageCodec": {
        "quantizer_levels": [7, 5, 5, 5, 5], "hidden_dims": 512, "embedding_dim": 5,
        "multisurvey_projection_dims": 54, "n_compressions": 2, "num_consecutive": 4,
        "range_compression_factor": 0.01, "mult_factor": 10.0,
    },
    "SpectrumCodec": {
        "encoder_depths": [3, 3, 27, 3], "encoder_dims": [64, 128, 256, 512],
        "decoder_depths": [3, 9, 3, 3], "decoder_dims": [256, 128, 64, 2],
        "latent_channels": 512, "embedding_dim": 10,
    },
    "ScalarCodec": TABLE,
    "LogScalarCodec": TABLE | {"min_log_value": -3},
    "MultiScalarCodec": TABLE | ARCSINH | {"num_quantizers": 55},
    "GridScalarCodec": {"codebook_size": 1024},
    "CatalogCodec": {"mask_value": 9999},
    "ScalarFieldCodec": {
        "encoder_output_dim": 256, "decoder_input_dim": 128, "embedding_dim": 4,
        "levels": [8, 5, 5, 5],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One codec twice, with the same weights, and the files that they came by."""

    reference: Any
    ours: Codec
    settings: dict[str, Any]  # content of config.json
    tensors: dict[str, Tensor]  # content of model.safetensors


def modality(key: str) -> Any:
    """The reference's class of a token stream."""
    mapping = importlib.import_module("aion.codecs.config").MODALITY_CODEC_MAPPING
    (found,) = [cls for cls in mapping if cls.token_key == key]
    return found


def make_pair(key: str, folder: Path) -> Pair:
    """Save the reference codec of a stream by its own method; read ours from the files."""
    seen = modality(key)
    codec_class = importlib.import_module("aion.codecs.config").MODALITY_CODEC_MAPPING[seen]
    settings = dict(SETTINGS[codec_class.__name__])
    if STREAM[key].kind in ("scalar", "multi_scalar", "grid"):
        settings["modality"] = seen.name
    reference = codec_class(**settings)
    with torch.no_grad():
        randomise(reference)
    reference.save_pretrained(folder, modality=seen)
    part = folder / "codecs" / seen.name
    values = json.loads((part / "config.json").read_text())
    tensors = load_file(part / "model.safetensors")
    config = released.codec_config(seen.name, values)
    ours = released.build(config)
    ours.load_state_dict(released.from_released(tensors, ours))
    return Pair(reference.eval(), ours.eval(), values, tensors)


def randomise(codec: Any) -> None:
    """Let every tensor count: at their start gates are shut, norms and biases do nothing."""
    for module in codec.modules():
        _randomise_module(module)
    if hasattr(codec, "subsample_out"):  # images that the arcsinh does not blow up
        seen = codec.subsample_out(
            codec.decoder(codec.post_quant_proj(torch.rand(1, 5, 6, 6) * 2 - 1)),
            torch.ones(1, 9, dtype=torch.bool),
        )
        codec.subsample_out.weight.mul_(0.15 / seen.std())
        codec.subsample_out.bias.mul_(0.15 / seen.std())
    if hasattr(codec, "quant_conv"):  # signs of either kind
        seen = codec.encoder(torch.randn(1, 2, 2048).asinh())
        latent = codec.quant_conv(codec.pre_quant_norm(seen.moveaxis(1, -1)).moveaxis(-1, 1))
        codec.quant_conv.bias.sub_(latent.mean(dim=(0, 2)))
        # The last stage norms over two channels, so where these are equal rounding decides its
        # sign: let it count for less. And let about half of the pixels be masked.
        for block in codec.decoder.stages[-1]:
            block.pwconv2.weight.mul_(0.1)
        seen = codec.decoder(codec.post_quant_conv(torch.randn(1, 10, 64).sign()))
        codec.decoder.upsample_layers[-1][1].bias[1] -= seen[:, 1].mean()


def _randomise_module(module: Any) -> None:
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        fan_in = module.weight.shape[0] if transposed else module.weight[0].numel()
        module.weight.normal_(std=1.3 * fan_in**-0.5)
        assert module.bias is not None
        module.bias.normal_(std=0.1)
    match type(module).__name__:
        case "LayerNorm":
            module.weight.normal_(1, 0.2)
            module.bias.normal_(0, 0.1)
        case "BatchNorm2d":
            module.weight.normal_(1, 0.2)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
        case "GRN":
            module.gamma.normal_(0, 0.2)
            module.beta.normal_(0, 0.1)
        case "SubsampledLinear":
            module.weight.normal_(std=module.weight.shape[1] ** -0.5)
            module.bias.normal_(std=0.1)
        case "ResidualUnit":  # half open gates that differ by channel and by image
            gate = module.net[4].net[2]
            gate.weight.normal_(std=0.2)
            gate.bias.normal_(-1, 1)
        # Tables that the constructors would not make, and that do not follow from the reservoirs.
        case "ScalarLinearQuantizer":
            lowest, highest = module.buckets[0].item(), 5 + torch.rand(()).item()
            module.buckets.copy_(torch.linspace(lowest, highest, len(module.buckets)))
        case "ScalarCompressedReservoirQuantizer":  # twice sinh: 3.5 is 1e7
            _fill(module, lambda n: torch.randn(n).mul(0.3 + torch.rand(())).clamp(-3.5, 3.5))
        case "ScalarLogReservoirQuantizer":
            _fill(module, lambda n: torch.randn(n).mul(1 + torch.rand(())).clamp(min=-3))
        case "ScalarReservoirQuantizer":
            _fill(module, lambda n: torch.randn(n).exp() * 3 - torch.rand(()))


def _fill(quantizer: Any, sample: Callable[[int], Tensor]) -> None:
    """A tenth of the table is one repeated value, as where many sources have no size."""
    quantizer._reservoir.copy_(sample(len(quantizer._reservoir)))
    table = sample(len(quantizer._index_to_val))
    table[: len(table) // 10] = table[0]
    quantizer._index_to_val.copy_(table.sort().values)
