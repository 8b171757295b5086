"""What one transformer is made of: its sizes, its streams, and its released config.json.

The keys on disk are those that the reference model takes (class FM of the package polymathic-aion
0.0.2), with its defaults where a key is absent. A model that differs from every released one adds
keys of its own to the same file, and only where it differs: `domains` (smaller vocabularies or
grids), `pooling`, `released_layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass

from training.modalities import STREAM
from training.settings import validated

Pooling = Literal["mean", "context"]

# What the reference model assumes where its config.json is silent.
RELEASED_DEFAULTS: dict[str, Any] = {
    "dim": 768,
    "encoder_depth": 12,
    "decoder_depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "gated_mlp": False,
    "qk_norm": False,
    "decoder_causal_mask": False,
    "decoder_sep_mask": True,
    "num_register_tokens": 0,
    "share_modality_embeddings": True,
}
_REQUIRED = ("domains_in", "domains_out", "act_layer", "norm_bias")
# Act in training only and change no output: read, not kept.
_TRAINING_ONLY = (
    "drop_path_rate_encoder", "drop_path_rate_decoder", "shared_drop_path", "use_act_checkpoint",
)  # fmt: skip
# No release uses another value, so only this one is built.
_FIXED: dict[str, Any] = {
    "act_layer": "SiLU",
    "gated_mlp": True,
    "decoder_causal_mask": False,
    "decoder_sep_mask": True,
    "num_register_tokens": 0,
    "share_modality_embeddings": True,
}
_OWN_DEFAULTS: dict[str, Any] = {"domains": {}, "pooling": "mean", "released_layout": True}


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class Domain:
    """One token stream as a model knows it; smaller than released where the model is small."""

    vocabulary: int = Field(gt=0)
    grid: tuple[int, int]  # tokens lie on this grid, first axis slowest

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @classmethod
    def released(cls, key: str) -> Domain:
        """The stream as released AION-1 has it."""
        stream = STREAM[key]
        if stream.kind in ("image", "field"):
            side = round(stream.num_tokens**0.5)
            return cls(vocabulary=stream.vocabulary, grid=(side, side))
        return cls(vocabulary=stream.vocabulary, grid=(stream.num_tokens, 1))


@checked_dataclass(
    frozen=True,
    slots=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False),
)
class TransformerConfig:
    """Sizes and streams of one transformer; switches not given are those of AION-1.

    Raises:
        ValueError: a stream is unknown, or the sizes do not divide.
    """

    domains_in: dict[str, Domain]  # in the order in which streams are laid out
    domains_out: tuple[str, ...] | None = None  # streams that can be asked for; None = all
    dim: int = Field(default=192, gt=0)
    encoder_depth: int = Field(default=6, gt=0)
    decoder_depth: int = Field(default=6, gt=0)
    num_heads: int = Field(default=3, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    qk_norm: bool = True
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    # What an object vector averages: "mean" the encoder outputs themselves, "context" those outputs
    # as the decoder sees them (projected, position and modality added), as AION.encode returns.
    pooling: Pooling = "mean"
    # Released files also hold positions, and decoder token tables that order-free streams never
    # use. Without them a file is smaller; positions are recomputed.
    released_layout: bool = False

    @field_validator("domains_in", mode="before")
    @classmethod
    def _known_streams(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            value = {str(key): None for key in value}
        if not isinstance(value, dict):
            raise ValueError(f"expected a table of token streams, got {value!r}")
        if not value:
            raise ValueError("domains_in names no token stream")
        _check_streams(value)
        return {
            key: Domain.released(key) if domain is None else domain for key, domain in value.items()
        }

    @model_validator(mode="after")
    def _sizes_divide(self) -> TransformerConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for its positions, got {self.dim}")
        foreign = sorted(set(self.domains_out or ()) - set(self.domains_in))
        if foreign:
            raise ValueError(f"domains_out has {foreign[0]!r}, which domains_in lacks")
        return self

    @property
    def mlp_hidden(self) -> int:
        """Units of a gated MLP: two thirds of a plain one's, so that it costs the same."""
        return int(2 * int(self.dim * self.mlp_ratio) / 3)

    @property
    def asked(self) -> tuple[str, ...]:
        """The streams that the decoder can be asked for."""
        return tuple(self.domains_in) if self.domains_out is None else self.domains_out

    @classmethod
    def nano(cls, domains_in: Mapping[str, Domain]) -> TransformerConfig:
        """The size of the encoder that comes with this package."""
        return cls(
            domains_in=dict(domains_in), dim=192, encoder_depth=6, decoder_depth=2, num_heads=3
        )

    @classmethod
    def base(cls) -> TransformerConfig:
        """AION-1 Base, 314 million parameters."""
        return cls._released(dim=768, depth=12, num_heads=12)

    @classmethod
    def large(cls) -> TransformerConfig:
        """AION-1 Large, 858 million parameters."""
        return cls._released(dim=1024, depth=24, num_heads=16)

    @classmethod
    def xl(cls) -> TransformerConfig:
        """AION-1 XL, 3.13 billion parameters."""
        return cls._released(dim=2048, depth=24, num_heads=32)

    @classmethod
    def _released(cls, *, dim: int, depth: int, num_heads: int) -> TransformerConfig:
        return cls(
            domains_in={key: Domain.released(key) for key in sorted(STREAM)},
            dim=dim,
            encoder_depth=depth,
            decoder_depth=depth,
            num_heads=num_heads,
            released_layout=True,
        )


