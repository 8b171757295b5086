"""Spectra of SDSS and BOSS, DR17: SkyServer says which lie there, the SAS has the files.

Positions become plate, mjd and fibre by SQL on SkyServer, several positions a query, in the payload
of astroquery.sdss. The transfer is not astroquery's: it neither repeats nor checks, and its region
search takes only spectra with a photometric match, after asking for the schema of two tables. What
is fetched is spec-lite (the coadd, no exposures).

Rates. SkyServer: 60 queries a minute, a second apart (SkyServer help, Query Limits). The SAS,
data.sdss.org, publishes none and does not throttle http (sdss3.org/dr10/data_access/bulk.php): four
files a second, four at once, is the limit set here. Above a terabyte it asks to be written to.

Paths: dr16.sdss.org/optical/spectrum/view/data/access; runs 26, 103 and 104 are under sdss/, the
runs of the BOSS pipeline (v5_...) under eboss/.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from training.archives.positions import Target, in_groups, separation_arcsec
from training.archives.report import Outcome, outcome
from training.archives.transfer import (
    Answer,
    Client,
    Clock,
    NotThere,
    Service,
    TransferFailed,
    passes,
    side_by_side,
    write_whole,
)
from training.surveys.files import BROKEN_FITS

COLUMNS = ("ra", "dec", "plate", "mjd", "fiberID", "run2d")
NUM_PER_QUERY = 12  # the query travels in the URL, which the server cuts at 2,048 characters
_NAME = re.compile(r"spec-(\d+)-(\d+)-(\d+)\.fits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fibre:
    """Where a spectrum is in the archive."""

    plate: int
    mjd: int
    fibre: int
    run2d: str
    ra_deg: float
    dec_deg: float

    @property
    def file(self) -> str:
        """Its file name in the archive."""
        return f"spec-{self.plate:04d}-{self.mjd}-{self.fibre:04d}.fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdss:
    """SkyServer and the Science Archive Server."""

    skyserver: Service = field(
        default_factory=lambda: Service(
            url="https://skyserver.sdss.org", requests_per_second=1.0, num_at_once=1
        )
    )
    sas: Service = field(
        default_factory=lambda: Service(
            url="https://data.sdss.org", requests_per_second=4.0, num_at_once=4
        )
    )
    release: int = 17
    radius_arcsec: float = 2.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if not 0 < self.radius_arcsec <= 180:
            raise ValueError(f"radius must be above 0, to 180 arcsec, got {self.radius_arcsec}")

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Archive`."""
        return ("plate", "mjd", "fiberid")

    def check_held(self, target: Target, file: Path) -> None:
        """See `Archive`."""
        named = _NAME.fullmatch(file.name)
        if named is None:
            raise ValueError(f"{file.name}: not the name of a spectrum")
        numbers = (int(named[1]), int(named[2]), int(named[3]))
        if target.key and target.key != "-".join(map(str, numbers)):
            raise ValueError(f"{file.name}: another spectrum than {target.key}")
        check_spectrum(file.read_bytes(), numbers)

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """See `Archive`."""
        with Client(self.skyserver, self.clock) as query, Client(self.sas, self.clock) as files:
            for some in in_groups(targets, NUM_PER_QUERY):
                yield from self._fetch_some(query, files, some, out)

    def _fetch_some(
        self, query: Client, files: Client, targets: Sequence[Target], out: Path
    ) -> Iterator[Outcome]:
        try:
            fibres = self._find(query, targets)
        except (NotThere, TransferFailed) as error:
            for target in targets:
                yield outcome(target, "failed", reason=f"SkyServer: {error}")
            return
        # Two positions may have the same spectrum nearest: its file is asked for once.
        wanted: dict[Fibre, list[Target]] = {}
        for target in targets:
            fibre = self._choose(target, fibres)
            if fibre is None:
                where = f"within {self.radius_arcsec:g} arcsec" if not target.key else "of that id"
                yield outcome(target, "nothing", reason=f"no spectrum {where} in DR{self.release}")
            else:
                wanted.setdefault(fibre, []).append(target)
        jobs = [partial(self._get, files, fibre, some, out) for fibre, some in wanted.items()]
        for outcomes in side_by_side(jobs, self.sas.num_at_once):
            yield from outcomes

    def _find(self, client: Client, targets: Sequence[Target]) -> list[Fibre]:
        from astroquery.sdss import SDSSClass

        payload = SDSSClass().query_sql_async(
            self._sql(targets), data_release=self.release, get_query_payload=True
        )
        url = self.skyserver.url + SDSSClass.QUERY_URL_SUFFIX_DR_NEW.format(dr=self.release)
        return client.request("GET", url, _read_fibres, params=payload)

    def _sql(self, targets: Sequence[Target]) -> str:
        columns = ",".join(f"s.{name}" for name in COLUMNS)
        if targets[0].key:
            ids = (target.key.split("-") for target in targets)
            these = " OR ".join(f"(s.plate={p} AND s.mjd={m} AND s.fiberID={f})" for p, m, f in ids)
            return f"SELECT {columns} FROM SpecObjAll s WHERE {these}"
        radius_arcmin = self.radius_arcsec / 60
        near = " UNION ".join(
            "SELECT specObjID FROM dbo.fGetNearbySpecObjEq"
            f"({target.ra_deg:.6f},{target.dec_deg:.6f},{radius_arcmin:.4f})"
            for target in targets
        )
        return f"SELECT {columns} FROM SpecObj s JOIN ({near}) n ON s.specObjID=n.specObjID"

    def _choose(self, target: Target, fibres: Sequence[Fibre]) -> Fibre | None:
        """The nearest within the radius, or the one of the target's id."""
        if target.key:
            ids = {f"{each.plate}-{each.mjd}-{each.fibre}": each for each in fibres}
            return ids.get(target.key)
        if not fibres:
            return None
        places = np.array([(each.ra_deg, each.dec_deg) for each in fibres])
        apart = separation_arcsec(target, places[:, 0], places[:, 1])
        nearest = int(np.argmin(apart))
        return fibres[nearest] if apart[nearest] <= self.radius_arcsec else None

    def _url(self, fibre: Fibre) -> str:
        survey = "eboss" if fibre.run2d.startswith("v") else "sdss"
        return (
            f"{self.sas.url}/sas/dr{self.release}/{survey}/spectro/redux/{fibre.run2d}"
            f"/spectra/lite/{fibre.plate:04d}/{fibre.file}"
        )

    def _get(
        self, client: Client, fibre: Fibre, targets: Sequence[Target], out: Path
    ) -> list[Outcome]:
        url, numbers = self._url(fibre), (fibre.plate, fibre.mjd, fibre.fibre)

        def whole(answer: Answer) -> bytes:
            check_spectrum(answer.content, numbers)
            return answer.content

        if passes(lambda: check_spectrum((out / fibre.file).read_bytes(), numbers)):
            return [outcome(target, "kept", file=fibre.file, url=url) for target in targets]
        try:
            write_whole(out / fibre.file, client.request("GET", url, whole))
        except (NotThere, TransferFailed) as error:
            return [outcome(target, "failed", reason=str(error), url=url) for target in targets]
        return [outcome(target, "fetched", file=fibre.file, url=url) for target in targets]


