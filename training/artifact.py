"""The encoder on disk, in the layout of the released AION-1 and a folder for the search head.

    config.json  model.safetensors              the transformer
    codecs/<name>/{config.json,model.safetensors}   one tokenizer each, named as in modalities.py
    head/{config.json,model.safetensors}        the search head; may be absent

Weights are safetensors only. The encoder hash covers transformer and codecs, the head hash the
head: a changed head leaves the stored encoder vectors valid, anything else does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.modalities import STREAM
from training.search_head import SearchHead, SearchHeadConfig
from training.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from training.tokenizers.scalar import (
    GridTokenizer,
    GridTokenizerConfig,
    ScalarTokenizer,
    ScalarTokenizerConfig,
)
from training.tokenizers.spectrum import SpectrumTokenizer, SpectrumTokenizerConfig
from training.transformer import Transformer
from training.transformer_config import TransformerConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Codec = ImageTokenizer | SpectrumTokenizer | ScalarTokenizer | GridTokenizer
ConfigClass = TypeVar("ConfigClass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A whole encoder in memory, in evaluation mode."""

    transformer: Transformer
    codecs: Mapping[str, Codec]  # codec name -> tokenizer
    head: SearchHead | None
    encoder_hash: str
    head_hash: str  # "" without a head


def save(
    folder: Path,
    *,
    transformer: Transformer,
    codecs: Mapping[str, Codec],
    head: SearchHead | None = None,
    half: bool = False,
) -> None:
    """Write all parts; `half` stores matrices as float16 (vectors and tables stay float32)."""
    for name, codec in codecs.items():
        save_codec(folder, name, codec, half=half)
    if head is not None:
        save_head(folder, head, half=half)
    _write(folder, transformer.config, transformer, half=half)


def save_codec(folder: Path, name: str, codec: Codec, *, half: bool = False) -> None:
    """Write one tokenizer below an artefact folder."""
    _write(folder / "codecs" / name, codec.config, codec, half=half)


def save_head(folder: Path, head: SearchHead, *, half: bool = False) -> None:
    """Write the search head below an artefact folder."""
    _write(folder / "head", head.config, head, half=half)


def load(folder: Path) -> Artifact:
    """Read an artefact.

    Raises:
        ValueError: a file or folder is missing or broken; names the file and what is wrong in it.
    """
    digest = hashlib.sha256()
    config = read_config(TransformerConfig, _read_json(folder / CONFIG), where=folder / CONFIG)
    transformer = Transformer(config)
    _load_weights(transformer, folder, digest, config)
    codecs = load_codecs(folder, tuple(config.domains_in), digest=digest)
    check_vocabularies(config, codecs, where=folder)
    head, head_hash = None, ""
    if (folder / "head").is_dir():
        head_digest = hashlib.sha256()
        head = load_head(folder, digest=head_digest)
        head_hash = head_digest.hexdigest()
        if head.config.dim != config.dim:
            raise ValueError(
                f"{folder / 'head' / CONFIG}: dim is {head.config.dim}, the encoder's {config.dim}"
            )
    return Artifact(
        transformer=transformer.eval().requires_grad_(False),
        codecs=codecs,
        head=head,
        encoder_hash=digest.hexdigest(),
        head_hash=head_hash,
    )


def load_codec(folder: Path, name: str, *, key: str, digest: hashlib._Hash | None = None) -> Codec:
    """Read the tokenizer of one token stream; ValueError as `load`."""
    part = folder / "codecs" / name
    if not part.is_dir():
        raise ValueError(f"{folder}: no folder codecs/{name}, needed for the stream {key}")
    values, where = _read_json(part / CONFIG), part / CONFIG
    codec: Codec
    match STREAM[key].kind:
        case "image":
            codec = ImageTokenizer(read_config(ImageTokenizerConfig, values, where=where))
        case "spectrum":
            codec = SpectrumTokenizer(read_config(SpectrumTokenizerConfig, values, where=where))
        case "scalar":
            codec = ScalarTokenizer(read_config(ScalarTokenizerConfig, values, where=where))
        case "grid":
            codec = GridTokenizer(read_config(GridTokenizerConfig, values, where=where))
        case kind:
            raise ValueError(f"{folder / CONFIG}: no tokenizer for {key}, a stream of kind {kind}")
    _load_weights(codec, part, digest or hashlib.sha256(), codec.config)
    return codec.eval().requires_grad_(False)


