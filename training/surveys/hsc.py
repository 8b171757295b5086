"""Cutouts of Hyper Suprime-Cam (HSC-SSP, PDR3): one FITS file a band with image, mask, variance.

The files of one object are grouped (see `hsc_groups`); `list_files` gives the first of each group,
in the order g, r, i, z, y, and the others are its `companions`. A group is read with the bands it
has: those that are missing are in a note, those that are damaged in `skipped`. The native 0.168
arcsec pixel is kept; `hsc_frames` says what pixels and masks mean. Magnitudes and shapes come from
tables beside the cutouts (`hsc_tables`); without one there is no photometry.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from training.observations import (
    HSC_PIXEL_SCALE_ARCSEC,
    CatalogueValue,
    Observation,
    ObservationBatch,
    Skipped,
    fingerprint,
)
from training.surveys.cutout import NATIVE_TOLERANCE, cut_out, upright
from training.surveys.files import FITS_SUFFIXES, list_by_suffix, reason
from training.surveys.hsc_frames import Frame, open_frame
from training.surveys.hsc_groups import (
    BANDS,
    SAME_OBJECT_ARCSEC,
    Group,
    folder_of,
    group_of,
    place_name,
)
from training.surveys.hsc_tables import Measured, measured

RECIPE = "hsc 1"  # part of the fingerprint: raise it when the same file gives other pixels


def list_files(source: Path) -> list[Path]:
    """The first file of every group under a folder, sorted; of a file, of its own. See `Reader`.

    Left out are tables, and PSFs, which the archive gives beside the cutouts (`psf-*.fits`).
    """
    found = list_by_suffix(source, FITS_SUFFIXES)
    if len(found) == 1 and found[0] == source.absolute():
        return [group_of(found[0]).files[0]]
    files = set()
    for file in found:
        group = folder_of(file).groups.get(file.name)
        if group is not None:
            files.add(group.files[0])
        elif not file.is_file():  # a broken link, a closed folder: reading it gives the reason
            files.add(file)
    if not files:
        raise ValueError(f"{source}: expected HSC cutouts, found tables and PSFs alone")
    return sorted(files)


def companions(file: Path) -> tuple[Path, ...]:
    """The other bands of a group and the tables beside them. See `Reader`."""
    file = file.absolute()
    others = {*group_of(file).files, *_tables(file)} - {file}
    return tuple(sorted(others))


def read(file: Path, *, batch_size: int = 64) -> Iterator[ObservationBatch]:
    """The object that a file is a band of. See `Reader`."""
    yield _read(file.absolute())


def read_one(source: Path, source_part: str) -> Observation:
    """The object that a file is a band of, again. See `Reader`."""
    source = source.absolute()
    if source_part:
        raise ValueError(f"{source} holds one object, it has no part {source_part!r}")
    batch = _read(source)
    if not batch.observations:
        raise ValueError("; ".join(f"{bad.file}: {bad.reason}" for bad in batch.skipped))
    return batch.observations[0]


def _read(file: Path) -> ObservationBatch:
    group = group_of(file)
    frames, skipped = [], []
    for path, band in zip(group.files, group.bands, strict=True):
        try:
            frames.append(open_frame(path, band))
        except (OSError, ValueError) as error:
            skipped.append(Skipped(str(path), reason(error)))
    if not frames:
        return ObservationBatch((), tuple(skipped))
    try:
        observation, apart = _observe(file, group, frames)
    except (OSError, ValueError) as error:
        return ObservationBatch((), (*skipped, Skipped(str(file), reason(error))))
    return ObservationBatch((observation,), (*skipped, *apart))


def _observe(file: Path, group: Group, frames: list[Frame]) -> tuple[Observation, list[Skipped]]:
    first = frames[0]
    ra_deg, dec_deg = first.centre_deg
    bands: list[str] = []
    planes, ivars, apart = [], [], []
    for frame in frames:
        try:
            flux, ivar = _on_grid(frame, first)
        except ValueError as error:
            apart.append(Skipped(str(file), f"{', '.join(frame.bands)}: {reason(error)}"))
            continue
        twice = sorted(set(frame.bands) & set(bands))
        if twice:
            raise ValueError(f"two files are of {twice[0]}")
        bands += frame.bands
        planes.append(flux)
        ivars.append(ivar)
    known = None if any(ivar is None for ivar in ivars) else [i for i in ivars if i is not None]
    stack = np.concatenate([*planes, *(known or [])])
    turned = upright(stack, first.wcs.pixel_scale_matrix)
    scales = (turned.scale_y_arcsec, turned.scale_x_arcsec)
    flux, ivar = turned.planes[: len(bands)], turned.planes[len(bands) :] if known else None
    notes = [f"{path.name} left out: its band is there twice" for path in group.repeated]
    if max(abs(scale / HSC_PIXEL_SCALE_ARCSEC - 1) for scale in scales) >= NATIVE_TOLERANCE:
        area = np.float32(HSC_PIXEL_SCALE_ARCSEC**2 / (scales[0] * scales[1]))
        flux = flux * area
        ivar = None if ivar is None else ivar / area**2
        notes.append(f"resampled from {scales[0]:.3f} arcsec per pixel")
    cutout = cut_out(
        flux,
        bands=tuple(bands),
        scale_y_arcsec=scales[0],
        scale_x_arcsec=scales[1],
        ivar=ivar,
        pixel_scale_arcsec=HSC_PIXEL_SCALE_ARCSEC,
    )
    missing = [band for band in BANDS if band not in bands]
    if missing:
        notes.append(f"bands missing: {', '.join(missing)}")
    notes += dict.fromkeys(note for frame in frames for note in frame.notes)
    name = group.name or place_name(group.rerun, ra_deg, dec_deg)
    row, why = measured(_tables(file), name=group.name, ra_deg=ra_deg, dec_deg=dec_deg)
    scalars = {} if row is None else dict(row.scalars)
    observation = Observation(
        survey="hsc",
        release=group.rerun,
        source_id=name,
        object_id=(row.object_id if row else "") or name,
        fingerprint=fingerprint(
            RECIPE, repr(sorted(scalars.items())), *(frame.content for frame in frames)
        ),
        source=str(file),
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        image=cutout.image,
        scalars=scalars,
        catalogue=_photometry(row),
        calibrated=all(frame.calibrated for frame in frames),
        notes=(*notes, *cutout.notes, *([row.note] if row else []), *why),
    )
    return observation, apart


def _on_grid(
    frame: Frame, first: Frame
) -> tuple[Float32[ndarray, "band y x"], Float32[ndarray, "band y x"] | None]:
    """The planes of a frame on the pixels of the first one, NaN where it does not reach.

    Cutouts of one object can differ by a row or a column between bands.

    Raises:
        ValueError: its pixels are others, or it is centred elsewhere.
    """
    if frame is first:
        return frame.flux, frame.ivar
    step = first.wcs.pixel_scale_matrix
    if np.abs(frame.wcs.pixel_scale_matrix - step).max() > NATIVE_TOLERANCE * np.abs(step).max():
        raise ValueError("its pixels are not those of the other bands (another scale or angle)")
    height, width = first.flux.shape[1:]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    ra_deg, dec_deg = first.centre_deg
    x, y = frame.wcs.wcs_world2pix(ra_deg, dec_deg, 0)
    if not np.isfinite([x, y]).all():
        raise ValueError("the WCS gives no position at the image centre")
    gap = np.array([x, y]) - [(size - 1) / 2 for size in frame.flux.shape[:0:-1]]
    apart_arcsec = float(np.hypot(*(step @ gap)) * 3600)
    if apart_arcsec > 2 * SAME_OBJECT_ARCSEC:
        raise ValueError(f"it is centred {apart_arcsec:,.1f} arcsec from the other bands")
    shift_x, shift_y = (round(step) for step in (np.array([x, y]) - centre).tolist())
    flux = _shifted(frame.flux, shift_y, shift_x, (height, width))
    ivar = None
    if frame.ivar is not None:
        ivar = _shifted(frame.ivar, shift_y, shift_x, (height, width))
    return flux, ivar


def _shifted(
    planes: Float32[ndarray, "band y x"], shift_y: int, shift_x: int, shape: tuple[int, int]
) -> Float32[ndarray, "band y2 x2"]:
    """planes[:, y + shift_y, x + shift_x] for every y, x of a shape, NaN beyond the edge."""
    moved = np.full((len(planes), *shape), np.nan, np.float32)
    rows, columns = np.arange(shape[0]) + shift_y, np.arange(shape[1]) + shift_x
    inside_y = (rows >= 0) & (rows < planes.shape[1])
    inside_x = (columns >= 0) & (columns < planes.shape[2])
    moved[:, inside_y[:, None] & inside_x] = planes[:, rows[inside_y]][
        :, :, columns[inside_x]
    ].reshape(len(planes), -1)
    return moved


def _photometry(row: Measured | None) -> dict[str, CatalogueValue]:
    """Columns of the object table from the cmodel magnitudes (AB, extinction not corrected)."""
    columns: dict[str, CatalogueValue] = {}
    for band in "grizy":
        magnitude = row.scalars.get(f"tok_mag_{band}") if row else None
        if magnitude is not None:
            columns[f"mag_{band}"] = magnitude
            columns[f"flux_{band}_nmgy"] = float(10 ** (0.4 * (22.5 - magnitude)))
    return columns


def _tables(file: Path) -> tuple[Path, ...]:
    """Tables in the folder of a file, else beside that folder where the archive packed it."""
    tables = folder_of(file).tables
    if not tables and file.parent.name.startswith("arch-"):
        return folder_of(file.parent).tables
    return tables
