"""Colour pictures (JPEG, PNG, or a npz of them) as approximate images in three bands.

They are drawings, not measurements: the stretch is undone approximately (see `stretch`), nothing
is known about their noise but what their sky shows, and few of them say how large they are on the
sky. So `calibrated` is False and no photometry is given.

Scale: where the size of a pixel is known (Space Warps), the central 25 arcsec are cut out. Else
the central half of the picture becomes the 96 pixels, as Galaxy Zoo pictures are scaled to hold
their galaxy in it; sizes on the sky then mean nothing, and a note says so. A file beside the
pictures may say their look and scale (`legend`).

Any JPEG or PNG is accepted: grey, 16 bits (reduced to 8), CMYK, palette. Transparent pixels are
bad, the turn that EXIF asks for is made, of an animation the first frame is shown. A JPEG is
reduced while it is decoded; a PNG above 16 million pixels is cut and reduced before it becomes
floating point, one above 100 million is refused.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image as Picture
from PIL import ImageOps, UnidentifiedImageError

from training.observations import (
    IMAGE_SIZE,
    PIXEL_SCALE_ARCSEC,
    Observation,
    ObservationBatch,
    Skipped,
    fingerprint,
    sky_position,
)
from training.surveys.cutout import cut_out
from training.surveys.files import (
    list_by_suffix,
    open_regular,
    read_regular,
    read_single,
    read_single_again,
    reason,
)
from training.surveys.legend import Legend, legend_file, legend_of
from training.surveys.stretch import grey_level_nmgy, look_of, undo

SUFFIXES = (".jpg", ".jpeg", ".png", ".npz")
MAX_PIXELS = 2**24  # beyond, a picture is cut and reduced once decoded
MAX_DECODED_PIXELS = 100_000_000  # of a PNG, which is decoded whole: 400 MB
_ORIENTATION = 0x0112  # EXIF
# What Pillow lets through when a picture is damaged.
BROKEN_PICTURE = (
    *(OSError, SyntaxError, EOFError, zlib.error, struct.error, KeyError, IndexError, TypeError),
    *(AttributeError, OverflowError, MemoryError, RuntimeError, ZeroDivisionError),
)
RECIPE = "composite 1"  # part of the fingerprint: raise it when the same file gives other pixels
# What zipfile and numpy let through when an archive is damaged.
BROKEN_NPZ = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, EOFError, KeyError),
    *(NotImplementedError, OverflowError, MemoryError),
)
MAX_CACHED_BYTES = 2**28
MAX_NPZ_BYTES = 2**32  # unpacked it lies in memory whole
NAME_ARRAYS = ("object_id", "id", "name", "file", "names", "ids", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A picture as decoded, perhaps reduced, and how wide it was before."""

    rgb: UInt8[ndarray, "y x 3"]
    height: int
    width: int
    transparent: Bool[ndarray, "y x"] | None = None
    notes: tuple[str, ...] = ()  # on what was done to it


@dataclass(frozen=True, slots=True)
class _Crops:
    """The pictures of a npz file."""

    images: UInt8[ndarray, "n y x 3"]
    names: tuple[str, ...]
    positions: tuple[tuple[float, float] | None, ...]  # ra_deg, dec_deg, as they are written


def list_files(source: Path) -> list[Path]:
    """JPEG, PNG and npz files under a folder, sorted; a file is itself. See `Reader`."""
    return list_by_suffix(source, SUFFIXES)


