"""The encoder on disk: what is saved comes back, and what is broken is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.small_encoder import make_parts, save_encoder
from training import artifact
from training.search_head import SearchHead, SearchHeadConfig


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    transformer, codecs, head = make_parts()
    artifact.save(tmp_path, transformer=transformer, codecs=codecs, head=head)

    back = artifact.load(tmp_path)

    assert back.transformer.config == transformer.config
    assert back.codecs.keys() == codecs.keys()
    assert back.head is not None
    pairs = [(transformer, back.transformer), (head, back.head)]
    pairs += [(codecs[name], back.codecs[name]) for name in codecs]
    for before, after in pairs:
        assert before.config == after.config
        state = after.state_dict()
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, state[name]), name
    assert not back.transformer.training
    assert not any(tensor.requires_grad for tensor in back.transformer.parameters())


def test_layout_is_that_of_the_release(encoder_folder: Path) -> None:
    files = {str(file.relative_to(encoder_folder)) for file in encoder_folder.rglob("*.*")}
    parts = [".", "head"] + [
        f"codecs/{name}" for name in ("image", "spectrum", "Z", "FLUX_G", "FLUX_R", "SHAPE_R")
    ]

    assert files == {
        str(Path(part, name)) for part in parts for name in ("config.json", "model.safetensors")
    }
    config = json.loads((encoder_folder / "config.json").read_text())
    assert config["domains_in"] == config["domains_out"]
    assert config["domains"]["tok_image"] == {"vocabulary": 1000, "grid": [12, 12]}


def test_shared_modality_vectors_are_stored_once_and_tied_again(encoder_folder: Path) -> None:
    stored = load_file(encoder_folder / "model.safetensors")
    model = artifact.load(encoder_folder).transformer

    assert sum(name.endswith("tok_image.mod_emb") for name in stored) == 1
    assert (
        model.encoder_embeddings["tok_image"].mod_emb
        is model.decoder_embeddings["tok_image"].mod_emb
    )


def test_half_precision_halves_the_file_and_keeps_values_close(tmp_path: Path) -> None:
    whole, half = save_encoder(tmp_path / "a"), save_encoder(tmp_path / "b", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    before, after = (artifact.load(folder).transformer.state_dict() for folder in (whole, half))

    assert sizes[1] < 0.6 * sizes[0]
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-6)
    table = load_file(half / "codecs" / "FLUX_G" / "model.safetensors")
    assert {tensor.dtype for tensor in table.values()} == {torch.float32}  # quantiles stay exact


def test_hashes_tell_encoder_and_head_apart(tmp_path: Path) -> None:
    first, again = save_encoder(tmp_path / "a"), save_encoder(tmp_path / "b")
    base = artifact.load(first)
    same = artifact.load(again)

    head = make_parts(seed=5)[2]
    artifact.save_head(again, head)
    other_head = artifact.load(again)
    codec = make_parts(seed=5)[1]["spectrum"]
    artifact.save_codec(again, "spectrum", codec)
    other_codec = artifact.load(again)
    shutil.rmtree(first / "head")
    headless = artifact.load(first)

    assert (base.encoder_hash, base.head_hash) == (same.encoder_hash, same.head_hash)
    assert other_head.encoder_hash == base.encoder_hash
    assert other_head.head_hash != base.head_hash
    assert other_codec.encoder_hash != base.encoder_hash
    assert (headless.encoder_hash, headless.head, headless.head_hash) == (
        base.encoder_hash,
        None,
        "",
    )


def test_changed_configuration_changes_the_hash(tmp_path: Path) -> None:
    before = artifact.load(save_encoder(tmp_path)).encoder_hash
    _edit(tmp_path / "config.json", {"pooling": "context"})

    assert artifact.load(tmp_path).encoder_hash != before


def _edit(file: Path, change: dict[str, object]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _retensor(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def _widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["mask_token"] = torch.zeros(1, 1, 7)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no codec": (
        lambda f: shutil.rmtree(f / "codecs" / "SHAPE_R"),
        "no folder codecs/SHAPE_R, needed for the stream tok_shape_r",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"model\.safetensors: no such file",
    ),
    "unknown key": (
        lambda f: _edit(f / "config.json", {"depth": 3}),
        r"config\.json: unknown key 'depth', expected one of act_layer",
    ),
    "wrong value": (
        lambda f: _edit(f / "config.json", {"dim": -1}),
        r"config\.json: dim: Input should be greater than 0",
    ),
    "too deep": (
        lambda f: _edit(f / "config.json", {"decoder_depth": 10**4}),
        r"config\.json: nothing can be built of these sizes \(more than [\d,]* layers",
    ),
    "unknown codec key": (
        lambda f: _edit(f / "codecs" / "image" / "config.json", {"width": 3}),
        r"codecs/image/config\.json: unknown key 'width'",
    ),
    "unknown stream": (
        lambda f: _edit(f / "config.json", {"domains_in": ["tok_x"], "domains": {}}),
        r"config\.json: .*unknown token stream 'tok_x'",
    ),
    "not json": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"expected a table of settings"),
    "cut short": (
        lambda f: _cut(f / "codecs" / "spectrum" / "model.safetensors"),
        r"codecs/spectrum/model\.safetensors: damaged or cut short",
    ),
    "wrong shape": (
        lambda f: _retensor(f / "model.safetensors", _widen),
        r"mask_token has shape \(1, 1, 7\), its configuration asks for \(1, 1, 32\)",
    ),
    "missing tensor": (
        lambda f: _retensor(f / "model.safetensors", lambda t: t.__delitem__("mask_token")),
        r"model\.safetensors: no tensor 'mask_token'",
    ),
    "foreign tensor": (
        lambda f: _retensor(f / "model.safetensors", lambda t: t.update(x=torch.zeros(1))),
        r"model\.safetensors: unexpected tensor 'x'",
    ),
    "another vocabulary": (
        lambda f: _edit(
            f / "codecs" / "image" / "config.json", {"quantizer_levels": [4, 4], "embedding_dim": 2}
        ),
        r"codecs/image/model\.safetensors: .* has shape",
    ),
    "head of another size": (
        lambda f: artifact.save_head(f, SearchHead(SearchHeadConfig(views=("image",), dim=16))),
        r"head/config\.json: dim is 16, the encoder's 32",
    ),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_artefact_is_named(tmp_path: Path, what: str) -> None:
    damage, message = BREAKAGES[what]
    damage(save_encoder(tmp_path))

    with pytest.raises(ValueError, match=message):
        artifact.load(tmp_path)


def test_codec_with_other_codes_than_the_transformer_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    transformer, _, _ = make_parts()
    domains = dict(transformer.config.domains_in)
    config["domains"]["tok_z"]["vocabulary"] = 66
    (tmp_path / "config.json").write_text(json.dumps(config))
    _retensor(
        tmp_path / "model.safetensors",
        lambda t: t.update(
            {
                name: torch.zeros(66, 32)
                for name in t
                if "tok_z" in name and t[name].shape == (domains["tok_z"].vocabulary, 32)
            }
        ),
    )

    with pytest.raises(ValueError, match="tok_z has 66 codes and 1 tokens in the transformer, 64"):
        artifact.load(tmp_path)
