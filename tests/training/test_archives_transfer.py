"""Requests to an archive that stumbles, against a local server."""

from __future__ import annotations

import email.utils
import itertools
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.training.archive_server import ArchiveServer, FakeClock, Reply, Request, stay_at_home
from training.archives.transfer import (
    Answer,
    ArchiveUnreachable,
    Client,
    Clock,
    NotThere,
    Pace,
    Service,
    TransferFailed,
    side_by_side,
    write_whole,
)

GOOD = Reply(body=b"good" * 100)


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_at_home(monkeypatch)


def content(answer: Answer) -> bytes:
    return answer.content


def get(server: ArchiveServer, clock: Clock | None = None, **changes: object) -> bytes:
    """One request with a clock that does not wait."""
    clock = clock or FakeClock().clock()
    with Client(server.service(**changes), clock) as client:
        return client.request("GET", f"{server.url}/file", content)


def in_turn(*replies: Reply) -> ArchiveServer:
    """A server that gives these replies in turn, the last one for ever."""
    left = list(replies)
    return ArchiveServer(lambda _: left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    "stumble",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(status=429),
        Reply(body=GOOD.body, send_bytes=17),
        Reply(body=GOOD.body, send_bytes=17, reset=True),
        Reply(body=GOOD.body, send_bytes=0, reset=True),
        Reply(body=b"<!DOCTYPE html><title>Busy, try later</title>", headers={"X": "y"}),
    ],
    ids=["500", "503", "429", "truncated", "reset-in-body", "reset", "html"],
)
def test_a_stumble_is_followed_by_another_attempt(stumble: Reply) -> None:
    with in_turn(stumble, GOOD) as server:
        assert get(server) == GOOD.body
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=500), "HTTP 500 Internal Server Error .after 3 attempts"),
        (Reply(body=GOOD.body, send_bytes=17), "broken off.*received 17 bytes, expected 400"),
        (Reply(body=GOOD.body, send_bytes=17, reset=True), "broken off"),
        (
            Reply(body=b"\n <html><head><title>Down for\nrepairs</title>"),
            "web page came instead of data: Down for repairs",
        ),
    ],
    ids=["500", "truncated", "reset", "html"],
)
def test_attempts_come_to_an_end_with_the_reason(reply: Reply, reason: str) -> None:
    with in_turn(reply) as server, pytest.raises(TransferFailed, match=reason):
        get(server)
    assert len(server.requests) == 3


def test_waits_double_and_are_spread() -> None:
    for chance, expected in ((1.0, [1, 2, 4, 8]), (0.0, [0.5, 1, 2, 4])):
        fake = FakeClock()
        with in_turn(Reply(status=500)) as server, pytest.raises(TransferFailed):
            get(server, fake.clock(chance=chance), num_attempts=5)
        assert [each for each in fake.slept if each > 0.1] == pytest.approx(expected)


def test_retry_after_in_seconds_is_honoured_by_everybody() -> None:
    fake = FakeClock()
    with in_turn(Reply(status=429, headers={"Retry-After": "37"}), GOOD) as server:
        server._clock = fake.clock()
        with Client(server.service(), fake.clock()) as client:
            client.request("GET", server.url, content)
    first, second = server.requests
    assert second.at - first.at >= 37


def test_retry_after_as_a_date_is_honoured() -> None:
    fake = FakeClock()
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    with in_turn(Reply(status=503, headers={"Retry-After": later}), GOOD) as server:
        get(server, fake.clock())
    assert 95 <= sum(fake.slept) <= 105


def test_an_archive_that_asks_for_hours_is_left_alone() -> None:
    fake = FakeClock()
    reply = Reply(status=429, headers={"Retry-After": "7200"})
    with in_turn(reply) as server, pytest.raises(TransferFailed, match="come again in 7200 s"):
        get(server, fake.clock())
    assert len(server.requests) == 1
    assert sum(fake.slept) < 1


def test_nonsense_in_retry_after_is_ignored() -> None:
    with in_turn(Reply(status=429, headers={"Retry-After": "soon"}), GOOD) as server:
        assert get(server) == GOOD.body


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_asked_for_once(status: int) -> None:
    with in_turn(Reply(status=status)) as server, pytest.raises(NotThere, match=str(status)):
        get(server)
    assert len(server.requests) == 1


def test_a_refusal_is_final_and_quoted() -> None:
    reply = Reply(status=400, body=b"<p>bad  <b>ADQL</b></p>")
    with in_turn(reply) as server, pytest.raises(TransferFailed, match=r"HTTP 400.*bad ADQL"):
        get(server)
    assert len(server.requests) == 1


def test_a_server_that_never_answers_is_unreachable() -> None:
    with in_turn(Reply(hang=True)) as server, pytest.raises(ArchiveUnreachable, match=r"0.2 s"):
        get(server, timeout_s=0.2, num_attempts=2)
    assert len(server.requests) == 2


def test_a_server_that_falls_silent_is_unreachable_in_the_end() -> None:
    with in_turn(GOOD, Reply(hang=True)) as server:
        service = server.service(timeout_s=0.1, num_attempts=1)
        with Client(service, FakeClock().clock()) as client:
            client.request("GET", server.url, content)
            for _ in range(4):
                with pytest.raises(TransferFailed, match="no answer within"):
                    client.request("GET", server.url, content)
            with pytest.raises(ArchiveUnreachable, match="no longer answers"):
                client.request("GET", server.url, content)


