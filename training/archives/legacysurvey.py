"""Cutouts of the Legacy Surveys: FITS, griz, DR10, as the sky viewer makes them.

Source: www.legacysurvey.org/viewer/urls (fits-cutout: ra, dec, layer, pixscale, bands, size; at
most 3,000 pixels). The viewer publishes no rate; each cutout is computed when it is asked for, so
one request a second, two at once, is the limit set here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, WcsError

from training.archives.positions import Target, separation_arcsec
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

PIXEL_SCALE_ARCSEC = 0.262
MAX_SIZE_PX = 3000
CENTRE_TOLERANCE_PX = 1.0  # of an even and an odd number of pixels the centre is half a pixel apart


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacySurvey:
    """The cutout service of the sky viewer."""

    service: Service = field(
        default_factory=lambda: Service(
            url="https://www.legacysurvey.org", requests_per_second=1.0, num_at_once=2
        )
    )
    layer: str = "ls-dr10"
    bands: str = "griz"
    size_px: int = 160  # the size in the Multimodal Universe; the encoder sees the central 96
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= MAX_SIZE_PX:
            raise ValueError(f"size must be 1 to {MAX_SIZE_PX} pixels, got {self.size_px}")

    @property
    def keys(self) -> tuple[str, ...]:
        """None: the viewer knows only positions."""
        return ()

    def url(self, target: Target) -> str:
        """Address of the cutout around a target."""
        query = {
            "ra": f"{target.ra_deg:.7f}",
            "dec": f"{target.dec_deg:.7f}",
            "layer": self.layer,
            "pixscale": f"{PIXEL_SCALE_ARCSEC}",
            "bands": self.bands,
            "size": str(self.size_px),
        }
        return f"{self.service.url}/viewer/fits-cutout?{urlencode(query)}"

    def check_held(self, target: Target, file: Path) -> None:
        """See `Archive`."""
        self.check(target, file.read_bytes())

    def fetch(self, targets: Sequence[Target], out: Path) -> Iterator[Outcome]:
        """See `Archive`."""
        with Client(self.service, self.clock) as client:
            jobs = [partial(self._get, client, target, out) for target in targets]
            yield from side_by_side(jobs, self.service.num_at_once)

    def check(self, target: Target, content: bytes) -> None:
        """Look whether a cutout is whole and shows the target.

        Raises:
            NotThere: every pixel is empty, the survey has no image there.
            ValueError: it is something else.
        """
        if not content.startswith(b"SIMPLE  ="):
            raise ValueError(f"not a FITS file: it begins with {content[:20]!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            try:
                with fits.open(io.BytesIO(content), memmap=False) as hdus:
                    image = next(
                        (hdu for hdu in hdus if hdu.is_image and hdu.header["NAXIS"]), None
                    )
                    if image is None:
                        raise ValueError("no image in the file")
                    header, pixels = image.header, image.data
                centre = WCS(header, naxis=2).wcs_pix2world(
                    [[(header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2]], 0
                )[0]
            except (OSError, WcsError, *BROKEN_FITS) as error:
                raise ValueError(f"truncated or broken FITS: {error}") from error
        expected = (len(self.bands), self.size_px, self.size_px)
        if pixels is None or pixels.shape != expected:
            got = None if pixels is None else pixels.shape
            raise ValueError(f"expected pixels {expected} (band, y, x), got {got}")
        bands = str(header.get("BANDS", "")).strip()
        if bands != self.bands:
            raise ValueError(
                f"expected bands {self.bands}, got {bands or 'no BANDS in the header'}"
            )
        offset_px = float(separation_arcsec(target, *centre)) / PIXEL_SCALE_ARCSEC
        if not offset_px <= CENTRE_TOLERANCE_PX:
            raise ValueError(
                f"another place: its centre is {centre[0]:.6f}, {centre[1]:.6f}, "
                f"{offset_px * PIXEL_SCALE_ARCSEC:.1f} arcsec from what was asked for"
            )
        if not (np.isfinite(pixels) & (pixels != 0)).any():
            raise NotThere(f"outside the footprint of {self.layer}: every pixel is empty")

    def _get(self, client: Client, target: Target, out: Path) -> Outcome:
        url, name = self.url(target), f"{target.name}.fits"

        def whole(answer: Answer) -> bytes:
            self.check(target, answer.content)
            return answer.content

        if passes(lambda: self.check_held(target, out / name)):
            return outcome(target, "kept", file=name, url=url)
        try:
            write_whole(out / name, client.request("GET", url, whole))
        except NotThere as error:
            return outcome(target, "nothing", reason=str(error), url=url)
        except TransferFailed as error:
            return outcome(target, "failed", reason=str(error), url=url)
        return outcome(target, "fetched", file=name, url=url)
