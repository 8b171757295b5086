"""The commands build, nightly, compact, versions, rollback and verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index import disk
from index.commands import commands
from index.errors import GateRefused, NotASky, VersionCorrupt
from tests.index.conftest import write_cutout

runner = CliRunner()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for seed in range(2):
        write_cutout(tmp_path / "files" / f"{seed}.fits", seed)
    (tmp_path / "files" / "text.fits").write_text("hello")
    return tmp_path / "files"


def build(sky: Path, files: Path, encoder: Path, *options: str) -> tuple[str, str]:
    arguments = ["build", str(sky), str(files), "--survey", "legacysurvey"]
    done = runner.invoke(commands, [*arguments, "--encoder", str(encoder), *options])
    assert done.exit_code == 0, done.exception
    return done.stdout, done.stderr


def test_build_says_what_it_made_in_one_line(tmp_path: Path, files: Path, encoder: Path) -> None:
    stdout, stderr = build(tmp_path / "sky", files, encoder)

    assert stdout.count("\n") == 1
    assert f"{tmp_path / 'sky'}: version 1, 2 objects, 4 rows, 2 newly embedded" in stdout
    assert f"skipped {files / 'text.fits'}: " in stderr
    stdout, _ = build(tmp_path / "sky", files, encoder)
    assert "version 1" in stdout
    assert "nothing new" in stdout


def test_build_json_is_one_document(tmp_path: Path, files: Path, encoder: Path) -> None:
    stdout, _ = build(tmp_path / "sky", files, encoder, "--json")
    document = json.loads(stdout)

    assert list(document) == [
        "version", "objects", "rows", "skipped", "seconds", "precision", "centred_cosine", "notes",
    ]  # fmt: skip
    assert (document["precision"], document["centred_cosine"]) == ("float32", None)
    assert (document["version"], document["objects"], document["rows"]) == (1, 2, 4)
    (skipped,) = document["skipped"]
    assert skipped["file"] == str(files / "text.fits")
    assert skipped["reason"]
    assert document["seconds"] > 0


def test_versions_are_listed_rolled_back_and_verified(
    tmp_path: Path, files: Path, encoder: Path
) -> None:
    sky = tmp_path / "sky"
    build(sky, files, encoder)
    write_cutout(files / "2.fits", 2)
    build(sky, files, encoder)

    done = runner.invoke(commands, ["rollback", str(sky)])
    assert done.stdout == f"{sky}: published version 1\n"
    lines = runner.invoke(commands, ["versions", str(sky)]).stdout.splitlines()
    assert [line[:6] for line in lines[:2]] == ["*    1", "     2"]
    assert lines[2] == f"{sky}: 2 versions, published (*): 1"
    assert "files of 2 versions are whole" in runner.invoke(commands, ["verify", str(sky)]).stdout
    vectors = next((sky / "segments").glob("image-*/vectors.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-1])
    done = runner.invoke(commands, ["verify", str(sky)])
    assert isinstance(done.exception, VersionCorrupt)
    assert str(vectors.relative_to(sky)) in done.stderr


def test_a_nightly_says_what_it_did_and_a_refused_one_why(
    tmp_path: Path, files: Path, encoder: Path
) -> None:
    sky, config = tmp_path / "sky", tmp_path / "nightly.toml"
    config.write_text(
        f'encoder = "{encoder}"\nnum_workers = 0\nmax_removed_share = 0\n'
        '[[sources]]\nsurvey = "legacysurvey"\npath = "files"\n'
    )
    done = runner.invoke(commands, ["nightly", str(sky), "--config", str(config)])
    assert done.exit_code == 0, done.exception
    assert done.stdout.count("\n") == 1
    assert f"{sky}: version 1 published; 2 objects, 2 came, 0 went" in done.stdout
    assert f"skipped {files / 'text.fits'}: " in done.stderr
    (files / "1.fits").unlink()

    done = runner.invoke(commands, ["nightly", str(sky), "--config", str(config), "--json"])

    assert isinstance(done.exception, GateRefused)  # exit code 3, see app.cli
    document = json.loads(done.stdout)
    assert (document["outcome"], document["version"]) == ("refused", 1)
    assert document == disk.read_json(sky / "nightly" / "000002.json")
    assert [gate["name"] for gate in document["gates"] if not gate["passed"]] == [
        "removed rows",
        "removed rows of view image",
        "removed rows of view joint",
    ]


def test_compact_says_what_it_did(tmp_path: Path, files: Path, encoder: Path) -> None:
    sky = tmp_path / "sky"
    build(sky, files, encoder)
    write_cutout(files / "2.fits", 2)
    build(sky, files, encoder)

    done = runner.invoke(commands, ["compact", str(sky)])
    assert done.stdout == f"{sky}: version 3, 4 segments into 2, 6 rows\n"
    done = runner.invoke(commands, ["compact", str(sky), "--json"])
    assert json.loads(done.stdout)["published"] is False


def test_errors_reach_the_one_place_that_tells_them(tmp_path: Path) -> None:
    for command in ("compact", "versions", "rollback", "verify"):
        done = runner.invoke(commands, [command, str(tmp_path / "nowhere")])
        assert isinstance(done.exception, NotASky)
        assert done.stdout == ""


@pytest.mark.parametrize(
    "command", ["build", "nightly", "compact", "versions", "rollback", "verify"]
)
def test_help_has_an_example(command: str) -> None:
    done = runner.invoke(commands, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example: skykin {command} my_sky" in done.stdout
