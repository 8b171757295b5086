"""Subsets of the Multimodal Universe on the Hugging Face hub: the files of the cells one asks for.

A data set is a repository MultimodalUniverse/NAME with files CONFIG/healpix=N/*.hdf5, N the nested
HEALPix cell of nside 16; the DESI subset has DESI's own, nside 64, told by its larger numbers. A
file holds all objects of a cell, up to gigabytes: it is fetched whole.

huggingface_hub does it all: addresses, tokens, resuming, other attempts at 429 and 5xx. Rates for
one address and 5 minutes: 500 questions, 3,000 files (huggingface.co/docs/hub/rate-limits); here
one folder is listed and one file fetched at a time, which stays far below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from training.archives.positions import Target, separation_arcsec
from training.archives.report import Outcome, outcome
from training.archives.transfer import ArchiveUnreachable, NotThere, TransferFailed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
OWNER = "MultimodalUniverse"
HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")
NSIDE = 16
NSIDE_DESI = 64
_FOLDER = re.compile(r"healpix=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultimodalUniverse:
    """Data sets of the Multimodal Universe on the hub."""

    subset: str = ""  # NAME/CONFIG, such as desi/edr_sv3
    endpoint: str = "https://huggingface.co"
    owner: str = OWNER
    revision: str = "main"
    radius_arcsec: float = 1.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", self.subset):
            raise ValueError(
                f"expected a subset NAME/CONFIG such as desi/edr_sv3, got {self.subset!r}"
            )
        if not 0 < self.radius_arcsec <= 60:
            raise ValueError(f"radius must be above 0, to 60 arcsec, got {self.radius_arcsec}")

    @property
    def keys(self) -> tuple[str, ...]:
        """None: the files are found by position."""
        return ()

    @property
    def repository(self) -> str:
        """The data set's repository."""
        return f"{self.owner}/{self.subset.partition('/')[0]}"

    @property
    def config(self) -> str:
        """The folder of the subset in it."""
        return self.subset.partition("/")[2]

    def check_held(self, target: Target, file: Path) -> None:
        """See `Archive`."""
        ra_deg, dec_deg = read_places(file)
        self._check_near(target, ra_deg, dec_deg)

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """See `Archive`."""
        from astropy import units as u
        from astropy.coordinates import Latitude, Longitude
        from cdshealpix.nested import lonlat_to_healpix
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint)
        folders = self._ask(lambda: self._folders(api))
        nside = NSIDE if max(folders, default=0) < 12 * NSIDE**2 else NSIDE_DESI
        cells = lonlat_to_healpix(
            Longitude([target.ra_deg for target in targets] * u.deg),
            Latitude([target.dec_deg for target in targets] * u.deg),
            int(np.log2(nside)),
        )
        for cell in np.unique(cells):
            some = [target for target, each in zip(targets, cells, strict=True) if each == cell]
            if int(cell) not in folders:
                for target in some:
                    reason = f"{self.subset} has nothing in HEALPix cell {cell}"
                    yield outcome(target, "nothing", reason=reason)
                continue
            yield from self._get_cell(api, folders[int(cell)], some, out)

    def _get_cell(
        self, api: HfApi, folder: str, targets: Sequence[Target], out: Path
    ) -> Iterator[Outcome]:
        url = f"{self.endpoint}/datasets/{self.repository}/resolve/{self.revision}/{folder}"
        try:
            names = self._ask(lambda: self._names(api, folder))
            files = [self._ask(partial(self._download, name, out)) for name in names]
            places = [read_places(file) for file in files]
        except (NotThere, TransferFailed, ValueError) as error:
            for target in targets:
                yield outcome(target, "failed", reason=str(error), url=url)
            return
        for target in targets:
            held = ""
            for name, (ra_deg, dec_deg) in zip(names, places, strict=True):
                try:
                    self._check_near(target, ra_deg, dec_deg)
                    held = name
                except ValueError as error:
                    reason = str(error)
            if held:
                yield outcome(
                    target,
                    "fetched",
                    file=held,
                    url=f"{self.endpoint}/datasets/"
                    f"{self.repository}/resolve/{self.revision}/{held}",
                )
            else:
                yield outcome(target, "nothing", reason=reason, url=url)

    def _check_near(self, target: Target, ra_deg: np.ndarray, dec_deg: np.ndarray) -> None:
        apart = separation_arcsec(target, ra_deg, dec_deg)
        if not len(apart) or not np.nanmin(apart) <= self.radius_arcsec:
            raise ValueError(f"no object within {self.radius_arcsec:g} arcsec in {self.subset}")

    def _folders(self, api: HfApi) -> dict[int, str]:
        """HEALPix cell -> its folder."""
        found = {}
        for entry in api.list_repo_tree(
            self.repository, self.config, revision=self.revision, repo_type="dataset"
        ):
            named = _FOLDER.fullmatch(entry.path.rpartition("/")[2])
            if named:
                found[int(named[1])] = entry.path
        return found

    def _names(self, api: HfApi, folder: str) -> list[str]:
        entries = api.list_repo_tree(
            self.repository, folder, revision=self.revision, repo_type="dataset"
        )
        names = sorted(entry.path for entry in entries if entry.path.endswith(".hdf5"))
        if not names:
            raise NotThere(f"{folder}: no HDF5 file")
        return names

    def _download(self, name: str, out: Path) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                self.repository,
                name,
                repo_type="dataset",
                revision=self.revision,
                local_dir=out,
                endpoint=self.endpoint,
                etag_timeout=self.timeout_s,
            )
        )

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer of the hub, its errors in the words of the other archives."""
        from huggingface_hub import errors

        try:
            return question()
        except errors.LocalEntryNotFoundError as error:
            raise ArchiveUnreachable(
                f"{self.endpoint} cannot be reached: {_root(error)}"
            ) from error
        except (errors.EntryNotFoundError, errors.RepositoryNotFoundError) as error:
            raise NotThere(f"{self.subset}: not on the hub: {_root(error)}") from error
        except errors.HfHubHTTPError as error:
            raise TransferFailed(_root(error)) from error
        except Exception as error:
            # The hub's releases speak through different libraries, each with errors of its own.
            if type(error).__module__.partition(".")[0] not in HTTP_LIBRARIES:
                raise
            said = f"{type(error).__name__}: {_root(error)}"
            if any(word in type(error).__name__ for word in ("Connect", "Timeout", "Proxy")):
                raise ArchiveUnreachable(
                    f"{self.endpoint} cannot be reached ({said}): is there a network?"
                ) from error
            raise TransferFailed(said) from error


def read_places(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination of every object of an HDF5 file; looks whether it is one.

    Raises:
        ValueError: it is something else.
    """
    import h5py

    try:
        with h5py.File(file) as content:
            missing = [name for name in ("object_id", "ra", "dec") if name not in content]
            if missing:
                raise ValueError(f"{file.name}: no {', '.join(missing)} in it")
            lengths = {name: len(content[name]) for name in content}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"{file.name}: columns of different lengths: {lengths}")
            return np.asarray(content["ra"][:], float), np.asarray(content["dec"][:], float)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{file.name}: truncated or broken HDF5: {error}") from error


def _root(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
