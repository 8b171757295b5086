"""`skykin fetch`, as it is typed."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from tests.training import archive_files
from tests.training.archive_server import ArchiveServer, FakeClock, Reply, Request, stay_at_home
from training.archives import fetching
from training.archives.legacysurvey import LegacySurvey
from training.archives.transfer import Service


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_at_home(monkeypatch)


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    file = tmp_path / "positions.csv"
    file.write_text("id,ra,dec\na,10,20\nb,11,20\nc,400,20\n")
    return file


def type_it(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["fetch", *map(str, arguments)])


def viewer(request: Request) -> Reply:
    if request.query["ra"].startswith("11"):
        return Reply(status=404)
    return Reply(body=archive_files.cutout(10, 20))


def use(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command speak to a service here."""

    def here(name: str, **settings: object) -> fetching.Archive:
        assert name == "legacysurvey"
        assert settings["radius_arcsec"] is None
        return LegacySurvey(service=service, size_px=16, clock=FakeClock().clock())

    monkeypatch.setattr(fetching, "archive", here)


def test_what_arrived_is_told_in_one_line(
    positions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with ArchiveServer(viewer) as server:
        use(server.service(), monkeypatch)
        result = type_it("legacysurvey", "--positions", positions, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{out}: 3 rows, 1 fetched, 0 kept, 1 nothing, 0 failed, 1 refused; "
        f"see {out / 'fetched.csv'}"
    ]
    assert "row 2 b: nothing: HTTP 404" in result.stderr
    assert "row 3 : refused: expected ra_deg in [0, 360)" in result.stderr


def test_json_is_one_document(
    positions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArchiveServer(viewer) as server:
        use(server.service(), monkeypatch)
        result = type_it(
            "legacysurvey", "--positions", positions, "--out", tmp_path / "out", "--json"
        )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["rows"] == 3
    assert [document[key] for key in ("fetched", "kept", "nothing", "failed", "refused")] == [
        1, 0, 1, 0, 1,
    ]  # fmt: skip
    assert document["files"] == ["a.fits"]
    assert [each["row"] for each in document["problems"]] == [2, 3]


def test_nothing_at_all_is_an_error(
    positions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArchiveServer(lambda _: Reply(status=404)) as server:
        use(server.service(), monkeypatch)
        result = type_it("legacysurvey", "--positions", positions, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("skykin: nothing arrived: 0 fetched")
    assert (tmp_path / "out" / "fetched.csv").is_file()


def test_no_network_is_one_line(
    positions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use(Service(url=url, requests_per_second=1e6), monkeypatch)
        result = type_it("legacysurvey", "--positions", positions, "--out", tmp_path / "out")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"skykin: {url} cannot be reached (cannot connect: ")
    assert last.endswith("is there a network?")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sdds",), "unknown archive 'sdds'"),
        (("gaia", "--size", 96), "gaia takes no size"),
        (("legacysurvey", "--radius", 3), "legacysurvey takes no radius"),
        (("multimodal_universe",), "expected a subset NAME/CONFIG"),
        (("sdss", "--radius", 500), "radius must be above 0, to 180 arcsec, got 500"),
    ],
)
def test_bad_usage_is_one_line(
    positions: Path, tmp_path: Path, arguments: tuple[object, ...], line: str
) -> None:
    result = type_it(*arguments, "--positions", positions, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert line in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_help_has_an_example() -> None:
    result = type_it("--help")
    assert result.exit_code == 0
    assert "Example: skykin fetch sdss --positions" in " ".join(result.stdout.split())
