"""BP and RP spectra of Gaia DR3 as coefficients: a cone search, then DataLink.

Positions become source ids by a TAP query with the table uploaded: the nearest source within the
radius counts; a source of faint or crowded sky may have no spectrum. The coefficients come from
DataLink as XP_CONTINUOUS, RAW, FITS: what astroquery.gaia.load_data asks for, with the same
parameters. load_data itself unpacks into the working directory, and cannot be repeated or checked.
Positions of the archive are of epoch 2016.0: give a fast star a larger radius.

Limits: DataLink gives at most 5,000 sources a call (www.cosmos.esa.int/web/gaia-users/archive/
datalink-products), a synchronous anonymous query at most 2,000 rows. No rate is published: one
request in two seconds, one at once, is the limit set here.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning

from training.archives.positions import Target, separation_arcsec
from training.archives.report import Outcome, outcome
from training.archives.tap import ask
from training.archives.transfer import (
    Answer,
    Client,
    Clock,
    NotThere,
    Service,
    TransferFailed,
    write_whole,
)
from training.surveys.files import BROKEN_FITS

MAX_IDS_PER_CALL = 5000
MAX_ROWS = 2000
NUM_POSITIONS_PER_QUERY = 500
NUM_COEFFICIENTS = 55
COEFFICIENTS = ("bp_coefficients", "rp_coefficients")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaia:
    """The Gaia archive at ESAC."""

    service: Service = field(
        default_factory=lambda: Service(
            url="https://gea.esac.esa.int",
            requests_per_second=0.5,
            num_at_once=1,
            timeout_s=300.0,  # it thinks before it sends
            max_bytes=1024 * 2**20,
        )
    )
    release: str = "Gaia DR3"
    table: str = "gaiadr3.gaia_source"
    radius_arcsec: float = 1.0
    ids_per_call: int = 1000  # one file each; fewer than allowed, so that less is done again
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if not 0 < self.radius_arcsec <= 60:
            raise ValueError(f"radius must be above 0, to 60 arcsec, got {self.radius_arcsec}")
        if not 1 <= self.ids_per_call <= MAX_IDS_PER_CALL:
            raise ValueError(
                f"expected 1 to {MAX_IDS_PER_CALL} ids a call, got {self.ids_per_call}"
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Archive`."""
        return ("source_id",)

    def check_held(self, target: Target, file: Path) -> None:
        """See `Archive`."""
        stat = file.stat()
        places = _ids_of(str(file), stat.st_mtime_ns, stat.st_size)
        if target.key and int(target.key) not in places:
            raise ValueError(f"{file.name}: source {target.key} is not in it")

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """See `Archive`."""
        with Client(self.service, self.clock) as client:
            wanted: dict[int, list[Target]] = {}
            for target in targets:
                if target.key:
                    wanted.setdefault(int(target.key), []).append(target)
            unknown = [target for target in targets if not target.key]
            for start in range(0, len(unknown), NUM_POSITIONS_PER_QUERY):
                some = unknown[start : start + NUM_POSITIONS_PER_QUERY]
                try:
                    found = self._find(client, some)
                except (NotThere, TransferFailed) as error:
                    for target in some:
                        yield outcome(target, "failed", reason=f"cone search: {error}")
                    continue
                for target in some:
                    source_id, reason = found.get(target.row, (0, self._none_near()))
                    if source_id:
                        wanted.setdefault(source_id, []).append(target)
                    else:
                        yield outcome(target, "nothing", reason=reason)
                # Full calls go out as soon as they are full, so that a stop loses little.
                while len(wanted) >= self.ids_per_call:
                    yield from self._get(client, _take(wanted, self.ids_per_call), out)
            while wanted:
                yield from self._get(client, _take(wanted, self.ids_per_call), out)

    def _none_near(self) -> str:
        return f"no source within {self.radius_arcsec:g} arcsec in {self.release}"

    def _find(self, client: Client, targets: Sequence[Target]) -> dict[int, tuple[int, str]]:
        """Row of the table -> id of the nearest source, or 0 and why not."""
        upload = Table(
            {
                "target_row": np.array([target.row for target in targets], np.int64),
                "target_ra": [target.ra_deg for target in targets],
                "target_dec": [target.dec_deg for target in targets],
            }
        )
        adql = (
            "SELECT u.target_row, g.source_id, g.ra, g.dec, g.has_xp_continuous "
            f"FROM tap_upload.targets AS u JOIN {self.table} AS g ON 1=CONTAINS("
            "POINT('ICRS', g.ra, g.dec), "
            f"CIRCLE('ICRS', u.target_ra, u.target_dec, {self.radius_arcsec / 3600:.9f}))"
        )
        rows = ask(
            client,
            f"{self.service.url}/tap-server/tap/sync",
            adql,
            columns=("target_row", "source_id", "ra", "dec", "has_xp_continuous"),
            upload=upload,
            max_rows=MAX_ROWS,
        )
        by_row = {target.row: target for target in targets}
        nearest: dict[int, tuple[float, int, bool]] = {}
        for row in rows:
            target = by_row[int(row["target_row"])]
            apart = float(separation_arcsec(target, float(row["ra"]), float(row["dec"])))
            has_xp = row["has_xp_continuous"].lower() in ("true", "t", "1")
            if apart <= self.radius_arcsec:
                this = (apart, int(row["source_id"]), has_xp)
                nearest[target.row] = min(this, nearest.get(target.row, this))
        return {
            row: (source_id, "")
            if has_xp
            else (0, f"the nearest source, {source_id}, has no XP spectrum in {self.release}")
            for row, (_, source_id, has_xp) in nearest.items()
        }

    def _get(self, client: Client, wanted: dict[int, list[Target]], out: Path) -> Iterator[Outcome]:
        """One call of DataLink, one file."""
        url = f"{self.service.url}/data-server/data"
        fields = {
            "ID": ",".join(map(str, wanted)),
            "RELEASE": self.release,
            "RETRIEVAL_TYPE": "XP_CONTINUOUS",
            "DATA_STRUCTURE": "RAW",
            "FORMAT": "fits",
            "VALID_DATA": "false",
            "USE_ZIP_ALWAYS": "true",
        }

        def unpacked(answer: Answer) -> bytes:
            content = _unzip(answer.content, self.service.max_bytes)
            strange = set(check_coefficients(content)) - wanted.keys()
            if strange:
                raise ValueError(f"sources that were not asked for: {sorted(strange)[:3]}")
            return content

        try:
            content = client.request("POST", url, unpacked, data=fields)
        except (NotThere, TransferFailed) as error:
            for target in (target for some in wanted.values() for target in some):
                yield outcome(target, "failed", reason=f"DataLink: {error}", url=url)
            return
        arrived = set(check_coefficients(content))
        name = f"xp_continuous_raw-{hashlib.sha256(content).hexdigest()[:12]}.fits"
        if arrived:
            write_whole(out / name, content)
        for source_id, some in wanted.items():
            for target in some:
                if source_id in arrived:
                    yield outcome(target, "fetched", file=name, url=url)
                else:
                    reason = f"DataLink has no XP spectrum of source {source_id}"
                    yield outcome(target, "nothing", reason=reason, url=url)