def companions(file: Path) -> tuple[Path, ...]:
    """The legend that counts for a picture. See `Reader`."""
    legend = legend_file(file.absolute())
    return () if legend is None else (legend,)


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The pictures of one file: one of a JPEG or PNG, all of a npz. See `Reader`."""
    file = file.absolute()
    if file.suffix.lower() != ".npz":
        yield read_single(file, _observe)
        return
    try:
        crops, legend = _open_crops(file), legend_of(file)
    except (OSError, ValueError) as error:
        yield ObservationBatch((), (Skipped(str(file), reason(error)),))
        return
    for start in range(0, len(crops.images), batch_size):
        observations, skipped = [], []
        for row in range(start, min(start + batch_size, len(crops.images))):
            try:
                observations.append(_observe_crop(file, crops, row, legend))
            except ValueError as error:
                skipped.append(Skipped(f"{file}[{row}]", reason(error)))
        yield ObservationBatch(tuple(observations), tuple(skipped))


def read_one(source: Path, source_part: str) -> Observation:
    """One picture again; source_part is the row in a npz, "" elsewhere. See `Reader`."""
    file = source.absolute()
    if file.suffix.lower() != ".npz":
        return read_single_again(file, source_part, _observe)
    try:
        crops, legend = _open_crops(file), legend_of(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {reason(error)}") from error
    if not (source_part.isdecimal() and int(source_part) < len(crops.images)):
        raise ValueError(f"{file} has rows 0 to {len(crops.images) - 1}, no part {source_part!r}")
    return _observe_crop(file, crops, int(source_part), legend)


def _observe(file: Path) -> Observation:
    content, legend = read_regular(file), legend_of(file)
    drawn = _decode(content, pixel_scale_arcsec=legend.pixel_scale_arcsec)
    return _observation(file, drawn, legend, name=file.stem, part="", content=content)


def _observe_crop(file: Path, crops: _Crops, row: int, legend: Legend) -> Observation:
    if not crops.names[row].strip():
        raise ValueError("it has no name")
    rgb = crops.images[row]
    drawn = _Drawn(rgb=rgb, height=rgb.shape[0], width=rgb.shape[1])
    return _observation(
        file, drawn, legend, name=crops.names[row], part=str(row),
        content=rgb, position=crops.positions[row],
    )  # fmt: skip


def _observation(
    file: Path,
    drawn: _Drawn,
    legend: Legend,
    *,
    name: str,
    part: str,
    content: bytes | ndarray,
    position: tuple[float, float] | None = None,
) -> Observation:
    if drawn.rgb.min() == drawn.rgb.max():
        raise ValueError(f"an empty picture: every pixel is {drawn.rgb.flat[0]}")
    look = legend.look or look_of(file, drawn.rgb)
    notes = [f"look: {look.name}", *drawn.notes]
    rgb = drawn.rgb
    scale_arcsec = legend.pixel_scale_arcsec or look.pixel_arcsec_by_width.get(drawn.width)
    # What else than its bytes made it: nothing for most, whose fingerprints stay as they were.
    apart = list(drawn.notes)
    if legend.pixel_scale_arcsec is not None:
        apart.append(repr(legend.pixel_scale_arcsec))
    if scale_arcsec is None:
        scale_arcsec = PIXEL_SCALE_ARCSEC * 2 * IMAGE_SIZE / min(drawn.height, drawn.width)
        notes.append("pixel scale unknown: the central half is shown")
        if min(drawn.height, drawn.width) < IMAGE_SIZE:  # enlarging the half would show blocks
            scale_arcsec = PIXEL_SCALE_ARCSEC
            notes[-1] = "pixel scale unknown: every pixel is shown as 0.262 arcsec"
    reduced = drawn.width / rgb.shape[1]
    flux = undo(look, rgb)
    if drawn.transparent is not None:
        flux[:, drawn.transparent] = np.nan
    cutout = cut_out(
        flux[:, ::-1],  # pictures start in the north, images in the south
        bands=look.bands,
        scale_y_arcsec=scale_arcsec * reduced,
        scale_x_arcsec=scale_arcsec * reduced,
        min_sigma_nmgy=grey_level_nmgy(look) / 2,
    )
    ra_deg, dec_deg = (position and sky_position(*position)) or (None, None)
    return Observation(
        survey="composite",
        release="",
        source_id=name,
        object_id=name,
        fingerprint=fingerprint(RECIPE, look.name, content, *apart),
        source=str(file),
        source_part=part,
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=cutout.image,
        calibrated=False,
        notes=(*notes, *cutout.notes),
    )


def _decode(content: bytes, *, pixel_scale_arcsec: float | None = None) -> _Drawn:
    """Bytes of a JPEG or PNG -> RGB; a large one is reduced.

    Raises:
        ValueError: not a picture, truncated or damaged, or too large.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about palettes and metadata
            Picture.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened,
        ):
            return _drawn(opened, pixel_scale_arcsec)
    except UnidentifiedImageError as error:  # its text names a buffer of ours
        raise ValueError("not a JPEG or PNG picture") from error
    except Picture.DecompressionBombError as error:
        raise ValueError(f"too large a picture: {error}") from error
    except BROKEN_PICTURE as error:
        raise ValueError(f"broken picture: {error}") from error


