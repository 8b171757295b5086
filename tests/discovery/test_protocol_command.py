"""`skykin evaluate FILES --protocol`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from discovery.commands import commands
from tests.training.mmu_files import spectra, write_hdf5
from tests.training.small_encoder import save_encoder

NUM = 12


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp("protocol")
    columns = spectra(NUM, num_pixels=100, zwarn="ZWARN") | {"ZWARN": np.zeros(NUM, int)}
    file = write_hdf5(folder / "desi" / "edr_sv3" / "healpix=1" / "001-of-001.hdf5", columns)
    encoder = save_encoder(folder / "encoder")
    return [
        *("evaluate", file, "--protocol", "redshift", "--probe", "linear", "--splits", "2"),
        *("--modalities", "spectrum", "--encoder", encoder),
    ]


def test_json_is_one_document_and_nothing_else(arguments: list[str | Path]) -> None:
    done = call(*arguments, "--seed", "3", "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["encoder"] == str(arguments[-1])
    assert (document["objects"], document["test"]) == (NUM, 3)
    assert (document["seed"], document["splits"], document["probe"]) == (3, 2, "linear")
    assert set(document["scores"]["redshift"]) == {
        "r2", "spread", "chance", "objects", "published",
    }  # fmt: skip
    assert json.loads(call(*arguments, "--seed", "3", "--json").stdout) == document


def test_a_table_and_a_closing_line_are_printed(arguments: list[str | Path]) -> None:
    done = call(*arguments, "--modalities", "spectrum")
    last = done.stdout.splitlines()[-1]
    assert last.startswith("redshift from spectrum by ")
    assert last.endswith(f"{NUM} objects, 3 of them the test, 2 splits")
    assert "chance" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "labels.csv"], "--labels has a meaning only where a sky is measured"),
        (["--modalities", "spectrum,sound"], "unknown modality 'sound'"),
        (["--protocol", "colour"], "unknown protocol 'colour'"),
        (["--probe", "forest"], "unknown probe 'forest'"),
    ],
)
def test_bad_words_are_refused(arguments: list[str | Path], flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*arguments, *flags)


def test_files_need_a_protocol_and_a_sky_takes_none_of_its_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--labels and --label, files need --protocol"):
        call("evaluate", tmp_path)
    with pytest.raises(ValueError, match="--seed has a meaning only where --protocol is given"):
        call("evaluate", tmp_path, "--labels", "a.csv", "--label", "ring", "--seed", "0")
