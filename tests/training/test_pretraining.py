"""The masked-modelling loop: it learns what there is to learn, and resumes where it stood."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from tests.training.token_data import DOMAINS, FAST, MASKING, MODEL, shard, write_set
from training import checkpoint
from training.checkpoint import CHECKPOINTS
from training.curves import CURVE, TENSORBOARD, CurveSkipped
from training.kinship import KinshipConfig
from training.not_finite import LossNotFinite
from training.pretraining import pretrain
from training.pretraining_config import Precision, PretrainingConfig
from training.pretraining_report import PretrainingReport, Progress
from training.shards import TokenSet
from training.tensor_file import read_tensors
from training.transformer import Transformer
from training.transformer_config import Domain

VARIES = ("seconds", "tokens_per_second", "mfu", "data_wait")  # from run to run
KILLED = replace(FAST, steps=30, log_steps=1, checkpoint_steps=2, validation_share=0.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[TokenSet]:
    """Two sets of shards on disk."""
    folder = tmp_path_factory.mktemp("tokens")
    other = write_set(folder / "other", "other", shards=1, num=40)
    return [write_set(folder / "one"), replace(other, weight=0.3)]


def train(
    folder: Path, sets: list[TokenSet], config: PretrainingConfig = FAST
) -> tuple[Transformer, PretrainingReport]:
    return pretrain(MODEL, sets, config, folder)


def weights(transformer: Transformer) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in transformer.parameters()])


def curve(folder: Path) -> list[dict[str, str]]:
    """Lines of the curve without what differs from run to run."""
    with (folder / CURVE).open() as stream:
        lines = list(csv.DictReader(stream))
    return [{name: text for name, text in line.items() if name not in VARIES} for line in lines]


@pytest.mark.slow
def test_loss_falls_to_the_entropy_of_what_cannot_be_known(tmp_path: Path) -> None:
    config = PretrainingConfig(
        steps=900, batch_size=32, learning_rate=3e-3, masking=MASKING, precision="float32",
        device="cpu", checkpoint_steps=900, num_threads=1,
    )  # fmt: skip
    _, report = train(tmp_path, [TokenSet(name="one", shards=(shard(1000),))], config)

    assert report.loss["tok_image"] == pytest.approx(math.log(2), abs=0.12)  # the coin
    assert report.loss["tok_z"] < 0.2  # follows from the image
    assert report.loss["tok_flux_g"] > math.log(8) - 0.3  # pure chance
    assert report.perplexity()["tok_image"] == pytest.approx(math.exp(report.loss["tok_image"]))


@pytest.mark.parametrize("kinship", [None, KinshipConfig()], ids=["plain", "kinship"])
def test_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, sets: list[TokenSet], kinship: KinshipConfig | None
) -> None:
    config = replace(FAST, kinship=kinship)
    whole, _ = train(tmp_path / "whole", sets, config)

    def stop(now: Progress) -> None:
        if now.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(MODEL, sets, config, tmp_path / "cut", progress=stop)
    resumed, report = train(tmp_path / "cut", sets, config)

    assert torch.equal(weights(resumed), weights(whole))
    assert report.steps == 20
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_checkpoint_between_two_lines_of_the_curve_keeps_their_mean(
    tmp_path: Path, sets: list[TokenSet]
) -> None:
    config = replace(FAST, log_steps=7, checkpoint_steps=4, steps=16)
    train(tmp_path / "whole", sets, config)

    def stop(now: Progress) -> None:
        if now.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(MODEL, sets, config, tmp_path / "cut", progress=stop)
    train(tmp_path / "cut", sets, config)

    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


RUN = """
import sys
from pathlib import Path
from tests.training.test_pretraining import KILLED, train
from training.shards import TokenSet
folder = Path(sys.argv[1])
sets = [TokenSet.open(folder / "tokens" / name, name=name) for name in ("one", "two")]
train(folder / "out", sets, KILLED)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for_line(file: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        if file.is_file() and f"\n{step}," in file.read_text():
            return
        time.sleep(0.001)


@pytest.mark.parametrize(
    "kills", [(13,), pytest.param((1, 2, 3, 9, 16, 25), marks=pytest.mark.slow)]
)
def test_run_killed_at_any_moment_has_the_curve_of_an_unbroken_one(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    two = [write_set(tmp_path / "tokens" / name, name, shards=2, num=60) for name in ("one", "two")]
    rng = np.random.default_rng()
    for step in kills:
        process = start(tmp_path)
        wait_for_line(tmp_path / "out" / CURVE, step, process)
        time.sleep(rng.uniform(0, 0.02))  # at any moment of a step, or of a checkpoint
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resumed, _ = train(tmp_path / "out", two, KILLED)
    unbroken, _ = train(tmp_path / "whole", two, KILLED)

    assert curve(tmp_path / "out") == curve(tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(unbroken))


def test_curve_and_tensorboard_hold_the_same_numbers(tmp_path: Path, sets: list[TokenSet]) -> None:
    train(tmp_path, sets)
    with (tmp_path / CURVE).open() as stream:
        lines = list(csv.DictReader(stream))

    assert [line["step"] for line in lines if line["split"] == "train"] == ["5", "10", "15", "20"]
    assert {"tok_image", "tok_z", "tok_flux_g", "mfu", "tokens_per_second"} <= set(lines[0])
    expected = {
        (f"train/{name}", int(line["step"])): float(line[name])
        for line in lines
        for name in ("loss", "tok_image", "tok_z")
        if line["split"] == "train"
    }
    found = scalars(next((tmp_path / TENSORBOARD).iterdir()))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert all(0 < float(line["mfu"]) < 1 for line in lines if line["mfu"])
    assert all(0 < float(line["tok_image"]) < 5 for line in lines)


def scalars(file: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard would show: records of a length, a checksum, an event, a checksum."""
    data, at, found = file.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        at += 16 + length
    return found


def test_time_budget_ends_the_run_and_its_cosine(tmp_path: Path, sets: list[TokenSet]) -> None:
    config = replace(FAST, steps=10**9, max_seconds=0.5, checkpoint_steps=10**9)
    _, report = train(tmp_path, sets, config)

    assert 1 <= report.steps < 10**6
    with (tmp_path / CURVE).open() as stream:
        rates = [float(line["learning_rate"] or 0) for line in csv.DictReader(stream)]
    assert rates[-2] < 0.2 * max(rates)  # the last line is of held-out rows


def test_bfloat16_learns_as_float32_does(tmp_path: Path, sets: list[TokenSet]) -> None:
    losses = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        config = replace(FAST, steps=30, checkpoint_steps=30, precision=precision)
        losses.append(train(tmp_path / precision, sets, config)[1].loss["tok_image"])

    assert losses[1] == pytest.approx(losses[0], abs=0.05)


@pytest.mark.parametrize("change", ["micro_batch_size", "checkpoint_activations"])
def test_what_saves_memory_changes_no_loss(
    tmp_path: Path, sets: list[TokenSet], change: str
) -> None:
    values = {"micro_batch_size": 6, "checkpoint_activations": True}
    short = replace(FAST, steps=8)
    changed = replace(short, **{change: values[change]})  # type: ignore[arg-type]
    first, _ = train(tmp_path / "plain", sets, short)
    second, _ = train(tmp_path / "saving", sets, changed)

    torch.testing.assert_close(weights(first), weights(second), rtol=1e-3, atol=2e-5)


COMPILED = """
import json, sys
from dataclasses import replace
from pathlib import Path
from tests.training.token_data import FAST, MODEL
from training.pretraining import pretrain
from training.shards import TokenSet

folder = Path(sys.argv[1])
sets = [TokenSet.open(folder / "one", name="one")]
losses = [
    pretrain(MODEL, sets, replace(FAST, compile=compiled), folder / str(compiled))[1].loss
    for compiled in (False, True)
]
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_compiled_blocks_give_the_same_curve(tmp_path: Path) -> None:
    write_set(tmp_path / "one")
    # In a process of its own: the run-time checks of shapes cannot be compiled.
    ran = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr[-2000:]
    plain, compiled = json.loads(ran.stdout.splitlines()[-1])
    assert set(plain) == set(DOMAINS)
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_last_three_checkpoints_are_kept(tmp_path: Path, sets: list[TokenSet]) -> None:
    train(tmp_path, sets, replace(FAST, checkpoint_steps=4))

    kept = sorted(place.name for place in (tmp_path / CHECKPOINTS).iterdir())
    assert kept == ["step-000000012", "step-000000016", "step-000000020"]


def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, sets: list[TokenSet]
) -> None:
    train(tmp_path, sets)
    other = replace(FAST, learning_rate=1e-3, masking=replace(MASKING, num_target_tokens=5))

    with pytest.raises(
        ValueError,
        match=r"step-000000020 is of a run with other settings: "
        r"training\.learning_rate was 0\.003, is 0\.001; "
        r"training\.masking\.num_target_tokens was 6, is 5\. Go back",
    ):
        train(tmp_path, sets, other)
    with pytest.raises(ValueError, match=r"data\.other was {'rows': 40, .*, is 'absent'"):
        train(tmp_path, sets[:1])


def test_full_disk_stops_no_training(
    tmp_path: Path, sets: list[TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, sets, replace(FAST, steps=4))
    before = checkpoint.found(tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)

    with (
        pytest.warns(CurveSkipped, match=r"no line at step \d+ .*1,000 bytes are free"),
        pytest.warns(checkpoint.CheckpointSkipped, match=r"no checkpoint at step 20 .* are free"),
    ):
        _, report = train(tmp_path / "full", sets, replace(FAST, checkpoint_steps=20))
    state = checkpoint.newest(tmp_path)
    assert state is not None
    with pytest.warns(checkpoint.CheckpointSkipped, match="older checkpoints are kept"):
        assert not checkpoint.write(
            tmp_path, {"weights": {}, "moments": {}}, replace(state[1], step=21)
        )

    assert report.steps == 20
    assert checkpoint.found(tmp_path) == before
    assert not list((tmp_path / "full" / CHECKPOINTS).iterdir())


def test_damaged_checkpoint_is_passed_over(tmp_path: Path, sets: list[TokenSet]) -> None:
    whole, _ = train(tmp_path, sets)
    file = checkpoint.found(tmp_path)[-1] / checkpoint.OPTIMIZER
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)

    with pytest.warns(checkpoint.CheckpointSkipped, match="step-000000020: damaged, passed over"):
        resumed, _ = train(tmp_path, sets)
    assert torch.equal(weights(resumed), weights(whole))


def test_loss_that_is_not_finite_stops_with_its_batch(tmp_path: Path, sets: list[TokenSet]) -> None:
    wild = replace(FAST, learning_rate=1e30, warmup_share=0.0, max_gradient_norm=1e30)

    with pytest.raises(LossNotFinite, match=r"not finite\. The batch is in .*process-0") as error:
        train(tmp_path, sets, wild)
    (file,) = tmp_path.glob("not-finite-*.safetensors")
    saved = read_tensors(file)
    assert str(file) in str(error.value)
    assert saved["0.shown"].shape == (16, 8)
    assert saved["0.origin"].shape == (16, 3)


def test_shards_that_do_not_fit_the_model_are_refused(tmp_path: Path, sets: list[TokenSet]) -> None:
    more = replace(MODEL, domains_in=DOMAINS | {"tok_z": Domain(vocabulary=9, grid=(1, 1))})

    with pytest.raises(ValueError, match="tok_z has 8 codes and 1 tokens in the token shards"):
        pretrain(more, sets, FAST, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("micro_batch_size", 32, "micro_batch_size 32 is more than the batch_size 16"),
        ("batch_size", 0, "greater than 0"),
        ("strategy", "zero", "'ddp' or 'fsdp'"),
    ],
)
def test_settings_that_contradict_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FAST, **{key: value})  # type: ignore[arg-type]
