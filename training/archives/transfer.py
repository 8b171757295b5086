"""Requests to a public archive: slow enough, few at once, repeated when it stumbles.

OSError
└── ArchiveUnreachable   no answer at all: no network, or the archive is down
ValueError
├── NotThere             the archive says that it does not have this
└── TransferFailed       refused, or not right after every attempt; the message says what came

Only http and https are spoken. A redirect is followed within the site (the last two parts of the
host name), never from https to http.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
NUM_REDIRECTS = 5
FIRST_WAIT_S = 1.0  # before the second attempt; doubled for each further one
MAX_WAIT_S = 120.0
MAX_ASKED_WAIT_S = 900.0  # an archive that asks to wait longer (Retry-After) is taken at its word
NUM_FAILURES_IN_A_ROW = 5  # requests without any answer after which the archive counts as down
COME_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MISSING = frozenset({404, 410})
MAX_EXCERPT = 4096  # bytes of an error that are looked at


class ArchiveUnreachable(OSError):
    """No answer at all: no network, or the archive is down."""


class NotThere(ValueError):
    """The archive says that it does not have this."""


class TransferFailed(ValueError):
    """Refused, or not right after every attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One web service, and how it wants to be treated."""

    url: str  # without a slash at the end
    requests_per_second: float
    num_at_once: int = 2
    timeout_s: float = 60.0  # longest silence
    deadline_s: float = 900.0  # longest answer
    num_attempts: int = 5
    max_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"expected a http or https URL, got {self.url!r}")
        if not (self.requests_per_second > 0 and self.num_at_once > 0 and self.num_attempts > 0):
            raise ValueError(f"rate, number at once and attempts must be positive: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time as the transfers see it."""

    now: Callable[[], float] = time.monotonic  # seconds
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random  # in [0, 1), spreads the waiting times


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service sent, whole."""

    content: bytes
    headers: dict[str, str]  # names in lower case
    url: str


class Pace:
    """Hands out the moments at which requests may start, evenly spaced."""

    def __init__(self, requests_per_second: float, clock: Clock) -> None:
        self._interval_s = 1 / requests_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock.now()

    def wait(self) -> float:
        """Sleep until it is one's turn; the moment of that turn."""
        with self._lock:
            now = self._clock.now()
            turn = max(now, self._next)
            self._next = turn + self._interval_s
        if turn > now:
            self._clock.sleep(turn - now)
        return turn

    def hold(self, seconds: float) -> None:
        """Nobody's turn comes before that many seconds have passed."""
        with self._lock:
            self._next = max(self._next, self._clock.now() + seconds)


