"""Artefacts as the reference saves them: read, written again, and read by the reference."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from tests.training.hub_server import HubServer, serving, use
from tests.training.small_encoder import save_encoder
from training import artifact
from training.modalities import STREAM
from training.transformer import Transformer
from training.transformer_config import Domain, TransformerConfig

aion = pytest.importorskip("aion")

TABLE = {"codebook_size": 1024, "reservoir_size": 2000}
SPECTRUM: dict[str, Any] = {
    "encoder_depths": [1, 1, 1, 1], "encoder_dims": [4, 4, 8, 8], "latent_channels": 8,
    "decoder_depths": [1, 1, 1, 1], "decoder_dims": [8, 4, 4, 2], "embedding_dim": 10,
}  # fmt: skip
# Stream -> reference classes of modality and codec, small settings with the released vocabulary.
CODECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tok_image": (
        "LegacySurveyImage", "ImageCodec",
        {"quantizer_levels": [7, 5, 5, 5, 5], "hidden_dims": 16, "multisurvey_projection_dims": 6,
         "num_consecutive": 1},
    ),
    "tok_spectrum_desi": ("DESISpectrum", "SpectrumCodec", SPECTRUM),
    "tok_z": ("Z", "GridScalarCodec", {"modality": "Z", "codebook_size": 1024}),
    "tok_ebv": ("LegacySurveyEBV", "ScalarCodec", {"modality": "EBV"} | TABLE),
    "tok_flux_g": ("LegacySurveyFluxG", "LogScalarCodec", {"modality": "FLUX_G"} | TABLE),
    "tok_xp_bp": (
        "GaiaXpBp", "MultiScalarCodec",
        {"modality": "bp_coefficients", "num_quantizers": 55, "compression_fns": ["arcsinh"] * 2,
         "decompression_fns": ["sinh"] * 2} | TABLE,
    ),
    "tok_segmap": (
        "LegacySurveySegmentationMap", "ScalarFieldCodec",
        {"encoder_output_dim": 8, "embedding_dim": 4, "res_hidden_dims": 4},
    ),
}  # fmt: skip
KEYS = ("tok_image_hsc", "tok_spectrum_sdss", *CODECS)  # the first two share codecs
SETTINGS: dict[str, Any] = {
    "domains_in": sorted(KEYS), "domains_out": sorted(KEYS), "dim": 16, "num_heads": 2,
    "encoder_depth": 1, "decoder_depth": 1, "act_layer": "SiLU", "gated_mlp": True,
    "qk_norm": True, "qkv_bias": False, "proj_bias": False, "mlp_bias": False, "norm_bias": False,
}  # fmt: skip


def reference_classes(key: str) -> tuple[Any, Any]:
    """Modality and codec of the reference."""
    seen, codec, _ = CODECS[key]
    return (
        getattr(importlib.import_module("aion.modalities"), seen),
        getattr(importlib.import_module("aion.codecs"), codec),
    )


def randomise(module: nn.Module) -> None:
    """Fresh weights and fresh saved tables: none is what a constructor would make."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] in ("_index_to_val", "_reservoir", "buckets"):
            buffer.copy_(torch.randn_like(buffer).sort().values)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AION-1 with seven codecs, as the reference saves it; read only."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    model = aion.AION(SETTINGS)
    randomise(model)
    model.save_pretrained(folder)
    for key, (_, _, settings) in CODECS.items():
        seen, codec = reference_classes(key)
        made = codec(**settings)
        randomise(made)
        made.save_pretrained(folder, modality=seen)
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """The published artefact, to be damaged."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def tensor_files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*.safetensors"))


def test_what_the_reference_saved_is_written_again_bit_for_bit(
    published: Path, tmp_path: Path
) -> None:
    read = artifact.load(published)
    artifact.save(tmp_path, transformer=read.transformer, codecs=read.codecs)

    assert tensor_files(tmp_path) == tensor_files(published)
    for file in tensor_files(published):
        before, after = load_file(published / file), load_file(tmp_path / file)
        assert before.keys() == after.keys(), file
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype, name
            assert torch.equal(tensor, after[name]), name


def test_the_reference_reads_what_is_written_here(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "written"
    read = artifact.load(published)
    artifact.save(written, transformer=read.transformer, codecs=read.codecs)

    before = aion.AION.from_pretrained(published).state_dict()
    after = aion.AION.from_pretrained(written).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # the reference looks for codecs on the Hub alone, never in a folder
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(HubServer({"someone/written": written})) as server:
        use(server.endpoint, monkeypatch)
        for key in CODECS:
            seen, codec = reference_classes(key)
            loaded = codec.from_pretrained(
                "someone/written", modality=seen, cache_dir=tmp_path / "cache"
            ).state_dict()
            stored = load_file(published / "codecs" / seen.name / "model.safetensors")
            assert stored.keys() <= loaded.keys()
            assert all(torch.equal(tensor, loaded[name]) for name, tensor in stored.items()), key


def test_weights_in_memory_are_those_of_the_file(published: Path) -> None:
    stored = load_file(published / "model.safetensors")
    model = artifact.load(published).transformer.state_dict()

    assert stored.keys() <= model.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in stored.items())
    assert not any(tensor.is_meta for tensor in model.values())


def test_encoder_hash_is_that_of_the_files(published: Path) -> None:
    files = ["config.json", "model.safetensors"]
    files += [f"codecs/{STREAM[key].codec}/{file}" for key in CODECS for file in files[:2]]
    lines = [f"{f} {hashlib.sha256((published / f).read_bytes()).hexdigest()}\n" for f in files]

    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    assert artifact.load(published).encoder_hash == expected


def test_files_that_are_not_of_the_encoder_do_not_touch_its_hash(copy: Path) -> None:
    before = artifact.load(copy).encoder_hash
    (copy / "README.md").write_text("words")
    shutil.copytree(copy / "codecs" / "EBV", copy / "codecs" / "a_g")

    assert artifact.load(copy).encoder_hash == before


def shard(folder: Path) -> Path:
    """Cut the weights in two, as large models are published."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    where = {name: files[number % 2] for number, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards_hold_the_same_model(published: Path, copy: Path) -> None:
    shard(copy)
    one, two = artifact.load(published), artifact.load(copy)

    state = two.transformer.state_dict()
    for name, tensor in one.transformer.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert one.encoder_hash != two.encoder_hash  # other files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask_token": "../model.safetensors"},
            r"index\.json: weight_map: mask_token: expected a",
        ),
        ({"mask_token": "pytorch_model.bin"}, r"expected a \.safetensors file beside the index"),
        ({"more": "model-00001-of-00002.safetensors"}, "does not hold 'more'"),
        ({"more": "model-00003-of-00002.safetensors"}, r"model-00003-of-00002.*no such file"),
    ],
)
def test_wrong_index_of_shards_is_named(copy: Path, change: dict[str, str], message: str) -> None:
    index = shard(copy)
    values = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": values["weight_map"] | change}))

    with pytest.raises(ValueError, match=message):
        artifact.load(copy)


