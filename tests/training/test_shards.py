"""Token shards: what is written comes back, and what is wrong with them is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_encoder import make_parts, observe
from tests.training.token_data import DOMAINS, NUM, shard, write_set
from training.paired_shards import write_pairs
from training.shards import SHARD, TokenSet, TokenShard, concatenate, pack
from training.tokenizing import _Task
from training.transformer_config import Domain


def test_shard_survives_the_disk(tmp_path: Path) -> None:
    before = shard()
    before.write(tmp_path / "00000")

    after = TokenShard.open(tmp_path / "00000")

    assert len(after) == NUM
    assert after.schema == before.schema
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.objects, before.objects)
    for key, codes in before.tokens.items():
        assert isinstance(after.tokens[key], np.memmap)  # not read into memory
        np.testing.assert_array_equal(after.tokens[key], codes)
        np.testing.assert_array_equal(after.lengths[key], before.lengths[key])
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000"]


def test_packed_rows_hold_the_tokens_of_their_observations() -> None:
    transformer, codecs, _ = make_parts()
    seen = [observe(1, spectrum=True, scalars={"tok_flux_g": 3.0}), observe(2)]
    made = pack(seen, codecs, transformer.config.domains_in)

    assert {key: n.tolist() for key, n in made.lengths.items()} == {
        "tok_image": [144, 144],
        "tok_spectrum_sdss": [273, 0],
        "tok_flux_g": [1, 0],
    }
    assert made.ids.tolist() == [b"1", b"2"]
    assert made.objects[0] != made.objects[1]
    assert (made.tokens["tok_spectrum_sdss"][1] == 0).all()
    assert set(made.schema) == set(transformer.config.domains_in)


@pytest.mark.parametrize("name", [SHARD, "tok_image.npy", "lengths.npy", "ids.npy"])
def test_damaged_shard_is_named(tmp_path: Path, name: str) -> None:
    shard(20).write(tmp_path / "00000")
    file = tmp_path / "00000" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(ValueError, match=r"00000: not a whole token shard"):
        TokenShard.open(tmp_path / "00000")


def test_empty_shard_is_refused(tmp_path: Path) -> None:
    shard(20).take(np.empty(0, np.int64)).write(tmp_path / "00000")

    with pytest.raises(ValueError, match="00000: the shard is empty"):
        TokenSet.open(tmp_path, name="one")
    with pytest.raises(ValueError, match="'none' has no token shards"):
        TokenSet.open(tmp_path / "nowhere", name="none")


def test_shards_of_different_kinds_are_not_mixed(tmp_path: Path) -> None:
    write_set(tmp_path, shards=2)
    file = tmp_path / "00001" / SHARD
    text = file.read_text()

    file.write_text(text.replace('"vocabulary": 16', '"vocabulary": 32'))
    with pytest.raises(
        ValueError, match=r"tok_image has 16 codes and 16 tokens in 00000, 32 and 16"
    ):
        TokenSet.open(tmp_path, name="one")
    values = json.loads(text)
    del values["streams"]["tok_z"]
    values["present"].remove("tok_z")
    lengths = np.load(tmp_path / "00001" / "lengths.npy")
    np.save(tmp_path / "00001" / "lengths.npy", lengths[:, [0, 2]])
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="00000 has the stream tok_z, 00001 has not"):
        TokenSet.open(tmp_path, name="one")


def test_vocabulary_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    tokens = write_set(tmp_path)

    tokens.check(DOMAINS)
    with pytest.raises(ValueError, match="tok_z has 8 codes and 1 tokens in the token shards, 9"):
        tokens.check(DOMAINS | {"tok_z": Domain(vocabulary=9, grid=(1, 1))})
    with pytest.raises(ValueError, match="none of the model's streams"):
        tokens.check({"tok_xp_bp": Domain(vocabulary=9, grid=(55, 1))})


def test_pairs_join_the_rows_that_a_match_table_names(tmp_path: Path) -> None:
    left = write_set(tmp_path / "left", "left", shards=2, num=50)
    whole = shard(60, seed=9)
    right_shard = TokenShard(
        tokens={"tok_z": whole.tokens["tok_z"], "tok_image_hsc": whole.tokens["tok_image"]},
        lengths={"tok_z": np.ones(60, np.uint16), "tok_image_hsc": np.full(60, 16, np.uint16)},
        schema={"tok_z": (8, 1), "tok_image_hsc": (16, 16)},
        objects=whole.objects,
        ids=np.array([f"h{row}".encode() for row in range(60)]),
    )
    # two copies of each source, as turned images are
    right = TokenSet(name="right", shards=(concatenate([right_shard, right_shard]),))
    matched = {"3": "h7", "70": "h1", "99": "h59", "1000": "h2"}  # the last is in no shard

    num = write_pairs(
        left, right, list(matched), list(matched.values()), tmp_path / "pairs", pairs_a_shard=2
    )
    pairs = TokenSet.open(tmp_path / "pairs", name="pairs")
    rows = concatenate(pairs.shards)

    assert num == len(pairs) == 3
    assert len(pairs.shards) == 2
    assert set(rows.tokens) == {"tok_image", "tok_z", "tok_flux_g", "tok_image_hsc"}
    together = concatenate(left.shards)
    for row, (one, other) in enumerate([("3", "h7"), ("70", "h1"), ("99", "h59")]):
        place, there = int(one), int(other[1:])
        np.testing.assert_array_equal(
            rows.tokens["tok_image"][row], together.tokens["tok_image"][place]
        )
        np.testing.assert_array_equal(
            rows.tokens["tok_image_hsc"][row], whole.tokens["tok_image"][there]
        )
        own = together.lengths["tok_z"][place] > 0  # the left one where it has a redshift
        expected = together.tokens["tok_z"][place] if own else whole.tokens["tok_z"][there]
        assert rows.tokens["tok_z"][row] == expected
        assert rows.ids[row] == f"{one}+{other}".encode()
        assert rows.objects[row].tolist() == [place, there]
    with pytest.raises(ValueError, match="none of 1 matches joins a row of 'left'"):
        write_pairs(left, right, ["x"], ["y"], tmp_path / "none")


def test_damaged_record_of_a_file_means_that_it_is_tokenized_again(tmp_path: Path) -> None:
    task = _Task(0, tmp_path / "file", "simulated", 1, 0, tmp_path, "now")
    task.record.write_text('{"made_from": "now"}')
    assert task.is_done()

    task.record.write_text('{"made_')
    assert not task.is_done()