class Client:
    """Requests to one service; may be used from several threads."""

    def __init__(self, service: Service, clock: Clock | None = None) -> None:
        import httpx

        self.service = service
        self._clock = clock or Clock()
        self._pace = Pace(service.requests_per_second, self._clock)
        self._places = threading.BoundedSemaphore(service.num_at_once)
        self._answered = False
        self._gone = ""  # why the archive counts as down
        self._silent_in_a_row = 0
        self._http = httpx.Client(
            timeout=httpx.Timeout(service.timeout_s),
            limits=httpx.Limits(max_connections=service.num_at_once),
            # identity: the length that is promised is the length of the file.
            headers={
                "User-Agent": f"skykin/{version('skykin')}",
                "Accept-Encoding": "identity",
            },
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        url: str,
        check: Callable[[Answer], T],
        *,
        params: dict[str, str] | None = None,
        data: dict[str, str] | None = None,
        files: dict[str, tuple[str, bytes, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        """What `check` makes of the answer; asked again while the service stumbles.

        A check raises ValueError where something else came than was asked for. That is asked for
        again too, since a busy service answers with error pages; NotThere is final.

        Raises:
            ArchiveUnreachable: the service never answered, or no longer does.
            NotThere: it does not have this.
            TransferFailed: anything else.
        """
        import httpx

        problem = ""
        asked_s = 0.0
        silent = False
        for attempt in range(self.service.num_attempts):
            if self._gone:
                raise ArchiveUnreachable(self._gone)
            if attempt:
                self._clock.sleep(max(asked_s, self._backoff_s(attempt)))
            asked_s, silent = 0.0, False
            try:
                request = self._http.build_request(
                    method, url, params=params, data=data, files=files, headers=headers
                )
                answer = self._follow(request)
                return check(answer)
            except NotThere:
                raise
            except _ComeAgain as error:
                problem, asked_s = str(error), error.wait_s
                if asked_s > MAX_ASKED_WAIT_S:
                    raise TransferFailed(
                        f"{problem}: asks to come again in {asked_s:.0f} s"
                    ) from error
                if asked_s:
                    self._pace.hold(asked_s)
            except _Final as error:
                raise TransferFailed(str(error)) from error
            except httpx.InvalidURL as error:
                raise TransferFailed(f"bad URL: {error}") from error
            except (httpx.ConnectError, httpx.ProxyError, httpx.TimeoutException) as error:
                problem, silent = self._silence(error), True
            except httpx.HTTPError as error:
                problem = f"broken off: {_line(error)}"
            except ValueError as error:
                problem = _line(error)
        if silent:
            self._count_silence(problem)
        raise TransferFailed(f"{problem} (after {self.service.num_attempts} attempts)")

    def _follow(self, request: httpx.Request) -> Answer:
        """Send a request and follow its redirects, each of them at its turn."""
        for _ in range(NUM_REDIRECTS + 1):
            reply = self._once(request)
            if isinstance(reply, Answer):
                return reply
            request = reply
        raise _Final(f"more than {NUM_REDIRECTS} redirects, the last one to {request.url}")

    def _once(self, request: httpx.Request) -> Answer | httpx.Request:
        with self._places:
            self._pace.wait()
            started = self._clock.now()
            response = self._http.send(request, stream=True)
            try:
                self._answered, self._silent_in_a_row = True, 0
                if response.is_redirect:
                    return self._redirected(request, response)
                self._check_status(response)
                content = self._body(response, started)
            finally:
                response.close()
        answer = Answer(
            content=content,
            headers={name.lower(): value for name, value in response.headers.items()},
            url=str(response.url),
        )
        _check_not_html(answer)
        return answer

    def _body(self, response: httpx.Response, started: float) -> bytes:
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > self.service.max_bytes:
                raise _Final(f"longer than {self.service.max_bytes / 2**20:.0f} MiB: given up")
            if self._clock.now() - started > self.service.deadline_s:
                raise ValueError(
                    f"too slow: {len(content):,} bytes in {self.service.deadline_s:g} s"
                )
        promised = response.headers.get("content-length")
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        if promised is not None and not encoded and int(promised) != len(content):
            raise ValueError(f"truncated: {len(content):,} of {int(promised):,} bytes")
        return bytes(content)

    def _redirected(self, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        place = response.url.join(response.headers["location"])
        if place.scheme not in ("http", "https"):
            raise _Final(f"redirected to {place.scheme or 'no'} scheme: {place}: refused")
        if place.scheme == "http" and response.url.scheme == "https":
            raise _Final(f"redirected from https to http: {place}: refused")
        if _site(place.host) != _site(response.url.host):
            raise _Final(f"redirected to another site, {place.host}: refused")
        if response.status_code in (307, 308):
            return self._http.build_request(
                request.method,
                place,
                content=request.read(),
                headers={
                    name: value
                    for name, value in request.headers.items()
                    if name in ("content-type", "range")
                },
            )
        kept = {"range": request.headers["range"]} if "range" in request.headers else None
        return self._http.build_request("GET", place, headers=kept)

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        said = f"HTTP {status} {response.reason_phrase}".strip()
        if status in COME_AGAIN:
            raise _ComeAgain(said, _retry_after_s(response.headers.get("retry-after", "")))
        if status in MISSING:
            raise NotThere(said)
        raise _Final(": ".join(filter(None, [said, _excerpt(response)])))

    def _backoff_s(self, attempt: int) -> float:
        """Between half and all of 1, 2, 4... seconds, so that clients do not come in step."""
        longest = min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
        return longest * (0.5 + 0.5 * self._clock.chance())

    def _silence(self, error: Exception) -> str:
        if "Timeout" in type(error).__name__:
            return f"no answer within {self.service.timeout_s:g} s"
        return f"cannot connect: {_line(error)}"

    def _count_silence(self, problem: str) -> None:
        self._silent_in_a_row += 1
        if not self._answered:
            self._gone = f"{self.service.url} cannot be reached ({problem}): is there a network?"
        elif self._silent_in_a_row >= NUM_FAILURES_IN_A_ROW:
            self._gone = f"{self.service.url} no longer answers ({problem})"
        if self._gone:
            raise ArchiveUnreachable(self._gone)


class _ComeAgain(Exception):
    """The service asks for another attempt."""

    def __init__(self, said: str, wait_s: float) -> None:
        super().__init__(said)
        self.wait_s = wait_s


class _Final(Exception):
    """Another attempt would give the same."""


def side_by_side(jobs: Iterable[Callable[[], T]], num_at_once: int) -> Iterator[T]:
    """Do jobs, few at once; results in the order in which they are ready.

    The first exception stops what has not begun, and is raised.
    """
    with ThreadPoolExecutor(num_at_once, thread_name_prefix="fetch") as pool:
        try:
            for future in as_completed([pool.submit(job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def passes(check: Callable[[], object]) -> bool:
    """Whether the file of an earlier run is there and passes its check; else it is fetched anew."""
    try:
        check()
    except (OSError, ValueError):
        return False
    return True


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that, whenever the power fails, it is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def utc_now() -> str:
    """The present moment, ISO 8601 in seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _excerpt(response: httpx.Response) -> str:
    """The beginning of what an error says, without markup."""
    start = next(response.iter_bytes(MAX_EXCERPT), b"").decode("utf-8", "replace")
    return " ".join(re.sub(r"<[^>]*>", " ", start).split())[:200]


def _check_not_html(answer: Answer) -> None:
    start = answer.content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        title = b""
        _, found, rest = answer.content[:65536].partition(b"<title>")
        if found:
            title = rest.partition(b"</title>")[0]
        said = " ".join(title.decode("utf-8", "replace").split())[:120]
        raise ValueError(f"a web page came instead of data{f': {said}' if said else ''}")


def _retry_after_s(text: str) -> float:
    """Seconds that a Retry-After header asks for, 0 where it asks for none."""
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _site(host: str) -> str:
    """The last two parts of a name; an address of numbers is a site of its own."""
    if ":" in host or host.replace(".", "").isdecimal():
        return host
    return ".".join(host.lower().split(".")[-2:])


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__