def test_modality_vectors_stored_twice_are_tied_and_must_agree(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("mod_emb")]:
        side, rest = name.split(".", 1)
        other = "encoder" if side.startswith("decoder") else "decoder"
        tensors[f"{other}_embeddings.{rest}"] = tensors[name].clone()
    save_file(tensors, file)
    model = artifact.load(copy).transformer
    for key in KEYS:
        assert model.encoder_embeddings[key].mod_emb is model.decoder_embeddings[key].mod_emb

    tensors["encoder_embeddings.tok_z.mod_emb"] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"tok_z\.mod_emb differs from the tensor that it should"):
        artifact.load(copy)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensor(file: Path, name: str, value: torch.Tensor) -> None:
    save_file(load_file(file) | {name: value}, file)


def make_bert(folder: Path) -> None:
    """A checkpoint of another architecture under the settings of this one."""
    weight = torch.zeros(3, 3)
    save_file(
        {"bert.encoder.layer.0.attention.self.query.weight": weight}, folder / artifact.WEIGHTS
    )


DAMAGES: dict[str, tuple[Any, str]] = {
    "settings of another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}'),
        r"config\.json: unknown key 'hidden_size'",
    ),
    "the later line of AION": (
        lambda f: edit(f / "config.json", data_dim=5, patch_size=8),
        r"config\.json: unknown key 'data_dim'",
    ),
    "weights of another model": (
        make_bert,
        r"model\.safetensors: a checkpoint of another architecture: it holds 'bert\.encoder",
    ),
    "absurd size": (
        lambda f: edit(f / "config.json", dim=2**50, num_heads=1),
        r"config\.json: nothing can be built of these sizes",
    ),
    "other depth": (
        lambda f: edit(f / "config.json", encoder_depth=2),
        r"model\.safetensors: no tensor 'encoder\.1\.",
    ),
    "codec of another kind": (
        lambda f: shutil.copy(f / "codecs/image/config.json", f / "codecs/EBV/config.json"),
        r"codecs/EBV/config\.json: (unknown key|no key)",
    ),
    "codec weights of another kind": (
        lambda f: shutil.copy(
            f / "codecs/image/model.safetensors", f / "codecs/EBV/model.safetensors"
        ),
        r"codecs/EBV/model\.safetensors: unexpected tensor",
    ),
    "weight not finite": (
        lambda f: change_tensor(
            f / "model.safetensors", "mask_token", torch.full((1, 1, 16), torch.nan)
        ),
        r"model\.safetensors: mask_token holds values that are not finite",
    ),
    "whole numbers": (
        lambda f: change_tensor(
            f / "model.safetensors", "mask_token", torch.zeros(1, 1, 16, dtype=torch.int32)
        ),
        r"mask_token is torch\.int32, expected torch\.float32 or torch\.float16",
    ),
    "a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95garbage."),
        r"model\.safetensors: not a whole safetensors file",
    ),
    "empty": (
        lambda f: (f / "codecs/Z/model.safetensors").write_bytes(b""),
        r"codecs/Z/model\.safetensors: not a whole safetensors file",
    ),
    "a stream without its codec": (
        lambda f: shutil.rmtree(f / "codecs/EBV"),
        r"no folder codecs/EBV, needed for the stream tok_ebv",
    ),
    "a stream without its tensors": (
        lambda f: edit(f / "config.json", domains_in=[*sorted(KEYS), "catalog"]),
        r"model\.safetensors: no tensor '.*catalog",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named(copy: Path, what: str) -> None:
    damage, message = DAMAGES[what]
    damage(copy)

    with pytest.raises(ValueError, match=message):
        artifact.load(copy)


def test_reservoirs_may_hold_what_is_not_a_number(copy: Path) -> None:
    file = copy / "codecs" / "EBV" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("_reservoir"))
    tensors[name][-5:] = torch.nan
    save_file(tensors, file)

    assert "EBV" in artifact.load(copy).codecs


