"""`skykin search` and `skykin evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from astropy.table import Table
from typer.testing import CliRunner, Result

from discovery import OutsideFootprint, Query, Sky, UnknownObject, evaluate
from discovery.commands import commands, print_hits

from .conftest import NUM_IN_PATCH, PICTURES, object_id, positions, write_cutout


def call(*arguments: str | Path) -> Result:
    """Run a command; an error it raises is raised here."""
    return CliRunner().invoke(commands, [str(one) for one in arguments], catch_exceptions=False)


def test_json_is_one_document_and_nothing_else(sky: Sky, sky_folder: Path) -> None:
    done = call("search", sky_folder, "--id", object_id(3), "-k", "4", "--json")
    assert done.exit_code == 0
    expected = sky.search(Query(like=[object_id(3)], k=4))
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.to_json()))
    assert done.stderr == ""


def test_a_table_and_a_closing_line_are_printed(sky_folder: Path) -> None:
    done = call("search", sky_folder, "--id", object_id(0), "-k", "3")
    assert object_id(1) in done.stdout  # whole, not cut off
    closing = done.stdout.splitlines()[-1]
    assert closing == f"3 hits in view image of {sky_folder}, version 3"


def test_a_very_long_id_leaves_room_for_the_numbers_and_no_id_commands_the_terminal(
    sky: Sky, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = sky.search(Query(like=[object_id(0)], k=2))
    table = hits.table.copy()
    table["object_id"] = ["x" * 240, "\x1b[2Jred\nherring"]

    print_hits(replace(hits, table=table))

    printed = capsys.readouterr().out
    assert printed.count("x") >= 240
    assert all(f"{score:.4f}" in printed for score in hits.scores)
    assert "\x1b" not in printed
    assert r"\x1b[2Jred\nherring" in printed


@pytest.mark.parametrize(
    "place",
    [
        ["--ra", "188.73625", "--dec", "-0.20833"],
        ["--ra", "12 34 56.7", "--dec", "-00 12 30"],
        ["--position", "12:34:56.7 -00:12:30"],
        ["--position", "https://www.legacysurvey.org/viewer?ra=188.73625&dec=-0.20833"],
    ],
)
def test_a_position_finds_its_object_and_says_how_far(sky_folder: Path, place: list[str]) -> None:
    done = call("search", sky_folder, *place, "-k", "1")
    closing = done.stdout.splitlines()[-1]
    assert f"the nearest object is {object_id(44)}, 0.0 arcsec away" in closing
    assert f"{len(PICTURES)} objects without a position were left out" in closing


def test_every_flag_reaches_the_query(sky: Sky, sky_folder: Path, tmp_path: Path) -> None:
    cutout, out = tmp_path / "mine.fits", tmp_path / "hits.vot"
    write_cutout(cutout, 10.0, 10.0, seed=50)
    done = call(
        *("search", sky_folder, "--file", cutout, "--survey", "legacysurvey", "-k", "5"),
        *("--like", object_id(2), "--like", object_id(4), "--unlike", object_id(9)),
        *("--where", "mag_r < 19", "--cone", "150.08,2.04,0.05", "--view", "joint"),
        *("--out", out),
    )
    expected = sky.search(
        Query(
            file=cutout,
            survey="legacysurvey",
            like=[object_id(2), object_id(4)],
            unlike=[object_id(9)],
            where="mag_r < 19",
            cone=(150.08, 2.04, 0.05),
            view="joint",
            k=5,
        )
    )
    assert tuple(Table.read(out, format="votable")["object_id"].tolist()) == expected.ids
    assert done.stdout.strip().endswith(f"written to {out}")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--id", "nobody"], UnknownObject, "nobody"),
        (["--id", object_id(0), "-k", "0"], ValueError, "k must be between 1"),
        (["--id", object_id(0), "-k", "1000"], ValueError, "k must be between 1 and 48"),
        (["--ra", "10"], ValueError, "--ra and --dec are given together"),
        (["--ra", "240", "--dec", "-60"], OutsideFootprint, "outside the footprint"),
        (["--ra", "1", "--dec", "2", "--position", "1 2"], ValueError, "either"),
        (["--id", object_id(0), "--cone", "1,2"], ValueError, "RA,DEC,RADIUS"),
        (["--id", object_id(0), "--out", "hits.xlsx"], ValueError, "must end in"),
        ([], ValueError, "something to look like"),
    ],
)
def test_bad_usage_raises_what_the_command_line_reports(
    sky_folder: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call("search", sky_folder, *arguments)


def test_evaluate_prints_the_figures(sky: Sky, sky_folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    lines = [f"{object_id(n)},{int(n % 4 == 0)}" for n in range(NUM_IN_PATCH)]
    labels.write_text("\n".join(["object_id,ring", *lines, "elsewhere,1"]))
    flags: list[str | Path] = ["evaluate", sky_folder, "--labels", labels, "--label", "ring"]
    expected = evaluate(sky, labels, "ring")

    assert json.loads(call(*flags, "--json").stdout) == expected.to_json()

    printed = call(*flags, "--query-above", "0.5", "--view", "image").stdout.splitlines()
    assert printed[0].startswith("1 labelled objects are not in view image")
    assert f"nDCG@10 {expected.ndcg:.3f}" in printed[-1]
    assert f"chance {expected.chance:.3f}" in printed[-1]


@pytest.mark.parametrize("command", ["search", "evaluate"])
def test_help_shows_an_example(command: str) -> None:
    assert f"skykin {command} my_sky" in " ".join(call(command, "--help").stdout.split())


def test_positions_of_the_test_sky_are_where_the_tests_think() -> None:
    assert positions()[object_id(44)] == (188.73625, -0.20833)