def load_codecs(
    folder: Path, keys: tuple[str, ...], *, digest: hashlib._Hash | None = None
) -> dict[str, Codec]:
    """Read the tokenizers of some streams, by codec name; ValueError as `load`."""
    codecs: dict[str, Codec] = {}
    for key in keys:
        name = STREAM[key].codec
        if name not in codecs:
            codecs[name] = load_codec(folder, name, key=key, digest=digest)
    return codecs


def check_vocabularies(
    config: TransformerConfig, codecs: Mapping[str, Codec], *, where: Path
) -> None:
    """Raise ValueError unless every stream has the codes and the tokens that its codec makes."""
    for key, domain in config.domains_in.items():
        codec = codecs[STREAM[key].codec]
        if (codec.num_codes, codec.num_tokens) != (domain.vocabulary, domain.num_tokens):
            raise ValueError(
                f"{where}: {key} has {domain.vocabulary} codes and {domain.num_tokens} tokens in "
                f"the transformer, {codec.num_codes} and {codec.num_tokens} in its codec"
            )


def load_head(folder: Path, *, digest: hashlib._Hash | None = None) -> SearchHead:
    """Read the search head of an artefact; ValueError as `load`."""
    part = folder / "head"
    config = read_config(SearchHeadConfig, _read_json(part / CONFIG), where=part / CONFIG)
    head = SearchHead(config)
    _load_weights(head, part, digest or hashlib.sha256(), config)
    return head.eval().requires_grad_(False)


def read_config(cls: type[ConfigClass], values: object, *, where: Path) -> ConfigClass:
    """Make a configuration of checked values; a wrong or unknown key is named with its file."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table of settings, got {type(values).__name__}")
    known = set(getattr(cls, "__dataclass_fields__", {}))
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}, expected one of {', '.join(sorted(known))}"
        )
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ValueError(f"{where}: {key}: {first['msg']}") from error


def dump_config(config: object) -> dict[str, Any]:
    """The settings as JSON values; `read_config` of them gives an equal configuration."""
    dumped = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dict(dumped)


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    os.replace(partial, file)


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata)
    os.replace(partial, file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file; ValueError names a file that is missing, cut short or foreign."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def _write(folder: Path, config: object, module: nn.Module, *, half: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, seen = {}, set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in seen:
            continue  # one tensor with two names (a modality vector) is stored once
        seen.add(tensor.data_ptr())
        halved = half and tensor.is_floating_point() and tensor.ndim > 1
        tensors[name] = tensor.half() if halved else tensor
    write_tensors(folder / WEIGHTS, tensors)
    write_text(folder / CONFIG, json.dumps(dump_config(config), indent=2) + "\n")


def _read_json(file: Path) -> object:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error


def _load_weights(module: nn.Module, folder: Path, digest: hashlib._Hash, config: object) -> None:
    """Fill a module from its file and add configuration and file content to the digest."""
    file = folder / WEIGHTS
    tensors = read_tensors(file)
    digest.update(json.dumps(dump_config(config), sort_keys=True).encode())
    digest.update(hashlib.sha256(file.read_bytes()).digest())
    targets = module.state_dict(keep_vars=True)
    storage = {name: target.data_ptr() for name, target in targets.items()}
    filled = {storage[name] for name in tensors if name in storage}
    unknown = sorted(set(tensors) - set(targets))
    optional = {"grid_angstrom"}  # older artefacts state it in the configuration alone
    missing = sorted(name for name in set(targets) - optional if storage[name] not in filled)
    if unknown or missing:
        what = f"unexpected tensor {unknown[0]!r}" if unknown else f"no tensor {missing[0]!r}"
        raise ValueError(f"{file}: {what}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != targets[name].shape:
                raise ValueError(
                    f"{file}: {name} has shape {tuple(tensor.shape)}, "
                    f"its configuration asks for {tuple(targets[name].shape)}"
                )
            targets[name].copy_(tensor)