def check_coefficients(content: bytes) -> tuple[int, ...]:
    """Source ids of a table of XP coefficients, none of no content; looks whether it is whole.

    Raises:
        ValueError: it is something else.
    """
    if not content:
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
                for hdu in tables:
                    names = {name.lower() for name in hdu.columns.names}
                    if {"source_id", *COEFFICIENTS} <= names:
                        for name in COEFFICIENTS:
                            _check_length(hdu.data[name], name)
                        return tuple(int(source) for source in hdu.data["source_id"])
        except (OSError, *BROKEN_FITS) as error:
            raise ValueError(f"truncated or broken FITS: {error}") from error
    raise ValueError(f"no table with source_id, {', '.join(COEFFICIENTS)}")


def _check_length(cells: np.ndarray, name: str) -> None:
    for cell in cells:
        if np.size(cell) not in (0, NUM_COEFFICIENTS):  # a source may lack one of BP and RP
            raise ValueError(f"{name}: expected {NUM_COEFFICIENTS} numbers, got {np.size(cell)}")


def _unzip(content: bytes, max_bytes: int) -> bytes:
    """The one FITS file in an answer of DataLink; checksums are compared on the way."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            members = [each for each in bundle.infolist() if each.filename.endswith(".fits")]
            if not bundle.namelist():
                return b""  # none of the sources has a spectrum
            if len(members) != 1:
                raise ValueError(f"expected one FITS file in the ZIP, got {bundle.namelist()[:5]}")
            if members[0].file_size > max_bytes:
                raise ValueError(f"unpacked it would be {members[0].file_size:,} bytes")
            return bundle.read(members[0])
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"not a whole ZIP file: {error}") from error


@lru_cache(maxsize=64)
def _ids_of(file: str, mtime_ns: int, size: int) -> frozenset[int]:
    return frozenset(check_coefficients(Path(file).read_bytes()))


def _take(wanted: dict[int, list[Target]], number: int) -> dict[int, list[Target]]:
    """Take the first out of a dict."""
    return {key: wanted.pop(key) for key in list(wanted)[:number]}
