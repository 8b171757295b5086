"""Spectra of DESI DR1: the redshift table at NOIRLab says which lie there, the public files have
them.

Positions become TARGETID, survey, program and HEALPix pixel by TAP on desi_dr1.zpix (Astro Data
Lab). The spectra are rows of healpix/SURVEY/PROGRAM/GROUP/PIXEL/coadd-*.fits at data.desi.lbl.gov:
only those rows, of every HDU that has one row a target, are read out of the remote file and written
in the same layout, one small coadd and one redrock file a target.

Why not SPARCL: its client receives spectra as a pickle, which runs whatever the sender put in it;
it has them on the merged grid, without the arms, the resolution and the FIBERMAP that the DESI
reader uses; and its search tells no pixel.

Rates: neither service publishes one. One query a second and eight ranges a second, two at once, are
the limits set here; a target takes some fifty ranges of 64 KiB.

Source: data.desi.lbl.gov/doc/organization; desidatamodel, coadd-SURVEY-PROGRAM-PIXNUM and redrock.
"""

from __future__ import annotations

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
from training.archives.remote_file import RemoteFile
from training.archives.report import Outcome, outcome
from training.archives.tap import Row, ask, boxes
from training.archives.transfer import (
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

COLUMNS = (
    "targetid", "survey", "program", "healpix", "mean_fiber_ra", "mean_fiber_dec", "zcat_primary",
)  # fmt: skip
MAX_ROWS = 10_000
NUM_PER_QUERY = 50
ARMS = ("B", "R", "Z")
KINDS = ("coadd", "redrock")
_NAME = re.compile(r"coadd-([a-z0-9]+)-([a-z]+)-(\d+)-(\d+)\.fits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a spectrum is in the archive."""

    targetid: int
    survey: str
    program: str
    pixel: int  # HEALPix, nside 64, nested

    def file(self, kind: str) -> str:
        """The name of its own small file."""
        return f"{kind}-{self.survey}-{self.program}-{self.pixel}-{self.targetid}.fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desi:
    """The Astro Data Lab and the public files at NERSC."""

    datalab: Service = field(
        default_factory=lambda: Service(
            url="https://datalab.noirlab.edu", requests_per_second=1.0, num_at_once=1,
            timeout_s=300.0,
        )
    )  # fmt: skip
    files: Service = field(
        default_factory=lambda: Service(
            url="https://data.desi.lbl.gov", requests_per_second=8.0, num_at_once=2
        )
    )
    table: str = "desi_dr1.zpix"
    path: str = "public/dr1/spectro/redux/iron/healpix"
    radius_arcsec: float = 1.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if not 0 < self.radius_arcsec <= 60:
            raise ValueError(f"radius must be above 0, to 60 arcsec, got {self.radius_arcsec}")

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Archive`."""
        return ("targetid",)

    def check_held(self, target: Target, file: Path) -> None:
        """See `Archive`."""
        named = _NAME.fullmatch(file.name)
        if named is None:
            raise ValueError(f"{file.name}: not the name of a spectrum")
        if target.key and int(target.key) != int(named[4]):
            raise ValueError(f"{file.name}: another target than {target.key}")
        place = Place(
            survey=named[1], program=named[2], pixel=int(named[3]), targetid=int(named[4])
        )
        for kind in KINDS:
            check_file(kind, file.with_name(place.file(kind)).read_bytes(), place.targetid)

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """See `Archive`."""
        with Client(self.datalab, self.clock) as query, Client(self.files, self.clock) as files:
            for some in in_groups(targets, NUM_PER_QUERY):
                yield from self._fetch_some(query, files, some, out)

    def _fetch_some(
        self, query: Client, files: Client, targets: Sequence[Target], out: Path
    ) -> Iterator[Outcome]:
        try:
            rows = self._find(query, targets)
        except (NotThere, TransferFailed) as error:
            for target in targets:
                yield outcome(target, "failed", reason=f"Data Lab: {error}")
            return
        # All targets of one remote file together, so that its headers are read once.
        pixels: dict[tuple[str, str, int], dict[Place, list[Target]]] = {}
        for target in targets:
            try:
                place = self._choose(target, rows)
            except ValueError as error:
                yield outcome(target, "failed", reason=f"Data Lab: {error}")
                continue
            if place is None:
                where = f"within {self.radius_arcsec:g} arcsec" if not target.key else "of that id"
                yield outcome(target, "nothing", reason=f"no spectrum {where} in {self.table}")
            else:
                pixel = (place.survey, place.program, place.pixel)
                pixels.setdefault(pixel, {}).setdefault(place, []).append(target)
        jobs = [partial(self._get, files, wanted, out) for wanted in pixels.values()]
        for outcomes in side_by_side(jobs, self.files.num_at_once):
            yield from outcomes

    def _find(self, client: Client, targets: Sequence[Target]) -> list[Row]:
        if targets[0].key:
            these = f"targetid IN ({','.join(target.key for target in targets)})"
        else:
            places = [(target.ra_deg, target.dec_deg) for target in targets]
            these = boxes("mean_fiber_ra", "mean_fiber_dec", places, self.radius_arcsec)
        return ask(
            client,
            f"{self.datalab.url}/tap/sync",
            f"SELECT {', '.join(COLUMNS)} FROM {self.table} WHERE {these}",
            columns=COLUMNS,
            max_rows=MAX_ROWS,
        )

    def _choose(self, target: Target, rows: Sequence[Row]) -> Place | None:
        """The primary spectrum of the nearest target, or of that id."""
        if target.key:
            near = [row for row in rows if row["targetid"] == target.key]
        else:
            apart = [
                float(
                    separation_arcsec(
                        target, float(row["mean_fiber_ra"]), float(row["mean_fiber_dec"])
                    )
                )
                for row in rows
            ]
            if not apart or min(apart) > self.radius_arcsec:
                return None
            nearest = rows[int(np.argmin(apart))]["targetid"]
            near = [row for row in rows if row["targetid"] == nearest]
        primary = [row for row in near if row["zcat_primary"].lower() in ("true", "t", "1")]
        return next((_place(row) for row in (*primary, *near)), None)

    def _get(self, client: Client, wanted: dict[Place, list[Target]], out: Path) -> list[Outcome]:
        """The spectra that lie in one remote coadd."""
        one = next(iter(wanted))
        folder = f"{one.survey}/{one.program}/{one.pixel // 100}/{one.pixel}"
        urls = {
            kind: f"{self.files.url}/{self.path}/{folder}/"
            f"{kind}-{one.survey}-{one.program}-{one.pixel}.fits"
            for kind in KINDS
        }
        done: list[Outcome] = []
        missing: dict[Place, list[Target]] = {}
        for place, targets in wanted.items():
            file = place.file("coadd")
            if passes(partial(self.check_held, targets[0], out / file)):
                done += [outcome(each, "kept", file=file, url=urls["coadd"]) for each in targets]
            else:
                missing[place] = targets
        if not missing:
            return done
        ids = [place.targetid for place in missing]
        try:
            cut = {kind: cut_rows(client, urls[kind], kind, ids) for kind in KINDS}
        except (NotThere, TransferFailed, ValueError) as error:
            return done + [
                outcome(each, "failed", reason=str(error), url=urls["coadd"])
                for targets in missing.values()
                for each in targets
            ]
        for place, targets in missing.items():
            file = place.file("coadd")
            try:
                for kind in reversed(KINDS):  # the coadd last: where it is, its redrock is too
                    content = cut[kind][place.targetid]
                    check_file(kind, content, place.targetid)
                    write_whole(out / place.file(kind), content)
            except (KeyError, ValueError) as error:
                why = str(error) if isinstance(error, ValueError) else "not in the coadd"
                done += [outcome(each, "failed", reason=why, url=urls["coadd"]) for each in targets]
            else:
                done += [outcome(each, "fetched", file=file, url=urls["coadd"]) for each in targets]
        return done


def cut_rows(client: Client, url: str, kind: str, targetids: Sequence[int]) -> dict[int, bytes]:
    """Rows of some targets out of a remote coadd or redrock file, as a file each.

    HDUs without one row a target, such as EXP_FIBERMAP, are left out; wavelengths are kept whole.

    Raises:
        ArchiveUnreachable, NotThere, TransferFailed: as `Client.request`.
        ValueError: it is no such file.
    """
    lead = "FIBERMAP" if kind == "coadd" else "REDSHIFTS"
    remote = RemoteFile(client, url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            made = _cut_file(remote, lead, targetids)
    except (OSError, AttributeError, *BROKEN_FITS, ValueError) as error:
        raise remote.failure or ValueError(f"{url}: not a {kind} file: {error}") from error
    if remote.failure is not None:
        raise remote.failure
    return made


def _cut_file(remote: RemoteFile, lead: str, targetids: Sequence[int]) -> dict[int, bytes]:
    with fits.open(io.BufferedReader(remote, 2880), memmap=False, lazy_load_hdus=True) as hdus:
        order = [int(each) for each in hdus[lead].data["TARGETID"]]
        rows = {each: order.index(each) for each in targetids if each in order}
        made = {each: fits.HDUList([hdus[0].copy()]) for each in rows}
        for hdu in hdus[1:]:
            for targetid, row in rows.items():
                part = _cut(hdu, row, len(order))
                if part is not None:
                    made[targetid].append(part)
        return {targetid: _bytes(each) for targetid, each in made.items()}


def _cut(
    hdu: fits.BinTableHDU | fits.ImageHDU | fits.CompImageHDU, row: int, num_rows: int
) -> fits.BinTableHDU | fits.ImageHDU | None:
    """One row of an HDU that has one a target, all of a wavelength grid, None of others."""
    if isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU):
        if hdu.header["NAXIS2"] != num_rows or "EXPID" in hdu.columns.names:
            return None
        return fits.BinTableHDU(hdu.data[row : row + 1], name=hdu.name)
    if len(hdu.shape) < 2:
        return fits.ImageHDU(hdu.data, header=_own_cards(hdu.header), name=hdu.name)
    if hdu.shape[0] != num_rows:
        return None
    piece = hdu.section[row : row + 1]
    return fits.ImageHDU(piece, header=_own_cards(hdu.header), name=hdu.name)


def _own_cards(header: fits.Header) -> fits.Header:
    """Unit and the like; what describes the old layout is written anew."""
    return fits.Header([card for card in header.cards if card.keyword in ("BUNIT", "EXTNAME")])


def check_file(kind: str, content: bytes, targetid: int) -> None:
    """Look whether a coadd or redrock file is whole and has the one target.

    Raises:
        ValueError: it is something else.
    """
    lead = "FIBERMAP" if kind == "coadd" else "REDSHIFTS"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                ids = [int(each) for each in hdus[lead].data["TARGETID"]]
                last = hdus[len(hdus) - 1].fileinfo()
                if last["datLoc"] + last["datSpan"] != len(content):
                    raise ValueError("truncated: it ends within a header")
                for hdu in hdus:
                    if hdu.data is not None and hdu.verify_checksum() == 0:
                        raise ValueError(f"{hdu.name}: its checksum is another")
                for arm in ARMS if kind == "coadd" else ():
                    length = len(hdus[f"{arm}_WAVELENGTH"].data)
                    for part in ("FLUX", "IVAR", "MASK"):
                        shape = hdus[f"{arm}_{part}"].data.shape
                        if shape != (1, length):
                            raise ValueError(f"{arm}_{part}: expected (1, {length}), got {shape}")
        except (OSError, AttributeError, *BROKEN_FITS) as error:
            raise ValueError(f"broken {kind} file: {error}") from error
    if ids != [targetid]:
        raise ValueError(f"another target: expected TARGETID {targetid}, got {ids[:3]}")


def _bytes(hdus: fits.HDUList) -> bytes:
    content = io.BytesIO()
    hdus.writeto(content, checksum=True)
    return content.getvalue()


def _place(row: Row) -> Place:
    """Where a row's spectrum is; the words become part of a path.

    Raises:
        ValueError: they are no words.
    """
    survey, program = row["survey"], row["program"]
    if not (re.fullmatch(r"[a-z0-9]+", survey) and re.fullmatch(r"[a-z]+", program)):
        raise ValueError(f"unexpected survey {survey!r} or program {program!r}")
    return Place(
        targetid=int(row["targetid"]), survey=survey, program=program, pixel=int(row["healpix"])
    )
