"""Tokenizers under the tensor names of the released AION-1: files of either load in the other.

The networks are the same; the release nests its layers otherwise, writes some convolutions as
matrices, and stores a few constants that follow from the configuration. Configurations are
translated in released_config.py. Source: the state of the codecs of polymathic-aion 0.0.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.observations import IMAGE_SIZE
from training.tokenizers.ellipses import EllipsesTokenizer, EllipsesTokenizerConfig
from training.tokenizers.field import FieldTokenizer, FieldTokenizerConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.released_config import CodecConfig, codec_config, released_values
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizer, MultiScalarTokenizerConfig
from training.weights import without_memory

__all__ = [
    "Codec", "CodecConfig", "build", "codec_config", "from_released", "released_values",
    "to_released",
]  # fmt: skip

Codec = (
    ImageTokenizer
    | SpectrumTokenizer
    | ScalarTokenizer
    | GridTokenizer
    | MultiScalarTokenizer
    | FieldTokenizer
    | EllipsesTokenizer
)
Pairs = Iterator[tuple[str, str]]  # our name and the release's, of a module

_IMAGE_UNIT = {
    "conv": "net.0.conv", "pointwise": "net.2", "excite.attention": "net.4.to_k",
    "excite.squeeze": "net.4.net.0", "excite.gate": "net.4.net.2",
}  # fmt: skip
_SPECTRUM_BLOCK = {
    "depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "response_norm": "grn",
    "contract": "pwconv2",
}  # fmt: skip
_FIELD_LAYER = {"conv": "net.1", "norm": "net.2", "pointwise": "net.4"}
_TABLE = {"table": "_index_to_val", "reservoir": "_reservoir"}


@dataclass(frozen=True, slots=True)
class _Name:
    """Where the release keeps one of our tensors, and in which shape."""

    released: str
    shape: tuple[int, ...]


def build(config: CodecConfig) -> Codec:
    """Make a tokenizer with fresh weights."""
    match config:
        case ImageTokenizerConfig():
            return ImageTokenizer(config)
        case SpectrumTokenizerConfig():
            return SpectrumTokenizer(config)
        case ScalarTokenizerConfig():
            return ScalarTokenizer(config)
        case GridTokenizerConfig():
            return GridTokenizer(config)
        case MultiScalarTokenizerConfig():
            return MultiScalarTokenizer(config)
        case FieldTokenizerConfig():
            return FieldTokenizer(config)
        case EllipsesTokenizerConfig():
            return EllipsesTokenizer(config)


def from_released(tensors: Mapping[str, Tensor], codec: Codec) -> dict[str, Tensor]:
    """Rename the tensors of a released file for `load_state_dict` of a tokenizer.

    Of the tokenizer the names and shapes count, its tensors may be without memory. Scalar codecs
    were released with the prefix `quantizer.` and are saved by the package with `_quantizer.`; both
    are understood. A moving average of the weights is left out: the release does not use it either.

    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape, or a constant that
            contradicts the configuration; names the tensor.
    """
    config, shapes = codec.config, _shapes(codec)
    found = {
        f"_{name}" if name.startswith("quantizer.") else name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("ema.")
    }
    names, constants = _names(config, shapes), _constants(config)
    wanted = {name.released for name in names.values()} | set(constants)
    unknown, missing = sorted(set(found) - wanted), sorted(wanted - set(found))
    if unknown:
        raise ValueError(f"unexpected tensor {unknown[0]!r}")
    if missing:
        raise ValueError(f"no tensor {missing[0]!r}")
    expected = {name: tuple(constant.shape) for name, constant in constants.items()}
    expected |= {name.released: name.shape for name in names.values()}
    for released, shape in expected.items():
        if tuple(found[released].shape) != shape:
            raise ValueError(
                f"{released} has shape {tuple(found[released].shape)}, "
                f"its configuration asks for {shape}"
            )
    for released, constant in constants.items():
        if not torch.equal(found[released].to(constant.dtype), constant):
            raise ValueError(
                f"{released} is {found[released].tolist()}, "
                f"its configuration asks for {constant.tolist()}"
            )
    return {own: found[name.released].reshape(shapes[own]) for own, name in names.items()}


def to_released(state: Mapping[str, Tensor], config: CodecConfig) -> dict[str, Tensor]:
    """Rename the tensors of a tokenizer's `state_dict` as the release does; adds its constants.

    Raises:
        ValueError: the tokenizer was changed for speed (fast_image.py).
    """
    with without_memory():
        names = _names(config, _shapes(build(config)))
    if set(state) != set(names):
        foreign = sorted(set(state) ^ set(names))[0]
        raise ValueError(
            f"a tokenizer that was changed for speed cannot be saved ({foreign!r}): save the one "
            "that it was made of"
        )
    tensors = {names[own].released: t.reshape(names[own].shape) for own, t in state.items()}
    grid = tensors.get(_GRID)
    if grid is not None and torch.equal(grid.float().to(grid.dtype), grid):
        tensors[_GRID] = grid.float()  # as it came
    return tensors | _constants(config)


_GRID = "latent_grid._wavelength"


def _names(config: CodecConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Name]:
    """Of every tensor of a tokenizer, by our name."""
    modules = dict(_modules(config))
    names = {}
    for own, shape in shapes.items():
        module, _, parameter = own.rpartition(".")
        if own == "grid_angstrom":
            names[own] = _Name(_GRID, (1, *shape))
            continue
        released = modules[module]
        if parameter in ("gamma", "beta"):
            shape = (1, 1, *shape)
        if released in ("subsample_in", "subsample_out"):
            shape = shape[:2]
        names[own] = _Name(f"{released}.{_TABLE.get(parameter, parameter)}", shape)
    return names


def _shapes(codec: Codec) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}


def _constants(config: CodecConfig) -> dict[str, Tensor]:
    """What the release stores although it follows from the configuration."""
    match config:
        case ImageTokenizerConfig() | FieldTokenizerConfig():
            return {"_quantizer.levels": torch.tensor(config.levels, dtype=torch.int32)}
        case SpectrumTokenizerConfig():
            bits = 2 ** torch.arange(config.embedding - 1, -1, -1)
            return {
                "_quantizer._quantizer.mask": bits,
                "latent_grid.lambda_min": torch.tensor(config.first_wavelength_angstrom),
                "latent_grid.resolution": torch.tensor(config.wavelength_step_angstrom),
                "latent_grid.length": torch.tensor(config.num_wavelengths),
            }
        case EllipsesTokenizerConfig():
            names = [f"_quantizer.quantizers.{axis}._codebook_size" for axis in "XY"]
            return {name: torch.tensor(IMAGE_SIZE) for name in names}  # a file shares no tensor
        case _:
            return {}


def _modules(config: CodecConfig) -> Pairs:
    match config:
        case ImageTokenizerConfig():
            yield from _image_modules(config)
        case SpectrumTokenizerConfig():
            yield from _spectrum_modules(config)
        case FieldTokenizerConfig():
            yield from _field_modules(config)
        case ScalarTokenizerConfig() | GridTokenizerConfig():
            yield "quantizer", "_quantizer"
        case MultiScalarTokenizerConfig():
            for number in range(config.num_scalars):
                yield f"quantizers.{number}", f"_quantizer.quantizers.{number}"
        case EllipsesTokenizerConfig():
            for own in ("shape_e1", "shape_e2", "shape_r"):
                yield own, f"_quantizer.quantizers.{own.upper()}"


def _inside(own: str, released: str, parts: Mapping[str, str]) -> Pairs:
    for mine, theirs in parts.items():
        yield f"{own}.{mine}", f"{released}.{theirs}"


def _image_modules(config: ImageTokenizerConfig) -> Pairs:
    """Ours are two flat lists; the release nests the units of one scale."""
    yield "project_in.linear", "subsample_in"
    yield "project_out", "subsample_out"
    yield "to_code", "pre_quant_proj"
    yield "from_code", "post_quant_proj"
    units = config.num_consecutive

    yield "encoder.0", "model.conv_in.conv"
    yield from _inside("encoder.1", "model.encoder_layers.0", _IMAGE_UNIT)
    own, layer = 2, 1
    for _ in range(config.num_compressions + 1):  # and the last convolution, which keeps the side
        yield f"encoder.{own}", f"model.encoder_layers.{layer}.conv"
        for unit in range(units):
            to = f"model.encoder_layers.{layer + 1}.{unit}"
            yield from _inside(f"encoder.{own + 1 + unit}", to, _IMAGE_UNIT)
        own, layer = own + 1 + units, layer + 2
    yield f"encoder.{own}.norm", f"model.encoder_layers.{layer}.1"

    own = layer = 0
    for scale in range(config.num_compressions + 1):
        for unit in range(units):
            to = f"model.decoder_layers.{layer}.{unit}"
            yield from _inside(f"decoder.{own + unit}", to, _IMAGE_UNIT)
        own, layer = own + units, layer + 1
        if scale == 0:
            yield f"decoder.{own}", f"model.decoder_layers.{layer}.conv"
        else:
            yield f"decoder.{own}.conv", f"model.decoder_layers.{layer}.net.0"
        own, layer = own + 1, layer + 1
    yield from _inside(f"decoder.{own}", f"model.decoder_layers.{layer}", _IMAGE_UNIT)
    yield f"decoder.{own + 1}", "model.conv_out.conv"


def _spectrum_modules(config: SpectrumTokenizerConfig) -> Pairs:
    yield "normalisation_quantizer", "normalization_quantizer"
    yield "encoder_norm", "pre_quant_norm"
    yield "to_code", "quant_conv"
    yield "from_code", "post_quant_conv"
    yield "encoder.norm", "encoder.norm"
    parts = (
        ("encoder", "downsample_layers", config.encoder_depths),
        ("decoder", "upsample_layers", config.decoder_depths),
    )
    for part, samplers, depths in parts:
        for stage, depth in enumerate(depths):
            conv, norm = (0, 1) if stage == 0 else (1, 0)
            yield f"{part}.samplers.{stage}.{conv}.conv", f"{part}.{samplers}.{stage}.{conv}"
            yield f"{part}.samplers.{stage}.{norm}", f"{part}.{samplers}.{stage}.{norm}"
            for block in range(depth):
                name = f"{part}.stages.{stage}.{block}"
                yield from _inside(name, name, _SPECTRUM_BLOCK)


def _field_modules(config: FieldTokenizerConfig) -> Pairs:
    yield "to_code", "encode_proj"
    yield "from_code", "decode_proj"
    downward = 2 * config.num_compressions  # convolutions and what lies between them
    lists = (
        ("encoder", range(0, downward + 1, 2), downward + 1),
        ("decoder", (0, *range(3, downward + 2, 2)), 1),
    )
    for part, convolutions, residual in lists:
        for number in convolutions:
            yield f"{part}.{number}", f"{part}.net.{number}"
        for layer in range(config.num_residual):
            to = f"{part}.net.{residual}.net.{layer}"
            yield from _inside(f"{part}.{residual}.{layer}", to, _FIELD_LAYER)