def _drawn(opened: Picture.Image, pixel_scale_arcsec: float | None) -> _Drawn:
    width, height = opened.size
    notes = ["several frames: the first is shown"] if getattr(opened, "n_frames", 1) > 1 else []
    if opened.format == "PNG" and width * height > MAX_DECODED_PIXELS:
        raise ValueError(
            f"too large a picture: expected {MAX_DECODED_PIXELS:,} pixels at most, got "
            f"{width} x {height}"
        )
    needed = 2 * IMAGE_SIZE  # the half that is kept must not fall below the 96 pixels it becomes
    if pixel_scale_arcsec is not None:  # nor a pixel grow beyond those of the image
        shrunk = min(1.0, pixel_scale_arcsec / PIXEL_SCALE_ARCSEC) * min(width, height)
        needed = max(needed, math.ceil(shrunk))
    if opened.format == "JPEG":
        opened.draft("RGB", (needed, needed))
    picture = opened
    if picture.getexif().get(_ORIENTATION, 1) in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
        notes.append("turned as its EXIF says")
        if picture.size != opened.size:
            width, height = height, width
    reduced_to = picture.size[0] / width  # by the decoder
    if picture.mode.startswith("I;16"):
        picture = Picture.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        notes.append("reduced from 16 bits")
    if picture.size[0] * picture.size[1] > MAX_PIXELS:
        picture = _central_square(picture, pixel_scale_arcsec)
        width, height = (round(size / reduced_to) for size in picture.size)
        picture = picture.reduce(max(1, min(picture.size) // needed))
        notes.append("reduced from a larger picture")
    transparent = None
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA"))[:, :, 3]
        if alpha.min() < 128:
            transparent = alpha < 128
            notes.append("transparent pixels are bad")
    rgb = np.asarray(picture.convert("RGB"))
    return _Drawn(rgb=rgb, height=height, width=width, transparent=transparent, notes=tuple(notes))


def _central_square(picture: Picture.Image, pixel_scale_arcsec: float | None) -> Picture.Image:
    """The middle of a picture, all that is looked at, with the same centre; in full colour."""
    side = min(picture.size)
    if pixel_scale_arcsec is not None:
        side = min(side, math.ceil(IMAGE_SIZE * PIXEL_SCALE_ARCSEC / pixel_scale_arcsec) + 4)
    width, height = (side + (size - side) % 2 for size in picture.size)
    left, top = (picture.size[0] - width) // 2, (picture.size[1] - height) // 2
    cut = picture.crop((left, top, left + width, top + height))
    return cut.convert("RGBA" if cut.has_transparency_data else "RGB")


def _open_crops(file: Path) -> _Crops:
    status = file.stat()
    if status.st_size > MAX_CACHED_BYTES:
        return _read_crops(file)
    return _read_crops_cached(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _read_crops_cached(file: Path, mtime_ns: int, num_bytes: int) -> _Crops:
    """A gallery reads many rows of one file one by one; unpacking it each time takes seconds."""
    return _read_crops(file)


def _read_crops(file: Path) -> _Crops:
    """The pictures of a npz: its one uint8 array (n, y, x, 3), named by an array of names.

    Positions come from arrays "ra" and "dec" in degrees, where the file has them.

    Raises:
        ValueError: not a npz or too large, no such array or more than one, or names or positions
            of another length.
        OSError: the file cannot be read.
    """
    try:
        with open_regular(file) as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("expected a npz archive, got a single array")
            num_bytes = _unpacked_bytes(file)
            if num_bytes > MAX_NPZ_BYTES:
                raise ValueError(
                    f"expected a npz of {MAX_NPZ_BYTES:,} bytes unpacked at most, got "
                    f"{num_bytes:,}: split it"
                )
            arrays = {key: archive[key] for key in archive.files}
    except BROKEN_NPZ as error:
        raise ValueError(f"not a npz file that can be read: {error}") from error
    stacks = {
        key: array
        for key, array in arrays.items()
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and array.size
    }
    if len(stacks) != 1:
        shapes = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
        raise ValueError(f"expected one uint8 array (n, y, x, 3) in the npz, got {shapes}")
    (images,) = stacks.values()
    num = len(images)
    names = [f"{file.stem}-{row}" for row in range(num)]
    for key in NAME_ARRAYS:
        if key in arrays:
            if arrays[key].shape != (num,):
                raise ValueError(f"expected {num} names in {key!r}, got {arrays[key].shape}")
            names = [_without_suffix(str(name)) for name in arrays[key].tolist()]
            break
    return _Crops(images, tuple(names), _positions(arrays, num))


def _unpacked_bytes(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _positions(arrays: dict[str, ndarray], num: int) -> tuple[tuple[float, float] | None, ...]:
    """ra and dec of each picture as they are written; all None without the arrays."""
    if not {"ra", "dec"} <= arrays.keys():
        return (None,) * num
    for key in ("ra", "dec"):
        if arrays[key].shape != (num,) or arrays[key].dtype.kind not in "fiu":
            raise ValueError(
                f"expected {num} numbers in degrees in {key!r}, got {arrays[key].dtype} of shape "
                f"{arrays[key].shape}"
            )
    columns = (arrays[key].astype(np.float64).tolist() for key in ("ra", "dec"))
    return tuple(zip(*columns, strict=True))


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name
