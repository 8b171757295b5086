"""The 40 token streams of AION-1 as one table.

Source: the released package polymathic-aion 0.0.2 (modality definitions) and Table 9 of
arXiv 2510.17960. An encoder artefact names the streams it uses, and may give them smaller
vocabularies than the release does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "spectrum", "scalar", "multi_scalar", "grid", "field", "ellipses"]


@dataclass(frozen=True, slots=True)
class Stream:
    """One token stream: what it holds, and how the released AION-1 tokenizes it."""

    key: str  # token key
    codec: str  # folder under codecs/
    survey: str
    kind: Kind
    vocabulary: int
    num_tokens: int
    unit: str
    quantity: str  # catalogue column or description
    log: bool = False  # quantized in natural logarithm
    searchable: bool = True  # may feed the encoder when it makes search vectors


def _scalars(
    survey: str, unit: str, columns: dict[str, str], *, log: bool = False, searchable: bool = True
) -> tuple[Stream, ...]:
    return tuple(
        Stream(key, column, survey, "scalar", 1024, 1, unit, column, log, searchable)
        for key, column in columns.items()
    )


_GRIZY = "grizy"
_LEGACY = "legacysurvey"
_LEGACY_BANDS = ("G", "R", "I", "Z", "W1", "W2", "W3", "W4")

STREAMS: tuple[Stream, ...] = (
    Stream("tok_image", "image", _LEGACY, "image", 4375, 576, "nmgy / pixel", "DES-G, R, I, Z"),
    Stream("tok_image_hsc", "image", "hsc", "image", 4375, 576, "zero point 27", "HSC-G to HSC-Y"),
    Stream("tok_segmap", "segmentation_map", _LEGACY, "field", 1000, 144, "0 to 1", "object mask"),
    Stream(
        "tok_spectrum_desi", "spectrum", "desi", "spectrum", 1024, 273,
        "1e-17 erg/s/cm2/Angstrom", "spectrum",
    ),
    Stream(
        "tok_spectrum_sdss", "spectrum", "sdss", "spectrum", 1024, 273,
        "1e-17 erg/s/cm2/Angstrom", "spectrum",
    ),
    Stream("tok_z", "Z", "", "grid", 1025, 1, "", "redshift", searchable=False),
    Stream(
        "catalog", "catalog", _LEGACY, "ellipses", 3468, 50, "pixel, arcsec",
        "X, Y, SHAPE_E1, SHAPE_E2, SHAPE_R of neighbours",
    ),
    *_scalars(
        _LEGACY, "nmgy",
        {f"tok_flux_{b.lower()}": f"FLUX_{b}" for b in _LEGACY_BANDS},
        log=True,
    ),
    *_scalars(_LEGACY, "arcsec", {"tok_shape_r": "SHAPE_R"}, log=True),
    *_scalars(_LEGACY, "", {"tok_shape_e1": "SHAPE_E1", "tok_shape_e2": "SHAPE_E2"}),
    *_scalars(_LEGACY, "mag", {"tok_ebv": "EBV"}, searchable=False),
    *_scalars("hsc", "mag", {f"tok_a_{b}": f"a_{b}" for b in _GRIZY}, searchable=False),
    *_scalars("hsc", "AB mag", {f"tok_mag_{b}": f"{b}_cmodel_mag" for b in _GRIZY}),
    *_scalars(
        "hsc", "arcsec^2", {f"tok_shape{ij}": f"i_sdssshape_shape{ij}" for ij in (11, 22, 12)}
    ),
    *_scalars(
        "gaia", "electron / s",
        {f"tok_flux_{b}_gaia": f"phot_{b}_mean_flux" for b in ("g", "bp", "rp")}, log=True,
    ),
    *_scalars("gaia", "mas", {"tok_parallax": "parallax"}, log=True),
    *_scalars("gaia", "deg", {"tok_ra": "ra", "tok_dec": "dec"}, searchable=False),
    *(
        Stream(f"tok_xp_{arm}", f"{arm}_coefficients", "gaia", "multi_scalar", 1024, 55, "", arm)
        for arm in ("bp", "rp")
    ),
)  # fmt: skip

STREAM: dict[str, Stream] = {stream.key: stream for stream in STREAMS}
VIEWS = ("image", "spectrum", "xp", "joint")  # what one vector of an object was made from