def test_a_slow_drip_is_given_up() -> None:
    with (
        in_turn(Reply(body=b"x" * 10_000, drip_s=0.01)) as server,
        pytest.raises(TransferFailed, match="too slow"),
        Client(server.service(deadline_s=0.2, num_attempts=1), Clock()) as client,
    ):
        client.request("GET", server.url, content)


def test_no_network_is_one_plain_error() -> None:
    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        service = Service(url=url, requests_per_second=1e6, num_attempts=2)
        with (
            Client(service, FakeClock().clock()) as client,
            pytest.raises(ArchiveUnreachable, match=r"cannot be reached.*is there a network"),
        ):
            client.request("GET", url, content)


def test_an_endless_body_is_given_up() -> None:
    with in_turn(GOOD) as server, pytest.raises(TransferFailed, match="longer than"):
        get(server, max_bytes=100)
    assert len(server.requests) == 1


def test_a_redirect_within_the_site_is_followed() -> None:
    def answer(request: Request) -> Reply:
        if request.path == "/file":
            return Reply(status=302, headers={"Location": "/elsewhere?a=1"})
        return GOOD

    with ArchiveServer(answer) as server:
        assert get(server) == GOOD.body
    assert server.paths() == ["/file", "/elsewhere"]
    assert server.requests[1].query == {"a": "1"}


@pytest.mark.parametrize(("status", "method"), [(303, "GET"), (307, "POST")])
def test_a_redirected_question_keeps_its_meaning(status: int, method: str) -> None:
    def answer(request: Request) -> Reply:
        if request.path == "/ask":
            return Reply(status=status, headers={"Location": "/answer"})
        return GOOD

    with ArchiveServer(answer) as server, Client(server.service()) as client:
        client.request("POST", f"{server.url}/ask", content, data={"QUERY": "SELECT 1"})
    assert server.requests[1].method == method
    assert (server.requests[1].body == b"QUERY=SELECT+1") == (method == "POST")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file:///etc/passwd", "file scheme"),
        ("ftp://127.0.0.1/x", "ftp scheme"),
        ("http://localhost:9/x", "another site, localhost"),
        ("//evil.example.org/x", "another site, evil.example.org"),
        ("http://10.0.0.1/x", "another site, 10.0.0.1"),
    ],
)
def test_a_redirect_that_leads_astray_is_refused(place: str, reason: str) -> None:
    reply = Reply(status=302, headers={"Location": place})
    with in_turn(reply) as server, pytest.raises(TransferFailed, match=reason):
        get(server)
    assert len(server.requests) == 1


def test_redirects_in_a_circle_come_to_an_end() -> None:
    reply = Reply(status=302, headers={"Location": "/file"})
    with in_turn(reply) as server, pytest.raises(TransferFailed, match="redirects"):
        get(server)
    assert len(server.requests) == 6


def test_only_http_is_a_service() -> None:
    with pytest.raises(ValueError, match="http or https"):
        Service(url="file:///tmp", requests_per_second=1.0)


def test_requests_at_once_stay_within_the_bound() -> None:
    gate = threading.Barrier(3)

    def answer(_: Request) -> Reply:
        gate.wait(20)  # passes only when three requests are there together
        return GOOD

    with (
        ArchiveServer(answer) as server,
        Client(server.service(num_at_once=3)) as client,
    ):
        jobs = [partial(client.request, "GET", server.url, content) for _ in range(12)]
        assert list(side_by_side(jobs, 8)) == [GOOD.body] * 12
    assert server.most_at_once == 3


def test_requests_come_no_faster_than_the_rate() -> None:
    fake = FakeClock()
    with in_turn(GOOD) as server:
        server._clock = fake.clock()
        with Client(server.service(requests_per_second=4.0), fake.clock()) as client:
            for _ in range(9):
                client.request("GET", server.url, content)
    times = [request.at for request in server.requests]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) >= 0.25 - 1e-9


def test_attempts_and_redirects_keep_the_rate_too() -> None:
    fake = FakeClock()
    replies = (
        Reply(status=500),
        Reply(status=302, headers={"Location": "/a"}),
        Reply(status=302, headers={"Location": "/b"}),
        GOOD,
    )
    with in_turn(*replies) as server:
        server._clock = fake.clock()
        get(server, fake.clock(), requests_per_second=0.1)
    times = [request.at for request in server.requests]
    assert [after - before >= 10 - 1e-9 for before, after in itertools.pairwise(times)] == [
        True
    ] * 3


def test_turns_are_spaced_also_among_threads() -> None:
    fake = FakeClock()
    pace = Pace(10.0, fake.clock())
    turns = sorted(side_by_side([pace.wait] * 50, 8))
    gaps = [after - before for before, after in itertools.pairwise(turns)]
    assert min(gaps) >= 0.1 - 1e-9


def test_the_first_failure_stops_what_has_not_begun() -> None:
    done: list[int] = []

    def job(number: int) -> int:
        if number == 3:
            raise ArchiveUnreachable("gone")
        done.append(number)
        return number

    with pytest.raises(ArchiveUnreachable, match="gone"):
        list(side_by_side([partial(job, number) for number in range(1000)], 1))
    assert len(done) < 1000


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "cutout.fits"
    write_whole(file, b"old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert [each.name for each in file.parent.iterdir()] == ["cutout.fits"]
