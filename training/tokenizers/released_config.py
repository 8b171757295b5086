"""Configurations of tokenizers as the released AION-1 writes them (config.json of a codec).

Each kind of codec has one table: key of the release, our field, and what the release takes where
the key is absent. Settings that the release does not have (those of a smaller model) are keys of
our own in the same file, written only where they differ from their default.

Source: the constructors of the released package polymathic-aion 0.0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from training.modalities import STREAMS, Stream
from training.settings import validated
from training.tokenizers.ellipses import EllipsesTokenizerConfig
from training.tokenizers.field import FieldTokenizerConfig
from training.tokenizers.image import ImageTokenizerConfig
from training.tokenizers.scalar import GridTokenizerConfig, ScalarTokenizerConfig
from training.tokenizers.spectrum import SpectrumTokenizerConfig
from training.tokenizers.xp import MultiScalarTokenizerConfig

CodecConfig = (
    ImageTokenizerConfig
    | SpectrumTokenizerConfig
    | ScalarTokenizerConfig
    | GridTokenizerConfig
    | MultiScalarTokenizerConfig
    | FieldTokenizerConfig
    | EllipsesTokenizerConfig
)
Values = dict[str, Any]

_REQUIRED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How one kind of codec is configured."""

    config: type[Any]
    keys: Mapping[str, tuple[str, object]]  # released key -> our field, value where it is absent
    # Released keys that follow from the others, and what they must be.
    derived: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)
    # Released values that mean several of ours, or ours in another form.
    read: Callable[[Values], Values] = lambda values: values
    write: Callable[[Values], Values] = lambda values: values
    ignored: frozenset[str] = field(default_factory=frozenset)  # settings of the training alone


def codec_config(name: str, values: object) -> CodecConfig:
    """Understand the config.json of a codec.

    Args:
        name: Folder of the codec (`codec` in modalities.py).
        values: Content of the file.

    Raises:
        ValueError: a key is unknown, missing, wrong, or asks for what the tokenizers here cannot
            do; names the key.
    """
    stream = _stream(name)
    layout = _LAYOUTS[_layout_of(stream)]
    if not isinstance(values, dict):
        raise ValueError(f"expected a table of settings, got {type(values).__name__}")
    left = dict(values)
    if left.pop("modality", name) != name:
        raise ValueError(f"modality: expected {name!r}, got {values['modality']!r}")
    for key in layout.ignored:
        left.pop(key, None)
    left = layout.read(left)
    own: Values = {"log": True} if stream.log else {}
    for key, (name_of_field, absent) in layout.keys.items():
        value = left.pop(key, absent)
        if value is _REQUIRED:
            raise ValueError(f"no key {key!r}")
        own[name_of_field] = value
    stated = {key: left.pop(key) for key in layout.derived if key in left}
    ours = {each.name for each in fields(layout.config)} - {of for of, _ in layout.keys.values()}
    unknown = sorted(set(left) - ours)
    if unknown:
        known = sorted({*layout.keys, *layout.derived, *layout.ignored, *ours})
        raise ValueError(f"unknown key {unknown[0]!r}, expected one of {', '.join(known)}")
    named = {of: key for key, (of, _) in layout.keys.items()}
    config = validated(layout.config, own | left, named=named)
    for key, value in stated.items():
        if value != layout.derived[key](config):
            raise ValueError(f"{key}: expected {layout.derived[key](config)!r}, got {value!r}")
    return config


def released_values(name: str, config: CodecConfig) -> Values:
    """The config.json of a codec: `codec_config` of it gives an equal configuration."""
    stream = _stream(name)
    layout = _LAYOUTS[_layout_of(stream)]
    if not isinstance(config, layout.config):
        raise ValueError(f"{name}: expected {layout.config.__name__}, got {type(config).__name__}")
    own = TypeAdapter(layout.config).dump_python(config, mode="json")
    values = {key: own.pop(of) for key, (of, _) in layout.keys.items()}
    values = layout.write(values) | {key: of(config) for key, of in layout.derived.items()}
    if stream.kind in ("scalar", "grid", "multi_scalar"):
        values["modality"] = name
    usual = {each.name: each.default for each in fields(layout.config)} | {"log": stream.log}
    values |= {key: value for key, value in own.items() if value != usual[key]}
    return dict(sorted(values.items()))


def _stream(name: str) -> Stream:
    for stream in STREAMS:
        if stream.codec == name:
            return stream
    raise ValueError(f"unknown codec {name!r}: it belongs to none of the token streams")


def _layout_of(stream: Stream) -> str:
    return "log_scalar" if stream.kind == "scalar" and stream.log else stream.kind


def _read_spectrum(values: Values) -> Values:
    bins = values.get("normalisation_bins", values.get("codebook_size", 1024))
    return values | {"normalisation_bins": bins}


def _write_spectrum(values: Values) -> Values:
    if values["normalisation_bins"] == 2 ** values["embedding_dim"]:
        del values["normalisation_bins"]
    return values


