"""Survey files on disk: finding them, opening FITS, and turning a bad one into a reason."""

from __future__ import annotations

import gzip
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy import ndarray

from training.observations import Observation, ObservationBatch, Skipped

# What astropy lets through when a header is damaged.
BROKEN_FITS = (
    fits.VerifyError, KeyError, IndexError, TypeError, OverflowError, MemoryError,
    EOFError, zlib.error,  # of gzip
)  # fmt: skip
MAX_UNPACKED_BYTES = 512 << 20  # ten times a brick coadd
FITS_STARTS = (b"SIMPLE  =", b"\x1f\x8b", b"BZh", b"PK")  # plain, gzip, bzip2, zip
FITS_SUFFIXES = (".fits", ".fits.gz", ".fit", ".fits.fz")


def list_by_suffix(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files under a folder whose names end in one of the suffixes, sorted; a file is itself.

    Whatever bears such a name is listed, also a broken link, and so is a folder that cannot be
    opened: reading it then gives the reason. Links to folders are not followed.

    Raises:
        ValueError: the source does not exist, or no such file is in it.
    """
    source = source.absolute()
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if not source.is_dir():
        return [source]
    refused: list[OSError] = []
    found = [
        Path(folder, name)
        for folder, folders, files in os.walk(source, onerror=refused.append)
        for name in (*folders, *files)
        if name.lower().endswith(suffixes) and not name.startswith(".")
    ]
    found = sorted({*found, *(Path(error.filename) for error in refused)})
    if not found:
        raise ValueError(f"{source}: empty folder: expected files ending in {', '.join(suffixes)}")
    return found


def stem(file: Path) -> str:
    """The file name without its ending, `.fits.gz` and the like counted as one ending."""
    for suffix in sorted(FITS_SUFFIXES, key=len, reverse=True):
        if file.name.lower().endswith(suffix):
            return file.name[: -len(suffix)]
    return file.stem


def reason(error: OSError | ValueError) -> str:
    """One line that says what is wrong with a file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def read_single(file: Path, observe: Callable[[Path], Observation]) -> ObservationBatch:
    """The batch of a file that holds one object: that object, or why it is left out."""
    try:
        return ObservationBatch((observe(file),))
    except (OSError, ValueError) as error:
        return ObservationBatch((), (Skipped(str(file), reason(error)),))


def read_single_again(
    file: Path, source_part: str, observe: Callable[[Path], Observation]
) -> Observation:
    """The object of a file that holds one.

    Raises:
        ValueError: a part was asked for, or the file cannot be used.
    """
    if source_part:
        raise ValueError(f"{file} holds one object, it has no part {source_part!r}")
    try:
        return observe(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error


@dataclass(frozen=True, slots=True)
class OpenFits:
    """A FITS file in memory."""

    hdus: fits.HDUList
    content: bytes  # without gzip


def _unpack(packed: bytes) -> bytes:
    """The content of a gzip file of at most MAX_UNPACKED_BYTES: a small one may hide terabytes."""
    try:
        with gzip.open(io.BytesIO(packed)) as stream:
            content = stream.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"truncated or damaged gzip file: {error}") from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise ValueError(f"unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
    return content


@contextmanager
def open_fits(file: Path) -> Iterator[OpenFits]:
    """Open a FITS file; astropy's warnings about its style stay inside.

    Raises:
        OSError: the file cannot be read or is not FITS.
        ValueError: its headers are damaged, found while it is used.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would wait for ever
        raise OSError("expected a regular file, got a pipe, socket or device")
    content = file.read_bytes()
    if content.startswith(b"\x1f\x8b"):  # astropy unpacks gzip from files, not from memory
        content = _unpack(content)
    if not content.startswith(FITS_STARTS):
        raise OSError("not a FITS file: it does not begin with SIMPLE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                yield OpenFits(hdus, content)
        except BROKEN_FITS as error:
            raise ValueError(f"broken FITS header: {type(error).__name__}: {error}") from error


def pixels(hdu: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) -> ndarray | None:
    """The pixels of an image HDU as native float32, None where it has none.

    Raises:
        ValueError: the file ends before the pixels do.
    """
    try:
        data = hdu.data
    except Exception as error:  # unpacking Rice fails with an exception in no public module
        raise ValueError(
            f"truncated: the header promises {hdu.header.get('NAXIS')} axes of pixels, "
            f"the file ends before them ({error})"
        ) from error
    return None if data is None else np.ascontiguousarray(data, dtype=np.float32)
