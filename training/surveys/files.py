"""Survey files on disk: finding them, opening FITS, and turning a bad one into a reason."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
import stat
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
from training.surveys.fits_layout import damage

# What astropy lets through when a header is damaged.
BROKEN_FITS = (
    fits.VerifyError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
    EOFError, zlib.error,  # of gzip
)  # fmt: skip
MAX_WHOLE_BYTES = 512 << 20  # of a file that is held in memory: ten times a brick coadd
# Of a file that is unpacked onto the disk. Real ones shrink to a half or a tenth, and masks of one
# value to a 200th; deflate goes down to a 1,000th, bzip2 far below.
MAX_UNPACKED_RATIO = 200
MAX_UNPACKED_BYTES = 64 << 30
_PIECE_BYTES = 1 << 20
GZIP_START, BZIP2_START = b"\x1f\x8b", b"BZh"
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
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are no text where text is expected"
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


def open_regular(file: Path) -> io.BufferedReader:
    """Open a file to read it; the one way in which readers do.

    Raises:
        OSError: it is empty, not there, a folder, or a pipe, which would wait for ever, or a
            device, which may have no end.
    """
    status = file.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError("expected a regular file, got a pipe, socket or device")
    if status.st_size == 0:
        raise OSError("empty file")
    return file.open("rb")


def read_regular(file: Path) -> bytes:
    """The content of a file that `open_regular` opens, of MAX_WHOLE_BYTES at most.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is larger.
    """
    with open_regular(file) as stream:
        return read_whole(stream)


def read_whole(stream: io.BufferedIOBase) -> bytes:
    """What is left of a stream; raise ValueError where it is more than MAX_WHOLE_BYTES."""
    pieces, num = [], 0
    while piece := stream.read(_PIECE_BYTES):  # read(n) would take n bytes of memory at once
        pieces.append(piece)
        num += len(piece)
        if num > MAX_WHOLE_BYTES:
            raise ValueError(f"larger than {MAX_WHOLE_BYTES >> 20} MiB")
    return b"".join(pieces)


def pieces_unpacked(packed: io.BufferedIOBase) -> Iterator[bytes]:
    """The content of an open gzip or bzip2 file, piece by piece, checked to its end.

    A file of some MB may hide terabytes: past MAX_UNPACKED_RATIO times its size (but no less than
    MAX_WHOLE_BYTES), or MAX_UNPACKED_BYTES, it is given up.

    Raises:
        ValueError: it is truncated or damaged, or unpacks to more than that.
    """
    num_packed = packed.seek(0, os.SEEK_END)
    limit = min(MAX_UNPACKED_BYTES, max(MAX_WHOLE_BYTES, MAX_UNPACKED_RATIO * num_packed))
    packed.seek(0)
    is_gzip = packed.read(2) == GZIP_START
    packed.seek(0)
    num = 0
    try:
        with gzip.GzipFile(fileobj=packed) if is_gzip else bz2.BZ2File(packed) as stream:
            while piece := stream.read(_PIECE_BYTES):
                num += len(piece)
                if num > limit:
                    raise ValueError(f"unpacks to more than {limit >> 20} MiB: given up")
                yield piece
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        kind = "gzip" if is_gzip else "bzip2"
        raise ValueError(f"truncated or damaged {kind} file: {error}") from error


def _unpack(packed: bytes) -> bytes:
    content = bytearray()
    for piece in pieces_unpacked(io.BytesIO(packed)):
        content += piece
        if len(content) > MAX_WHOLE_BYTES:
            raise ValueError(f"unpacks to more than {MAX_WHOLE_BYTES >> 20} MiB")
    return bytes(content)


@contextmanager
def open_fits(file: Path) -> Iterator[OpenFits]:
    """Open a FITS file; astropy's warnings about its style stay inside.

    Raises:
        OSError: the file cannot be read or is not FITS.
        ValueError: it is truncated or a header is damaged, perhaps found while it is used.
    """
    content = read_regular(file)
    if content.startswith((GZIP_START, BZIP2_START)):  # astropy unpacks from files, not memory
        content = _unpack(content)
    if not content.startswith(b"SIMPLE  ="):
        raise OSError("not a FITS file: it does not begin with SIMPLE")
    amiss = damage(io.BytesIO(content))  # astropy leaves out an HDU whose header is spoilt
    if amiss:
        raise ValueError(amiss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(io.BytesIO(content), memmap=False) as hdus:
                yield OpenFits(hdus, content)
        except BROKEN_FITS as error:
            raise ValueError(plainly(error)) from error


def pixels(hdu: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) -> ndarray | None:
    """The pixels of an image HDU as native float32, None where it has none.

    Raises:
        ValueError: they are damaged.
    """
    data = stored_pixels(hdu)
    return None if data is None else np.ascontiguousarray(data, dtype=np.float32)


def stored_pixels(hdu: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) -> ndarray | None:
    """The pixels of an image HDU in the type they are stored in. See `pixels`."""
    try:
        data: ndarray | None = hdu.data
    except Exception as error:  # unpacking Rice fails with an exception in no public module
        raise ValueError("damaged: its pixels cannot be unpacked") from error
    return data


def plainly(error: Exception) -> str:
    """One of BROKEN_FITS, or of what else astropy lets through, in plain words."""
    if isinstance(error, fits.VerifyError):
        return str(error)
    if isinstance(error, KeyError):
        return f"broken FITS header: there is no card {error.args[0]!r}"
    return "broken FITS file: what a header says and what follows it do not fit together"