def _read_xp(values: Values) -> Values:
    """The functions are a list of names in the release; here arcsinh is counted."""
    there = values.pop("compression_fns", None)
    back = values.pop("decompression_fns", None)
    arcsinh = isinstance(there, list) and all(each in ("arcsinh", "asinh") for each in there)
    if not arcsinh or not isinstance(back, list) or back != ["sinh"] * len(there or ()):
        raise ValueError(
            "compression_fns: expected arcsinh any number of times, undone by as many sinh in "
            f"decompression_fns, got {there!r} and {back!r}"
        )
    return values | {"compression_fns": len(there or ())}


def _write_xp(values: Values) -> Values:
    count = values["compression_fns"]
    return values | {"compression_fns": ["arcsinh"] * count, "decompression_fns": ["sinh"] * count}


def _read_field(values: Values) -> Values:
    if values.pop("variational", False):
        raise ValueError("variational: expected false, a quantized codec cannot be variational")
    # The sigmoid is a function, which JSON cannot hold: the release leaves its key out.
    if values.get("output_activation") is not None:
        raise ValueError("output_activation: expected null, or no such key for a sigmoid")
    return values | {"output_activation": "output_activation" not in values}


def _write_field(values: Values) -> Values:
    if values.pop("output_activation"):
        return values
    return values | {"output_activation": None}


_SCALAR_KEYS: dict[str, tuple[str, object]] = {
    "codebook_size": ("num_bins", _REQUIRED),
    "reservoir_size": ("reservoir_size", _REQUIRED),
}

_LAYOUTS: dict[str, _Layout] = {
    "image": _Layout(
        config=ImageTokenizerConfig,
        keys={
            "quantizer_levels": ("levels", _REQUIRED),
            "embedding_dim": ("embedding", 5),
            "hidden_dims": ("hidden", 512),
            "multisurvey_projection_dims": ("multisurvey", 54),
            "n_compressions": ("num_compressions", 2),
            "num_consecutive": ("num_consecutive", 4),
            "range_compression_factor": ("compression_softening_nmgy", 0.01),
            "mult_factor": ("compression_multiplier", 10.0),
        },
    ),
    "spectrum": _Layout(
        config=SpectrumTokenizerConfig,
        keys={
            "encoder_depths": ("encoder_depths", (3, 3, 9, 3)),
            "encoder_dims": ("encoder_dims", (96, 192, 384, 768)),
            "decoder_depths": ("decoder_depths", (3, 3, 9, 3)),
            "decoder_dims": ("decoder_dims", (384, 192, 96, 1)),
            "embedding_dim": ("embedding", 4),
            "lambda_min": ("first_wavelength_angstrom", 3500.0),
            "resolution": ("wavelength_step_angstrom", 0.8),
            "num_pixels": ("num_wavelengths", 8704),
            "normalization_range": ("normalisation_range", (-1.0, 5.0)),
            "clip_ivar": ("max_ivar", 100.0),
            "clip_flux": ("max_flux", None),
            "input_scaling": ("input_scale", 0.2),
            "normalisation_bins": ("normalisation_bins", 1024),
        },
        derived={
            "codebook_size": lambda config: 2**config.embedding,
            "dim": lambda config: config.embedding,
            "latent_channels": lambda config: config.encoder_dims[-1],
        },
        read=_read_spectrum,
        write=_write_spectrum,
    ),
    "scalar": _Layout(config=ScalarTokenizerConfig, keys=_SCALAR_KEYS),
    "log_scalar": _Layout(
        config=ScalarTokenizerConfig,
        keys=_SCALAR_KEYS | {"min_log_value": ("min_log_value", -3.0)},
    ),
    "grid": _Layout(
        config=GridTokenizerConfig, keys={"codebook_size": ("num_bins", _REQUIRED)}
    ),
    "multi_scalar": _Layout(
        config=MultiScalarTokenizerConfig,
        keys=_SCALAR_KEYS
        | {
            "num_quantizers": ("num_scalars", _REQUIRED),
            "compression_fns": ("num_arcsinh", _REQUIRED),
        },
        read=_read_xp,
        write=_write_xp,
    ),
    "field": _Layout(
        config=FieldTokenizerConfig,
        keys={
            "encoder_output_dim": ("hidden", _REQUIRED),
            "decoder_input_dim": ("decoder_hidden", None),
            "levels": ("levels", (8, 5, 5, 5)),
            "num_downsamples": ("num_compressions", 3),
            "num_res_layers": ("num_residual", 2),
            "res_hidden_dims": ("residual_hidden", 64),
            "output_activation": ("sigmoid", True),
            "output_activation_extension": ("output_extension", None),
        },
        derived={"embedding_dim": lambda config: len(config.levels)},
        read=_read_field,
        write=_write_field,
        ignored=frozenset(
            {
                "reconstruction_loss", "quantisation_loss_weight", "lr", "lr_warmup",
                "begin_cosine_annealing", "lr_cosine_period", "ema_model_weights", "ema_decay",
                "ema_update_freq",
            }
        ),
    ),
    "ellipses": _Layout(
        config=EllipsesTokenizerConfig, keys={"mask_value": ("raw_padding", 9999)}
    ),
}  # fmt: skip
