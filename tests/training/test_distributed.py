"""Many processes: the loss curve of one, whatever the weights are spread over."""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from tests.training.distributed_run import FIFTY, run, train
from tests.training.token_data import write_set
from training import checkpoint
from training.curves import CURVE
from training.pretraining_config import Strategy
from training.tensor_file import read_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and the run of one process on them."""
    folder = tmp_path_factory.mktemp("distributed")
    write_set(folder / "tokens")
    train(folder, "one", FIFTY)
    return folder


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def start_two(folder: Path, out: str, strategy: Strategy) -> None:
    arguments = (2, free_port(), folder, out, strategy)
    start_processes(run, args=arguments, nprocs=2)  # type: ignore[no-untyped-call]


def losses(folder: Path) -> list[float]:
    with (folder / CURVE).open() as stream:
        return [float(line["loss"]) for line in csv.DictReader(stream) if line["split"] == "train"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_curve_of_one(folder: Path, strategy: Strategy) -> None:
    start_two(folder, strategy, strategy)
    expected, found = losses(folder / "one"), losses(folder / strategy)

    assert len(expected) == 50
    assert expected[-1] < 0.97 * expected[0]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_checkpoint_of_one_process_is_taken_up_by_two(folder: Path, strategy: Strategy) -> None:
    out = f"{strategy}_resumed"
    train(folder, out, FIFTY)
    newest = checkpoint.found(folder / out)[-1]
    (newest / checkpoint.STATE).unlink()
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()  # the one of step 50: goes on from 25
    start_two(folder, out, strategy)

    assert losses(folder / out) == pytest.approx(losses(folder / "one"), rel=1e-4)
    one, two = (
        read_tensors(checkpoint.found(folder / name)[-1] / checkpoint.WEIGHTS)
        for name in ("one", out)
    )
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert two[name].shape == tensor.shape  # whole, not a process's part
        torch.testing.assert_close(two[name], tensor, rtol=0.02, atol=2e-4)


def test_torchrun_starts_the_processes(folder: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--master-port", str(free_port()), "-m", "tests.training.distributed_run",
            str(folder), "torchrun",
        ],
        cwd=root, check=True, capture_output=True,
    )  # fmt: skip

    assert losses(folder / "torchrun") == pytest.approx(losses(folder / "one"), rel=1e-4)
