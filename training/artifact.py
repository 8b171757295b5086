"""The encoder on disk, in the layout of the released AION-1 and a folder for the search head.

    config.json  model.safetensors              the transformer
    codecs/<name>/{config.json,model.safetensors}   one tokenizer each, named as in modalities.py
    pooling/{config.json,model.safetensors}     what vectors have beside means; may be absent
    head/{config.json,model.safetensors}        the search head; may be absent

Keys and tensor names are the release's; a model that differs from every released one adds keys.
Weights are safetensors only. The encoder hash covers the bytes of transformer, codecs and pooling,
the head hash those of the head: a changed head leaves the stored encoder vectors valid, anything
else does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from training import hub, transformer_config
from training.image_latents import num_features
from training.modalities import STREAM
from training.pooling import Pooling, PoolingConfig
from training.search_head import SearchHead, SearchHeadConfig
from training.settings import validated
from training.tensor_file import checked_sha256, files_of, read_tensors, write_tensors
from training.tokenizers import released
from training.tokenizers.image import ImageTokenizer
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig
from training.weights import built, filled, stored_state

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Codec = released.Codec
ConfigClass = TypeVar("ConfigClass")
Read = dict[str, str]  # what was read: path in the artefact -> sha256 of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A whole encoder in memory, in evaluation mode."""

    transformer: Transformer
    codecs: Mapping[str, Codec]  # codec name -> tokenizer
    head: SearchHead | None
    encoder_hash: str
    head_hash: str  # "" without a head
    pooling: Pooling | None = None  # None = the mean over tokens

    @property
    def carries_light(self) -> bool:
        """Whether vectors have the light in a fibre."""
        return self.pooling is not None and self.pooling.config.light

    @property
    def num_latents(self) -> int:
        """How many numbers at the end of a vector the image tokenizer gives."""
        return 0 if self.pooling is None else self.pooling.config.latents

    @property
    def vector_dim(self) -> int:
        """Length of a vector."""
        config = self.transformer.config
        return config.dim if self.pooling is None else self.pooling.config.vector_dim


def save(
    folder: Path,
    *,
    transformer: Transformer,
    codecs: Mapping[str, Codec],
    head: SearchHead | None = None,
    pooling: Pooling | None = None,
    half: bool = False,
) -> None:
    """Write all parts; `half` stores matrices as float16 (vectors and tables stay float32)."""
    for name, codec in codecs.items():
        save_codec(folder, name, codec, half=half)
    if head is not None:
        save_head(folder, head, half=half)
    if pooling is not None:
        save_pooling(folder, pooling, half=half)
    values = transformer_config.released_values(transformer.config)
    tensors, aliases = stored_state(transformer, half=half)
    _write(folder, values, tensors, aliases=aliases)


def save_codec(folder: Path, name: str, codec: Codec, *, half: bool = False) -> None:
    """Write one tokenizer below an artefact folder."""
    tensors, _ = stored_state(codec, half=half)
    tensors = released.to_released(tensors, codec.config)
    _write(folder / "codecs" / name, released.released_values(name, codec.config), tensors)


def save_head(folder: Path, head: SearchHead, *, half: bool = False) -> None:
    """Write the search head below an artefact folder."""
    tensors, _ = stored_state(head, half=half)
    _write(folder / "head", dump_config(head.config), tensors)


def save_pooling(folder: Path, pooling: Pooling, *, half: bool = False) -> None:
    """Write what vectors have beside means below an artefact folder."""
    tensors, _ = stored_state(pooling, half=half)
    _write(folder / "pooling", dump_config(pooling.config), tensors)


def load(source: Path | str, *, dtype: torch.dtype = torch.float32) -> Artifact:
    """Read an artefact.

    Weights are used where they lie in the mapped file, so that memory holds one copy of them.

    Args:
        source: A folder; or, as a text that names none, a repository of the Hub (hub.fetch).
        dtype: Of the transformer's weights in memory; tokenizers are float32.

    Raises:
        ValueError: a file or folder is missing, damaged or of something else; names the file and
            what is wrong in it. A repository that cannot be had: as hub.fetch.
    """
    folder = folder_of(source)
    read: Read = {}
    transformer = load_transformer(folder, read, dtype=dtype)
    codecs = load_codecs(folder, tuple(transformer.config.domains_in), read=read)
    check_vocabularies(transformer.config, codecs, where=folder)
    pooling = load_pooling(folder, read=read) if (folder / "pooling").is_dir() else None
    if pooling is not None and pooling.config.dim != transformer.config.dim:
        raise ValueError(
            f"{folder / 'pooling' / CONFIG}: dim is {pooling.config.dim}, the encoder's "
            f"{transformer.config.dim}"
        )
    if pooling is not None and pooling.config.latents:
        _check_latents(pooling.config, codecs, where=folder / "pooling" / CONFIG)
    head, head_hash = None, ""
    if (folder / "head").is_dir():
        head_read: Read = {}
        head = load_head(folder, read=head_read)
        head_hash = hash_of(head_read)
        dim = transformer.config.dim if pooling is None else pooling.config.vector_dim
        if head.config.dim != dim:
            raise ValueError(
                f"{folder / 'head' / CONFIG}: dim is {head.config.dim}, the encoder's {dim}"
            )
    return Artifact(
        transformer=transformer,
        codecs=codecs,
        head=head,
        encoder_hash=hash_of(read),
        head_hash=head_hash,
        pooling=pooling,
    )


