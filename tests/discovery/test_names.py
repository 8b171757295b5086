"""Published names, asked of a Sesame on this machine; and the public names of the package."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import pytest
from astropy.coordinates.name_resolve import sesame_url

import discovery
from discovery import Query, Sky
from discovery.positions import resolve_name

from .conftest import object_id, positions


class Sesame(BaseHTTPRequestHandler):
    """Knows one object, the first of the test sky, under the name Skykin 1."""

    def do_GET(self) -> None:
        """Answer as CDS Sesame does in its plain format."""
        ra_deg, dec_deg = positions()[object_id(0)]
        known = "Skykin" in self.path
        answer = (
            f"# Skykin 1\n%J {ra_deg:.7f} {dec_deg:+.7f} = \n" if known else "# Nothing found\n"
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def sesame() -> Iterator[str]:
    """The address of a Sesame that answers while the context lasts."""
    with HTTPServer(("127.0.0.1", 0), Sesame) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_name_is_a_position(sky: Sky) -> None:
    with sesame() as address, sesame_url.set([address]):
        hits = sky.search(Query(name="Skykin 1", k=2))
    assert hits.seed.object_id == object_id(0)
    assert hits.seed.separation_arcsec == pytest.approx(0, abs=1e-3)
    assert hits.num_without_position == 2


def test_an_unknown_name_is_said() -> None:
    with sesame() as address, sesame_url.set([address]), pytest.raises(ValueError, match="NGC 0"):
        resolve_name("NGC 0")


def test_without_network_a_name_is_refused_in_plain_words() -> None:
    with sesame() as address:
        pass  # nobody listens there any more
    with (
        sesame_url.set([address]),
        pytest.raises(ValueError, match=r"could not resolve the name 'M 31'.*needs the network"),
    ):
        resolve_name("M 31")


def test_public_names_are_what_is_promised() -> None:
    visible = {
        name
        for name, value in vars(discovery).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert list(discovery.__all__) == sorted(discovery.__all__)
    assert visible == set(discovery.__all__)