def check_spectrum(content: bytes, numbers: tuple[int, int, int]) -> None:
    """Look whether a spec file is whole and is that of a plate, mjd and fibre.

    Raises:
        ValueError: it is something else.
    """
    if not content.startswith(b"SIMPLE  ="):
        raise ValueError(f"not a FITS file: it begins with {content[:20]!r}")
    spectrum, found = False, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                for hdu in hdus:
                    if not isinstance(hdu, fits.BinTableHDU):
                        continue
                    names = {name.lower() for name in hdu.columns.names}
                    if {"flux", "loglam", "ivar"} <= names:
                        spectrum = len(hdu.data) > 0
                    elif found is None and {"plate", "mjd", "fiberid"} <= names:
                        row = hdu.data[0]
                        found = (int(row["plate"]), int(row["mjd"]), int(row["fiberid"]))
        except (OSError, *BROKEN_FITS) as error:
            raise ValueError(f"truncated or broken FITS: {error}") from error
    if not spectrum:
        raise ValueError("no table with flux, loglam and ivar")
    if found is None:
        raise ValueError("no table with plate, mjd and fiberid: truncated, or no spec file")
    if found != numbers:
        raise ValueError(f"another spectrum: expected plate, mjd, fibre {numbers}, got {found}")


def _read_fibres(answer: Answer) -> list[Fibre]:
    """Rows of a SkyServer answer in CSV, whose first line is a comment.

    Raises:
        ValueError: it is not that.
    """
    text = answer.content.decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError("an empty answer")
    header = [name.strip().lower() for name in lines[0].split(",")]
    wanted = [name.lower() for name in COLUMNS]
    if not set(wanted) <= set(header):
        raise ValueError(f"expected a table of {', '.join(COLUMNS)}, got {lines[0][:200]!r}")
    found = []
    for cells in csv.reader(lines[1:]):
        row = dict(zip(header, cells, strict=True))
        found.append(
            Fibre(
                plate=int(row["plate"]),
                mjd=int(row["mjd"]),
                fibre=int(row["fiberid"]),
                run2d=_run(row["run2d"]),
                ra_deg=float(row["ra"]),
                dec_deg=float(row["dec"]),
            )
        )
    return found


def _run(text: str) -> str:
    """The pipeline run, which becomes part of a path.

    Raises:
        ValueError: it is no name of a run.
    """
    run = text.strip()
    if not re.fullmatch(r"\d+|v\d+_\d+_\d+", run):
        raise ValueError(f"expected a run2d such as 26 or v5_13_2, got {run!r}")
    return run