def from_released(values: object) -> TransformerConfig:
    """The configuration that a root config.json describes.

    Raises:
        ValueError: names the key that is unknown, missing, of a wrong value, or not supported.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected a table of settings, got {type(values).__name__}")
    known = {*_REQUIRED, *RELEASED_DEFAULTS, *_TRAINING_ONLY, *_OWN_DEFAULTS}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
    for key in _REQUIRED:
        if key not in values:
            raise ValueError(f"no key {key!r}")
    settings = RELEASED_DEFAULTS | _OWN_DEFAULTS | values
    for key, only in _FIXED.items():
        if settings[key] != only:
            came = repr(settings[key]) if key in values else f"no key, which means {settings[key]}"
            raise ValueError(f"{key}: only {only!r} is supported, got {came}")
    for key in _TRAINING_ONLY + tuple(_FIXED):
        settings.pop(key, None)
    keys, own = settings["domains_in"], settings.pop("domains")
    if not isinstance(keys, list):
        raise ValueError(f"domains_in: expected a list of streams, got {type(keys).__name__}")
    if not isinstance(own, dict):
        raise ValueError(f"domains: expected a table of streams, got {type(own).__name__}")
    if set(own) - set(keys):
        raise ValueError(f"domains: {sorted(set(own) - set(keys))[0]!r} is not in domains_in")
    settings["domains_in"] = {key: own.get(key) for key in keys}
    out = settings["domains_out"]
    if isinstance(out, list) and sorted(map(str, out)) == sorted(map(str, keys)):
        settings["domains_out"] = None
    return validated(TransformerConfig, settings)


def released_values(config: TransformerConfig) -> dict[str, Any]:
    """What config.json says of a model; `from_released` of it gives an equal configuration."""
    values = TypeAdapter(TransformerConfig).dump_python(config, mode="json")
    domains = values.pop("domains_in")
    values |= {"domains_in": list(domains), **_FIXED}
    values["domains_out"] = list(config.asked)
    own = {
        "domains": {
            key: domains[key]
            for key, domain in config.domains_in.items()
            if domain != Domain.released(key)
        },
        "pooling": values.pop("pooling"),
        "released_layout": values.pop("released_layout"),
    }
    differing = {key: value for key, value in own.items() if value != _OWN_DEFAULTS[key]}
    return dict(sorted(values.items())) | differing


def infer_qk_norm(values: object, tensor_names: Iterable[str]) -> object:
    """Settings of a config.json, completed by what the names of the checkpoint's tensors show."""
    if not isinstance(values, dict) or "qk_norm" in values:
        return values
    return values | {"qk_norm": any(".q_norm." in name for name in tensor_names)}


def _check_streams(keys: Iterable[str]) -> None:
    unknown = sorted(set(keys) - set(STREAM))
    if unknown:
        raise ValueError(f"unknown token stream {unknown[0]!r}, known: {', '.join(STREAM)}")
