"""What each archive is asked, and what of its answers is believed, against a local server."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.votable import parse_single_table

from tests.training import archive_files
from tests.training.archive_server import ArchiveServer, FakeClock, Reply, Request, stay_at_home
from training.archives.desi import Desi, Place, cut_rows
from training.archives.fetching import ARCHIVES, Archive, FetchReport, archive, fetch
from training.archives.gaia import Gaia, check_coefficients
from training.archives.legacysurvey import LegacySurvey
from training.archives.multimodal_universe import MultimodalUniverse
from training.archives.positions import Target
from training.archives.report import read_report
from training.archives.sdss import Sdss, check_spectrum
from training.archives.transfer import ArchiveUnreachable, Client

SIZE = 16
CSV_HEAD = "#Table1\nra,dec,plate,mjd,fiberID,run2d\n"
ZPIX = "targetid,survey,program,healpix,mean_fiber_ra,mean_fiber_dec,zcat_primary\n"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_at_home(monkeypatch)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, head: str = "id,ra,dec") -> Path:
        file = tmp_path / "positions.csv"
        file.write_text("\n".join([head, *lines]) + "\n")
        return file

    return write


def run(source: Archive, table: Path, out: Path) -> FetchReport:
    return fetch(source, table, out)


def statuses(report: FetchReport) -> list[str]:
    return [each.status for each in report.outcomes]


def test_every_archive_is_made_by_its_name() -> None:
    for name in ARCHIVES:
        settings = {"subset": "desi/edr_sv3"} if name == "multimodal_universe" else {}
        assert isinstance(archive(name, **settings).keys, tuple)
    with pytest.raises(ValueError, match="unknown archive 'sdds': expected one of legacysurvey"):
        archive("sdds")
    with pytest.raises(ValueError, match="gaia takes no size"):
        archive("gaia", size_px=3, subset=None)


# The Legacy Surveys


def viewer(request: Request) -> Reply:
    asked = request.query
    body = archive_files.cutout(
        float(asked["ra"]), float(asked["dec"]), bands=asked["bands"], size=int(asked["size"])
    )
    return Reply(body=body, headers={"Content-Type": "image/fits"})


def legacysurvey(server: ArchiveServer, **service: object) -> LegacySurvey:
    return LegacySurvey(service=server.service(**service), size_px=SIZE, clock=FakeClock().clock())


def test_cutouts_arrive_and_are_asked_for_as_documented(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    with ArchiveServer(viewer) as server:
        report = run(legacysurvey(server), table("a,150.1,2.2", "b,0.0,-89.9"), tmp_path / "out")
    assert statuses(report) == ["fetched", "fetched"]
    first = min(server.requests, key=lambda each: each.query["dec"])
    assert first.path == "/viewer/fits-cutout"
    assert first.query == {
        "ra": "0.0000000",
        "dec": "-89.9000000",
        "layer": "ls-dr10",
        "pixscale": "0.262",
        "bands": "griz",
        "size": "16",
    }
    assert first.headers["user-agent"].startswith("skykin/")
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "a.fits",
        "b.fits",
        "fetched.csv",
    }
    assert fits.getdata(tmp_path / "out" / "a.fits").shape == (4, SIZE, SIZE)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (archive_files.cutout(10.001, 20, size=SIZE), "failed", "another place"),
        (archive_files.cutout(10, 20, size=SIZE + 1), "failed", r"expected pixels \(4, 16, 16\)"),
        (archive_files.cutout(10, 20, size=SIZE, bands="grzi"), "failed", "bands griz, got grzi"),
        (archive_files.cutout(10, 20, size=SIZE, bands="grz"), "failed", "expected pixels"),
        (archive_files.cutout(10, 20, size=SIZE, value=0), "nothing", "outside the footprint"),
        (archive_files.cutout(10, 20, size=SIZE, value=np.nan), "nothing", "outside the footprint"),
        (archive_files.cutout(10, 20, size=SIZE)[:4000], "failed", "truncated or broken|pixels"),
        (b"\x89PNG\r\n", "failed", "not a FITS file"),
        (b"", "failed", "not a FITS file"),
        (b"<html><title>Error</title>", "failed", "web page"),
    ],
    ids=["place", "size", "order", "bands", "zero", "nan", "short", "png", "empty", "html"],
)
def test_another_cutout_than_asked_for_is_not_kept(
    table: Callable[..., Path], tmp_path: Path, body: bytes, status: str, reason: str
) -> None:
    with ArchiveServer(lambda _: Reply(body=body)) as server:
        report = run(legacysurvey(server), table("a,10,20"), tmp_path / "out")
    assert statuses(report) == [status]
    assert re.search(reason, report.outcomes[0].reason)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["fetched.csv"]


def test_real_cutouts_have_the_layout_that_is_checked(shared_data: Path) -> None:
    folder = shared_data / "legacysurvey_fits_cutouts"
    for name, size in (("example_a.fits", 424), ("temp_small.fits", 225)):
        header = fits.getheader(folder / name)
        target = Target(row=1, name="", ra_deg=header["CRVAL1"], dec_deg=header["CRVAL2"])
        source = LegacySurvey(bands="grz", size_px=size)
        source.check(target, (folder / name).read_bytes())
        with pytest.raises(ValueError, match="another place"):
            source.check(
                Target(row=1, name="", ra_deg=1.0, dec_deg=1.0), (folder / name).read_bytes()
            )
    with pytest.raises(ValueError, match="truncated"):
        source.check(target, (folder / "example_incomplete.fits").read_bytes())


def test_a_second_run_asks_only_for_what_is_missing(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    down = {"c"}

    def answer(request: Request) -> Reply:
        return (
            Reply(status=500) if request.query["ra"].startswith("3.0") and down else viewer(request)
        )

    positions = table("a,1,1", "b,2,2", "c,3,3", "d,400,4", "e,1,1")
    with ArchiveServer(answer) as server:
        source = legacysurvey(server)
        first = run(source, positions, out)
        assert statuses(first) == ["fetched", "fetched", "failed", "refused", "fetched"]
        assert first.outcomes[4].reason == "the same as row 1"
        down.clear()
        before = len(server.requests)
        second = run(source, positions, out)
        assert statuses(second) == ["kept", "kept", "fetched", "refused", "kept"]
        assert len(server.requests) == before + 1
        before = len(server.requests)
        (out / "b.fits").write_bytes((out / "b.fits").read_bytes()[:3000])
        (out / "a.fits").unlink()
        third = run(source, positions, out)
        assert statuses(third) == ["fetched", "fetched", "kept", "refused", "fetched"]
        assert len(server.requests) == before + 2


def test_a_killed_run_goes_on_where_it_stopped(table: Callable[..., Path], tmp_path: Path) -> None:
    """Killed between a file and its line, while writing a line, and with a partial file left."""
    out = tmp_path / "out"
    positions = table(*(f"n{n},{n},{n}" for n in range(6)))

    class Killed(BaseException):
        pass

    def progress(done: int, total: int) -> None:
        if done == 3:
            raise Killed

    with ArchiveServer(viewer) as server:
        source = legacysurvey(server, num_at_once=1)
        with pytest.raises(Killed):
            fetch(source, positions, out, progress=progress)
        there = {each.name for each in out.glob("*.fits")}
        assert 3 <= len(there) < 6
        text = (out / "fetched.csv").read_text()
        (out / "fetched.csv").write_text(text[: len(text) - 25])  # the last line is cut
        (out / "n5.fits.99-1.partial").write_bytes(b"SIMPLE")
        asked = len(server.requests)
        report = run(source, positions, out)
        assert len(server.requests) == asked + 6 - len(there)
    assert report.num_arrived == 6
    assert sorted(statuses(report)) == ["fetched"] * (6 - len(there)) + ["kept"] * len(there)
    lines = (out / "fetched.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["row", "1", "2", "3", "4", "5", "6"]


def test_a_report_that_was_edited_leads_nowhere_else(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with ArchiveServer(viewer) as server:
        source = legacysurvey(server)
        run(source, table("a,1,1"), out)
        (out / "a.fits").rename(tmp_path / "a.fits")
        text = (out / "fetched.csv").read_text().replace(",a.fits,", ",../a.fits,")
        (out / "fetched.csv").write_text(text)
        report = run(source, table("a,1,1"), out)
    assert statuses(report) == ["fetched"]
    assert (out / "a.fits").is_file()


def test_an_archive_that_goes_down_leaves_a_report(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    def answer(request: Request) -> Reply:
        return viewer(request) if len(server.requests) <= 2 else Reply(hang=True)

    out = tmp_path / "out"
    with ArchiveServer(answer) as server:
        source = legacysurvey(server, num_at_once=1, timeout_s=0.1, num_attempts=1)
        positions = table(*(f"n{n},{n},{n}" for n in range(40)))
        with pytest.raises(ArchiveUnreachable, match=r"no longer answers.*2 rows are there"):
            run(source, positions, out)
    outcomes = read_report(out)
    assert len(outcomes) == 40
    assert sum(each.status == "fetched" for each in outcomes) == 2
    assert len(server.requests) == 2 + 5


def test_no_more_at_once_than_allowed(table: Callable[..., Path], tmp_path: Path) -> None:
    gate = threading.Barrier(2)

    def answer(request: Request) -> Reply:
        gate.wait(20)
        return viewer(request)

    with ArchiveServer(answer) as server:
        report = run(
            legacysurvey(server, num_at_once=2),
            table(*(f"n{n},{n},{n}" for n in range(8))),
            tmp_path / "out",
        )
    assert report.count("fetched") == 8
    assert server.most_at_once == 2


# SDSS


def sdss(server: ArchiveServer, **settings: object) -> Sdss:
    service = server.service()
    return Sdss(skyserver=service, sas=service, clock=FakeClock().clock(), **settings)  # type: ignore[arg-type]


SPECTRA = {
    (266, 51602, 13): (10.0, 20.0, "26"),
    (266, 51602, 14): (10.0003, 20.0, "26"),
    (4055, 55359, 596): (200.0, -1.0, "v5_13_2"),
}


def sdss_archive(request: Request) -> Reply:
    """SkyServer gives all spectra, whatever the radius: the nearest is for us to find."""
    if request.path == "/dr17/en/tools/search/x_results.aspx":
        rows = "".join(
            f"{ra},{dec},{plate},{mjd},{fibre},{run2d}\n"
            for (plate, mjd, fibre), (ra, dec, run2d) in SPECTRA.items()
        )
        return Reply(body=(CSV_HEAD + rows).encode())
    named = re.search(r"spec-(\d+)-(\d+)-(\d+)\.fits", request.path)
    assert named
    numbers = (int(named[1]), int(named[2]), int(named[3]))
    return Reply(body=archive_files.spec_lite(*numbers))


def test_the_nearest_spectrum_within_the_radius_arrives(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    positions = table("a,10.00005,20", "b,10.00027,20", "c,200,-1", "d,50,50", "e,10.0001,20.0001")
    with ArchiveServer(sdss_archive) as server:
        report = run(sdss(server), positions, out)
        again = run(sdss(server), positions, out)
    assert [(each.status, each.file) for each in report.outcomes] == [
        ("fetched", "spec-0266-51602-0013.fits"),
        ("fetched", "spec-0266-51602-0014.fits"),
        ("fetched", "spec-4055-55359-0596.fits"),
        ("nothing", ""),
        ("fetched", "spec-0266-51602-0013.fits"),
    ]
    assert "no spectrum within 2 arcsec in DR17" in report.outcomes[3].reason
    assert server.paths()[0] == "/dr17/en/tools/search/x_results.aspx"
    assert sorted(server.paths()[1:4]) == [
        "/sas/dr17/eboss/spectro/redux/v5_13_2/spectra/lite/4055/spec-4055-55359-0596.fits",
        "/sas/dr17/sdss/spectro/redux/26/spectra/lite/0266/spec-0266-51602-0013.fits",
        "/sas/dr17/sdss/spectro/redux/26/spectra/lite/0266/spec-0266-51602-0014.fits",
    ]
    # The second run asks SkyServer about the one row without a spectrum, and for no file.
    assert statuses(again) == ["kept", "kept", "kept", "nothing", "kept"]
    assert len(server.requests) == 5
    asked = server.requests[4].query
    assert (asked["format"], asked["searchtool"]) == ("csv", "SQL")
    assert "fGetNearbySpecObjEq(50.000000,50.000000,0.0333)" in asked["cmd"]


def test_a_query_fits_into_a_url(table: Callable[..., Path], tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply(body=CSV_HEAD.encode())

    positions = table(*(f"n{n},{123.4567891 + n},{-12.3456789 - n / 10}" for n in range(100)))
    with ArchiveServer(answer) as server:
        report = run(sdss(server), positions, tmp_path / "out")
    assert report.count("nothing") == 100
    assert len(server.requests) == 9
    from urllib.parse import urlencode

    assert max(len(urlencode(request.query)) for request in server.requests) < 2048


def test_spectra_by_plate_mjd_and_fibre(table: Callable[..., Path], tmp_path: Path) -> None:
    with ArchiveServer(sdss_archive) as server:
        positions = table("0266,51602,0014", "1,2,3", head="plate,mjd,fiberid")
        report = run(sdss(server), positions, tmp_path / "out")
    assert statuses(report) == ["fetched", "nothing"]
    assert report.outcomes[0].file == "spec-0266-51602-0014.fits"
    assert "(s.plate=266 AND s.mjd=51602 AND s.fiberID=14)" in server.requests[0].query["cmd"]


@pytest.mark.parametrize(
    ("query", "file", "reason"),
    [
        (None, archive_files.spec_lite(1, 2, 3), "another spectrum.*got .1, 2, 3"),
        (None, archive_files.spec_lite(266, 51602, 13)[:7000], "truncated or broken|no table"),
        (None, archive_files.cutout(1, 1), "no table with flux"),
        (b"<html><title>SkyServer is down</title>", b"", "SkyServer: a web page"),
        (b'{"error_message": "Invalid object name"}', b"", "expected a table of ra, dec"),
        (b"", b"", "SkyServer: an empty answer"),
        (CSV_HEAD.encode() + b"10,20,266,51602,13,../../etc\n", b"", "expected a run2d"),
        (CSV_HEAD.encode() + b"10,20,266\n", b"", "SkyServer"),
    ],
    ids=["other", "short", "image", "html", "json", "empty", "path", "row"],
)
def test_another_spectrum_than_asked_for_is_not_kept(
    table: Callable[..., Path], tmp_path: Path, query: bytes | None, file: bytes, reason: str
) -> None:
    def answer(request: Request) -> Reply:
        if "search" in request.path:
            return sdss_archive(request) if query is None else Reply(body=query)
        return Reply(body=file)

    with ArchiveServer(answer) as server:
        report = run(sdss(server), table("a,10,20"), tmp_path / "out")
    assert statuses(report) == ["failed"]
    assert re.search(reason, report.outcomes[0].reason)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["fetched.csv"]


def test_real_spectra_have_the_layout_that_is_checked(shared_data: Path) -> None:
    files = sorted((shared_data / "sdss_spectra").glob("spec-*.fits"))[::6]
    assert len(files) > 5
    for file in files:
        plate, mjd, fibre = map(int, file.stem.split("-")[1:])
        check_spectrum(file.read_bytes(), (plate, mjd, fibre))
        with pytest.raises(ValueError, match="another spectrum"):
            check_spectrum(file.read_bytes(), (plate, mjd, fibre + 1))
        with pytest.raises(ValueError, match=r"truncated|broken|no table|another"):
            check_spectrum(file.read_bytes()[:60_000], (plate, mjd, fibre))


# DESI

TARGETS = [39627646714023, 39633345008634465, 39089837499744649]
COADD, REDROCK = archive_files.coadd(TARGETS), archive_files.redrock(TARGETS)
OTHER_COADD, OTHER_REDROCK = archive_files.coadd([1, 2, 3]), archive_files.redrock([1, 2, 3])


def ranged(body: bytes, request: Request, *, etag: str = '"1"') -> Reply:
    """A part of a file, as a static server gives it."""
    named = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"])
    assert named
    start, end = int(named[1]), min(int(named[2]) + 1, len(body))
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}", "ETag": etag}
    return Reply(status=206, body=body[start:end], headers=headers)


def desi_archive(request: Request) -> Reply:
    if request.path == "/tap/sync":
        lines = [
            f"{TARGETS[0]},main,dark,10016,105.0,56.0,t",
            f"{TARGETS[1]},sv1,other,10016,105.4897,56.6693,f",
            f"{TARGETS[1]},main,dark,10016,105.4897,56.6693,t",
            f"{TARGETS[2]},main,bright,77,149.4654,1.79365,t",
        ]
        return Reply(body=(ZPIX + "\n".join(lines) + "\n").encode())
    return ranged(REDROCK if "redrock" in request.path else COADD, request)


def desi(server: ArchiveServer) -> Desi:
    service = server.service()
    return Desi(datalab=service, files=service, clock=FakeClock().clock())


def test_spectra_are_cut_out_of_the_remote_coadd(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    positions = table("a,105.4897,56.6693", "b,149.4654,1.79365", "c,105,56", "d,5,5")
    with ArchiveServer(desi_archive) as server:
        report = run(desi(server), positions, out)
        asked = len(server.requests)
        again = run(desi(server), positions, out)
    name = f"main-dark-10016-{TARGETS[1]}.fits"
    assert statuses(report) == ["fetched", "fetched", "fetched", "nothing"]
    assert report.outcomes[0].file == f"coadd-{name}"
    assert statuses(again) == ["kept", "kept", "kept", "nothing"]
    assert len(server.requests) == asked + 1
    folder = "/public/dr1/spectro/redux/iron/healpix/main/dark/100/10016"
    assert f"{folder}/coadd-main-dark-10016.fits" in server.paths()
    assert f"{folder}/redrock-main-dark-10016.fits" in server.paths()
    query = server.requests[0].form
    assert query["REQUEST"] == "doQuery"
    assert "mean_fiber_dec BETWEEN 56.6690222 AND 56.6695778" in query["QUERY"]
    whole = fits.open(io.BytesIO(COADD))
    with fits.open(out / f"coadd-{name}") as cut, whole:
        assert list(cut["FIBERMAP"].data["TARGETID"]) == [TARGETS[1]]
        assert cut["FIBERMAP"].columns["FLUX_R"].unit == "nanomaggy"
        assert "EXP_FIBERMAP" not in cut
        assert cut["B_FLUX"].header["BUNIT"] == "10**-17 erg/(s cm2 Angstrom)"
        for arm in archive_files.ARMS:
            np.testing.assert_array_equal(
                cut[f"{arm}_WAVELENGTH"].data, whole[f"{arm}_WAVELENGTH"].data
            )
            for part in ("FLUX", "IVAR", "MASK", "RESOLUTION"):
                np.testing.assert_array_equal(
                    cut[f"{arm}_{part}"].data, whole[f"{arm}_{part}"].data[1:2]
                )
    with fits.open(out / f"redrock-{name}") as cut:
        assert list(cut["REDSHIFTS"].data["TARGETID"]) == [TARGETS[1]]


def test_rows_of_a_real_coadd_are_cut_without_reading_all(shared_data: Path) -> None:
    file = shared_data / "desi_spectra" / "coadd-1-80693-thru20210204.fits"
    body = file.read_bytes()
    with (
        ArchiveServer(lambda request: ranged(body, request)) as server,
        Client(server.service(), FakeClock().clock()) as client,
        fits.open(file) as whole,
    ):
        ids = [int(each) for each in whole["FIBERMAP"].data["TARGETID"]]
        cut = cut_rows(client, f"{server.url}/coadd.fits", "coadd", [ids[3], 1])
        assert set(cut) == {ids[3]}
        with fits.open(io.BytesIO(cut[ids[3]])) as part:
            for arm in "BRZ":
                for name in ("FLUX", "IVAR", "MASK", "RESOLUTION"):
                    np.testing.assert_array_equal(
                        part[f"{arm}_{name}"].data, whole[f"{arm}_{name}"].data[3:4]
                    )
    starts = [request.headers["range"] for request in server.requests]
    assert len(set(starts)) == len(starts)  # nothing is asked for twice


def test_a_spectrum_that_was_cut_out_reads_as_in_the_whole_file(
    shared_data: Path, tmp_path: Path
) -> None:
    from training.surveys import desi as reader

    folder = shared_data / "desi_spectra"
    targetid = 39633345008634465
    place = Place(targetid=targetid, survey="sv1", program="other", pixel=1)
    for kind in ("coadd", "redrock"):
        body = (folder / f"{kind}-4-80613-thru20210324.fits").read_bytes()
        with (
            ArchiveServer(partial(ranged, body)) as server,
            Client(server.service(), FakeClock().clock()) as client,
        ):
            cut = cut_rows(client, f"{server.url}/{kind}.fits", kind, [targetid])
        (tmp_path / place.file(kind)).write_bytes(cut[targetid])
    (batch,) = reader.read(tmp_path / place.file("coadd"))
    (expected,) = reader.read(folder / "coadd-4-80613-thru20210324.fits")
    assert not batch.skipped
    (one,), (other,) = batch.observations, expected.observations
    assert one.catalogue["redshift"] == other.catalogue["redshift"]
    assert one.source_id == other.source_id == str(targetid)
    assert one.spectrum is not None
    assert other.spectrum is not None
    np.testing.assert_array_equal(one.spectrum.flux, other.spectrum.flux)
    np.testing.assert_array_equal(one.spectrum.mask, other.spectrum.mask)


def test_spectra_by_targetid(table: Callable[..., Path], tmp_path: Path) -> None:
    with ArchiveServer(desi_archive) as server:
        positions = table(str(TARGETS[2]), "7", head="TARGETID")
        report = run(desi(server), positions, tmp_path / "out")
    assert statuses(report) == ["fetched", "nothing"]
    assert f"targetid IN ({TARGETS[2]},7)" in server.requests[0].form["QUERY"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("whole", "does not give parts"),
        ("changing", "changed while it was read"),
        ("missing", "HTTP 404"),
        ("dies", "HTTP 500"),
        ("other", "not in the coadd"),
        ("noise", "not a coadd file"),
        ("tap", "Data Lab: the query failed: no such table"),
        ("path", "unexpected survey"),
    ],
)
def test_a_coadd_that_is_not_right_is_not_kept(
    table: Callable[..., Path], tmp_path: Path, change: str, reason: str
) -> None:
    body = COADD + b"\0" * 2880 * 60  # longer than two blocks

    def answer(request: Request) -> Reply:
        if request.path == "/tap/sync":
            if change == "tap":
                text = '<VOTABLE><INFO name="QUERY_STATUS" value="ERROR">no such table</INFO>'
                return Reply(body=text.encode())
            if change == "path":
                return Reply(
                    body=(ZPIX + f"{TARGETS[1]},../x,dark,1,105.4897,56.6693,t\n").encode()
                )
            return desi_archive(request)
        count = sum("coadd" in path for path in server.paths())
        if change == "whole":
            return Reply(body=body)
        if change == "missing":
            return Reply(status=404)
        if change == "dies" and count > 1:
            return Reply(status=500)
        if change == "changing":
            return ranged(body, request, etag=f'"{count}"')
        if change == "other":
            return ranged(OTHER_REDROCK if "redrock" in request.path else OTHER_COADD, request)
        if change == "noise":
            return ranged(b"SIMPLE  = noise" * 99, request)
        return desi_archive(request)

    with ArchiveServer(answer) as server:
        report = run(desi(server), table("a,105.4897,56.6693"), tmp_path / "out")
    assert statuses(report) == ["failed"]
    assert reason in report.outcomes[0].reason
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["fetched.csv"]


# Gaia

SOURCES = {5853498713190525696: (10.0, 20.0, "True"), 42: (10.0001, 20.0, "False"), 7: (50, 5, "t")}


def gaia(server: ArchiveServer, **settings: int) -> Gaia:
    return Gaia(service=server.service(), clock=FakeClock().clock(), **settings)  # type: ignore[arg-type]


def gaia_archive(request: Request) -> Reply:
    if request.path == "/tap-server/tap/sync":
        start, _, rest = request.body.partition(b"<?xml")
        assert b"tap_upload.targets" in start + rest
        uploaded = parse_single_table(
            io.BytesIO((b"<?xml" + rest).partition(b"</VOTABLE>")[0] + b"</VOTABLE>")
        ).to_table()
        lines = ["target_row,source_id,ra,dec,has_xp_continuous"]
        for row in uploaded:
            lines += [
                f"{row['target_row']},{source_id},{ra},{dec},{has_xp}"
                for source_id, (ra, dec, has_xp) in SOURCES.items()
                if abs(ra - row["target_ra"]) < 0.001 and abs(dec - row["target_dec"]) < 0.001
            ]
        return Reply(body=("\n".join(lines) + "\n").encode())
    assert request.path == "/data-server/data"
    ids = [int(each) for each in request.form["ID"].split(",")]
    body = archive_files.zipped(XP_CONTINUOUS_RAW__fits=archive_files.xp_table(ids))
    return Reply(body=body, headers={"Content-Type": "application/zip"})


def test_coefficients_of_the_nearest_sources_arrive_in_one_call(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    positions = table("a,10,20", "b,10.0001,20", "c,50,5", "d,99,9")
    with ArchiveServer(gaia_archive) as server:
        report = run(gaia(server), positions, out)
        again = run(gaia(server), positions, out)
    assert statuses(report) == ["fetched", "nothing", "fetched", "nothing"]
    assert "source, 42, has no XP spectrum" in report.outcomes[1].reason
    assert "no source within 1 arcsec" in report.outcomes[3].reason
    assert server.paths()[:2] == ["/tap-server/tap/sync", "/data-server/data"]
    form = server.requests[1].form
    assert form["ID"] == "5853498713190525696,7"
    assert (form["RETRIEVAL_TYPE"], form["DATA_STRUCTURE"]) == ("XP_CONTINUOUS", "RAW")
    assert (form["FORMAT"], form["RELEASE"]) == ("fits", "Gaia DR3")
    (file,) = out.glob("*.fits")
    assert check_coefficients(file.read_bytes()) == (5853498713190525696, 7)
    # Again: a cone search for the two rows without a spectrum, and no call of DataLink.
    assert statuses(again) == ["kept", "nothing", "kept", "nothing"]
    assert len(server.requests) == 3


def test_a_call_has_no_more_ids_than_allowed(table: Callable[..., Path], tmp_path: Path) -> None:
    with ArchiveServer(gaia_archive) as server:
        positions = table(*map(str, range(1, 8)), head="source_id")
        report = run(gaia(server, ids_per_call=3), positions, tmp_path / "out")
    assert report.count("fetched") == 7
    assert [request.form["ID"] for request in server.requests] == ["1,2,3", "4,5,6", "7"]
    with pytest.raises(ValueError, match="1 to 5000 ids a call, got 5001"):
        Gaia(ids_per_call=5001)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (archive_files.zipped(x__fits=archive_files.xp_table([8])), "failed", "not asked for: .8."),
        (archive_files.zipped(x__fits=archive_files.xp_table([])), "nothing", "no XP spectrum"),
        (archive_files.zipped(), "nothing", "no XP spectrum of source 7"),
        (archive_files.zipped(readme__txt=b"sorry"), "failed", "expected one FITS file"),
        (archive_files.zipped(x__fits=b"SIMPLE  ="), "failed", "FITS"),
        (archive_files.zipped(x__fits=archive_files.xp_table([7]))[:-40], "failed", "ZIP"),
        (b"PK\x03\x04 and nothing more", "failed", "not a whole ZIP"),
        (b"<!doctype HTML><title>Maintenance</title>", "failed", "web page.*Maintenance"),
    ],
    ids=["other", "no-rows", "no-file", "no-fits", "no-table", "short", "stub", "html"],
)
def test_other_coefficients_than_asked_for_are_not_kept(
    table: Callable[..., Path], tmp_path: Path, body: bytes, status: str, reason: str
) -> None:
    with ArchiveServer(lambda _: Reply(body=body)) as server:
        report = run(gaia(server), table("7", head="source_id"), tmp_path / "out")
    assert statuses(report) == [status]
    assert re.search(reason, report.outcomes[0].reason)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["fetched.csv"]


def test_real_coefficients_have_the_layout_that_is_checked(shared_data: Path) -> None:
    content = (shared_data / "gaia_xp" / "XP_CONTINUOUS_RAW.fits").read_bytes()
    assert check_coefficients(content) == (5853498713190525696, 5762406957886626816)
    with pytest.raises(ValueError, match="truncated or broken"):
        check_coefficients(content[:-2880])


# The Multimodal Universe


def hub(files: dict[str, bytes]) -> Callable[[Request], Reply]:
    """The hub: a tree of folders and files, and the files."""

    def answer(request: Request) -> Reply:
        tree = re.fullmatch(r"/api/datasets/MultimodalUniverse/desi/tree/main/(.+)", request.path)
        if tree:
            return _tree(files, tree[1])
        named = re.fullmatch(r"/datasets/MultimodalUniverse/desi/resolve/main/(.+)", request.path)
        assert named, request.path
        body = files[named[1]]
        return Reply(body=body, headers={"ETag": f'"{hash(body):x}"', "X-Repo-Commit": "0" * 40})

    return answer


def _tree(files: dict[str, bytes], folder: str) -> Reply:
    below = {
        name[len(folder) + 1 :].partition("/") for name in files if name.startswith(f"{folder}/")
    }
    if not below:
        return Reply(status=404, headers={"X-Error-Code": "EntryNotFound"})
    entries = [
        {"type": "directory", "path": f"{folder}/{name}", "oid": "0" * 40, "size": 0}
        if slash
        else {
            "type": "file",
            "path": f"{folder}/{name}",
            "oid": "0" * 40,
            "size": len(files[f"{folder}/{name}"]),
        }
        for name, slash, _ in sorted(below)
    ]
    return Reply(body=json.dumps(entries).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


@pytest.mark.usefixtures("no_token")
def test_cells_of_the_hub_arrive(table: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    from astropy import units as u
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    (cell,) = lonlat_to_healpix(Longitude([105.5] * u.deg), Latitude([56.7] * u.deg), 4)
    name = f"edr_sv3/healpix={cell}/001-of-001.hdf5"
    files = {
        name: archive_files.hdf5(tmp_path, [(105.5, 56.7), (105.6, 56.7)]),
        "edr_sv3/healpix=1/001-of-001.hdf5": b"not wanted",
    }
    positions = table("a,105.5,56.7", "b,105.501,56.7", "c,300,-5")
    with ArchiveServer(hub(files)) as server:
        source = MultimodalUniverse(subset="desi/edr_sv3", endpoint=server.url)
        report = run(source, positions, out)
        again = run(source, positions, out)
    assert statuses(report) == ["fetched", "nothing", "nothing"]
    assert report.outcomes[0].file == name
    assert "no object within 1 arcsec" in report.outcomes[1].reason
    assert "nothing in HEALPix cell" in report.outcomes[2].reason
    assert (out / name).read_bytes() == files[name]
    assert statuses(again) == ["kept", "nothing", "nothing"]
    downloads = [r for r in server.requests if r.method == "GET" and "/resolve/" in r.path]
    assert len(downloads) == 1


@pytest.mark.usefixtures("no_token")
def test_a_broken_cell_is_not_believed(table: Callable[..., Path], tmp_path: Path) -> None:
    whole = archive_files.hdf5(tmp_path, [(0.1, 0.1)])
    files = {f"edr_sv3/healpix={n}/001-of-001.hdf5": whole[:900] for n in range(3072)}
    with ArchiveServer(hub(files)) as server:
        source = MultimodalUniverse(subset="desi/edr_sv3", endpoint=server.url)
        report = run(source, table("a,0.1,0.1"), tmp_path / "out")
    assert statuses(report) == ["failed"]
    assert "truncated or broken HDF5" in report.outcomes[0].reason


@pytest.mark.usefixtures("no_token")
def test_a_hub_out_of_reach_is_one_plain_error(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client waits before it gives up
    with ArchiveServer(hub({})) as server:
        url = server.url
    source = MultimodalUniverse(subset="desi/edr_sv3", endpoint=url)
    with pytest.raises(ArchiveUnreachable, match="cannot be reached"):
        run(source, table("a,0.1,0.1"), tmp_path / "out")
    assert [each.status for each in read_report(tmp_path / "out")] == ["failed"]


@pytest.mark.usefixtures("no_token")
def test_a_hub_that_stumbles_is_asked_again(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    whole = archive_files.hdf5(tmp_path, [(0.1, 0.1)])
    files = {f"edr_sv3/healpix={n}/001-of-001.hdf5": whole for n in range(3072)}
    stumbles = {"tree", "resolve"}

    def answer(request: Request) -> Reply:
        for word in sorted(stumbles):
            if f"/{word}/" in request.path and request.method == "GET":
                stumbles.discard(word)
                short = Reply(body=whole, send_bytes=100)
                return Reply(status=503) if word == "tree" else short
        return hub(files)(request)

    with ArchiveServer(answer) as server:
        source = MultimodalUniverse(subset="desi/edr_sv3", endpoint=server.url)
        report = run(source, table("a,0.1,0.1"), tmp_path / "out")
        again = run(source, table("a,0.1,0.1"), tmp_path / "out")
    assert not stumbles
    assert report.num_arrived + again.num_arrived >= 1
    assert again.num_arrived == 1


@pytest.mark.usefixtures("no_token")
def test_a_subset_that_is_not_there_is_named(table: Callable[..., Path], tmp_path: Path) -> None:
    with ArchiveServer(hub({})) as server:
        source = MultimodalUniverse(subset="desi/edr_sv4", endpoint=server.url)
        with pytest.raises(ValueError, match=r"desi/edr_sv4: not on the hub"):
            run(source, table("a,0.1,0.1"), tmp_path / "out")


@pytest.mark.parametrize("subset", ["", "desi", "../x/y", "a/b/c", "a/ b"])
def test_a_subset_has_a_name_and_a_configuration(subset: str) -> None:
    with pytest.raises(ValueError, match="expected a subset NAME/CONFIG"):
        MultimodalUniverse(subset=subset)