def _check_latents(config: PoolingConfig, codecs: Mapping[str, Codec], *, where: Path) -> None:
    """Raise ValueError unless latents are made of what the image tokenizer gives."""
    tokenizer = codecs.get("image")
    found = num_features(tokenizer) if isinstance(tokenizer, ImageTokenizer) else 0
    if found != config.latent_features:
        raise ValueError(
            f"{where}: latent_features is {config.latent_features}, the image tokenizer gives "
            f"{found}"
        )


def load_codec(folder: Path, name: str, *, key: str, read: Read | None = None) -> Codec:
    """Read the tokenizer of one token stream; ValueError as `load`."""
    part = f"codecs/{name}"
    if not (folder / part).is_dir():
        raise ValueError(f"{folder}: no folder {part}, needed for the stream {key}")
    read = {} if read is None else read
    values, where = _read_json(folder, f"{part}/{CONFIG}", read), folder / part / CONFIG
    tensors = _read_weights(folder, f"{part}/{WEIGHTS}", read)
    with _named(where):
        config = released.codec_config(name, values)
    codec = built(lambda: released.build(config), num_tensors=len(tensors), where=where)
    with _named(folder / part / WEIGHTS):
        tensors = released.from_released(tensors, codec)
    return filled(codec, tensors, where=folder / part / WEIGHTS)


def load_codecs(
    folder: Path, keys: tuple[str, ...], *, read: Read | None = None
) -> dict[str, Codec]:
    """Read the tokenizers of some streams, by codec name; ValueError as `load`."""
    codecs: dict[str, Codec] = {}
    for key in keys:
        name = STREAM[key].codec
        if name not in codecs:
            codecs[name] = load_codec(folder, name, key=key, read=read)
    return codecs


def check_vocabularies(
    config: TransformerConfig, codecs: Mapping[str, Codec], *, where: Path
) -> None:
    """Raise ValueError unless every stream has the codes and the tokens that its codec makes."""
    for key, domain in config.domains_in.items():
        codec = codecs[STREAM[key].codec]
        if not fits(key, domain, codec):
            raise ValueError(
                f"{where}: {key} has {domain.vocabulary} codes and {domain.num_tokens} tokens in "
                f"the transformer, {codec.num_codes} and {codec.num_tokens} in its codec"
            )


def fits(key: str, domain: Domain, codec: Codec) -> bool:
    """Whether a stream of a transformer has the codes and the tokens that a codec makes.

    The released transformers have one code more for the redshift than its grid has steps.
    """
    spare = domain.vocabulary - codec.num_codes
    most = 1 if STREAM[key].kind == "grid" else 0
    return 0 <= spare <= most and codec.num_tokens == domain.num_tokens


def load_head(folder: Path, *, part: str = "head", read: Read | None = None) -> SearchHead:
    """Read the search head of an artefact, or from another part; ValueError as `load`."""
    read = {} if read is None else read
    where = folder / part / CONFIG
    config = read_config(
        SearchHeadConfig, _read_json(folder, f"{part}/{CONFIG}", read), where=where
    )
    tensors = _read_weights(folder, f"{part}/{WEIGHTS}", read)
    head = built(lambda: SearchHead(config), num_tensors=len(tensors), where=where)
    return filled(head, tensors, where=folder / part / WEIGHTS)


def load_pooling(folder: Path, *, read: Read) -> Pooling:
    """Read the pooling of an artefact; ValueError as `load`."""
    where = folder / "pooling" / CONFIG
    values = _read_json(folder, f"pooling/{CONFIG}", read)
    config = read_config(PoolingConfig, values, where=where)
    tensors = _read_weights(folder, f"pooling/{WEIGHTS}", read)
    pooling = built(lambda: Pooling(config), num_tensors=len(tensors), where=where)
    return filled(pooling, tensors, where=folder / "pooling" / WEIGHTS)


def hash_of(read: Read) -> str:
    """One sha256 for files by their path and content, whatever order they were read in."""
    lines = "".join(f"{path} {digest}\n" for path, digest in sorted(read.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


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
        return validated(cls, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def dump_config(config: object) -> dict[str, Any]:
    """The settings as JSON values; `read_config` of them gives an equal configuration."""
    dumped = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dict(dumped)


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    os.replace(partial, file)


def folder_of(source: Path | str) -> Path:
    """The folder of an artefact, fetched from the Hub first where `source` names a repository."""
    own = Path(source)
    if isinstance(source, Path) or own.is_dir() or not hub.is_id(source):
        return own
    return hub.fetch(source)


def load_transformer(
    folder: Path, read: Read, *, dtype: torch.dtype = torch.float32
) -> Transformer:
    """Read the transformer of an artefact; ValueError as `load`."""
    where = folder / CONFIG
    values = _read_json(folder, CONFIG, read)
    tensors = _read_weights(folder, WEIGHTS, read)
    with _named(where):
        config = transformer_config.from_released(transformer_config.infer_qk_norm(values, tensors))
    transformer = built(lambda: Transformer(config), num_tensors=len(tensors), where=where)
    return filled(transformer, tensors, where=folder / WEIGHTS, dtype=dtype)


def _write(
    folder: Path,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    aliases: Mapping[str, str] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, tensors, metadata=aliases)
    write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")


@contextmanager
def _named(where: Path) -> Iterator[None]:
    """Put the file in front of what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_json(folder: Path, path: str, read: Read) -> object:
    file = folder / path
    digest = checked_sha256(file)
    try:
        values: object = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    read[path] = digest
    return values


def _read_weights(folder: Path, path: str, read: Read) -> dict[str, Tensor]:
    for file in files_of(folder / path):
        read[str(file.relative_to(folder))] = checked_sha256(file)
    return read_tensors(folder / path)