@pytest.mark.parametrize("checksums", [True, False], ids=["with checksums", "without"])
def test_no_flipped_bit_crashes_and_with_checksums_none_passes(
    tmp_path: Path, checksums: bool
) -> None:
    folder = save_encoder(tmp_path)
    files = [tmp_path / "codecs" / "FLUX_G" / artifact.WEIGHTS, tmp_path / "codecs/Z/config.json"]
    if not checksums:
        save_file(load_file(files[0]), files[0])
    generator = torch.Generator().manual_seed(11)

    for file in files:
        whole = file.read_bytes()
        for _ in range(80):
            spoilt = bytearray(whole)
            place = int(torch.randint(len(whole), (), generator=generator))
            spoilt[place] ^= 1 << int(torch.randint(8, (), generator=generator))
            file.write_bytes(spoilt)
            said = what_is_said(folder, file.parent.name)
            assert said is None or str(file.parent) in said
            if checksums and said is None and file.suffix == ".safetensors":
                assert place < 40  # in the name of the checksum, which is then not looked for
        file.write_bytes(whole)


def what_is_said(folder: Path, name: str) -> str | None:
    """Of a codec that cannot be read; None of one that can."""
    try:
        artifact.load_codec(folder, name, key={"FLUX_G": "tok_flux_g", "Z": "tok_z"}[name])
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_loading_takes_no_second_copy_in_memory(tmp_path: Path) -> None:
    domains = {"tok_image": Domain(vocabulary=200_000, grid=(12, 12))}
    config = TransformerConfig(domains_in=domains, dim=64, encoder_depth=1, num_heads=2)
    artifact.save(tmp_path, transformer=Transformer(config), codecs={})
    size = (tmp_path / artifact.WEIGHTS).stat().st_size
    before = own_memory_bytes()

    read: artifact.Read = {}
    model = artifact.load_transformer(tmp_path, read)

    assert size > 100e6
    assert sum(tensor.numel() for tensor in model.parameters()) > 25e6
    assert own_memory_bytes() - before < size / 10


def own_memory_bytes() -> int:
    """Memory of this process that no file lies behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
