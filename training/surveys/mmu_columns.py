"""The Multimodal Universe's columns, and what each of them is in an observation.

Seven data sets, one entry each. A column has one name in HDF5 (`image_array`) and another in
Parquet, where it may be a field of a struct or of a list of structs (`image.flux`); releases have
renamed some. All names of one quantity stand together, the first that a file has is used.

What the masks mean differs. The images' builders write True where a pixel is GOOD (none of the
MASKBITS 0 to 7, 11, 14, 15 of the Legacy Survey; none of BAD, SAT, NO_DATA of HSC), the spectra's
builders write True where it is BAD (a bit of the pipeline's mask is set, or ivar <= 1e-6).

ZWARN is a number of bits in HDF5. In HATS it is True where there is a warning; data sets written
by the hub's own scripts have True where there is NONE (desi.py: "if flag is 0, then no problem").

Source: github.com/MultimodalUniverse/MultimodalUniverse, scripts/*/build_parent_sample.py and the
scripts/*/<name>.py beside them; catalog_functions/*.py for HATS; arXiv 2412.02527.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.observations import HSC_PIXEL_SCALE_ARCSEC, PIXEL_SCALE_ARCSEC
from training.surveys.gaia_source import CATALOGUE, MAGNITUDE

GAIA_GROUP = {"ruwe": "flags", "radial_velocity": "radial_velocity"}  # of the others: astrometry

Names = tuple[str, ...]  # one quantity under the names that it has had

OBJECT_ID: Names = ("object_id", "source_id")
RA_DEG: Names = ("ra", "RA", "astrometry.ra")
DEC_DEG: Names = ("dec", "DEC", "astrometry.dec")
IMAGE: dict[str, Names] = {
    "flux": ("image_array", "image.flux", "image.array", "image_flux"),
    "ivar": ("image_ivar", "image.ivar"),
    "mask": ("image_mask", "image.mask", "bit_mask", "image.bit_mask"),
    "band": ("image_band", "image.band"),
    "scale": ("image_scale", "image.scale"),
}
SPECTRUM: dict[str, Names] = {
    "flux": ("spectrum_flux", "spectrum.flux"),
    "ivar": ("spectrum_ivar", "spectrum.ivar"),
    "mask": ("spectrum_mask", "spectrum.mask"),
    "wavelength": ("spectrum_lambda", "spectrum.lambda"),
}
XP: dict[str, Names] = {
    "coefficients": ("coeff", "spectral_coefficients.coeff"),
    "errors": ("coeff_error", "spectral_coefficients.coeff_error"),
}
PICTURE: dict[str, Names] = {
    "rgb": ("images", "rgb_image", "rgb_image.bytes"),
    "scale": ("pxscale", "rgb_pixel_scale"),
}
SOURCES: dict[str, Names] = {
    name: (f"catalog_{name}", f"catalog.{name}")
    for name in ("X", "Y", "SHAPE_R", "SHAPE_E1", "SHAPE_E2", "TYPE")
}
OBJECT_MASK: Names = ("object_mask", "object_mask.bytes")
# Number of a type in catalog_TYPE and object_mask; 0 is padding, or no object.
SOURCE_TYPES = ("", "PSF", "REX", "EXP", "DEV", "SER", "DUP")
GZ10_CLASSES = (
    *("disturbed", "merging", "round smooth", "in-between round smooth", "cigar shaped smooth"),
    *("barred spiral", "unbarred tight spiral", "unbarred loose spiral"),
    *("edge-on without bulge", "edge-on with bulge"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One number of an object and where it goes: a token stream, the object table, or both."""

    columns: Names
    element: int | None = None  # which of the values in a cell
    token: str = ""  # key of a stream (modalities)
    catalogue: str = ""  # column of the object table
    low: float = -math.inf  # a value outside of the two means that there is none
    high: float = math.inf
    zero_is_missing: bool = False
    only_with: str = ""  # means something where this token key has a value alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """What the numbers in a data set's images are."""

    band_prefix: str
    pixel_scale_arcsec: float
    zero_point_mag: float  # AB
    mask_true_is: Literal["good", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redshift:
    """Where a redshift is, and what must hold for it to be trusted."""

    columns: Names
    source: str  # who measured it
    warning: Names = ()  # trusted where 0; () = no flag is kept, see the entry's comment
    error: Names = ()
    spectrum_class: Names = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set of the Multimodal Universe."""

    name: str  # of its folder
    survey: str
    needs: Names  # it has one of these
    marks: Names  # and one of these, which others that hold the same kind of data lack
    image: Pixels | None = None
    spectrum: bool = False
    xp: bool = False
    picture: bool = False  # a display image in place of a calibrated one
    redshift: Redshift | None = None
    scalars: tuple[Scalar, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()  # column, the only good value, what else is
    texts: tuple[tuple[str, str], ...] = ()  # column of text, column of the object table
    label: Names = ()  # number of a class
    id_columns: Names = ()  # what the survey's own ids are made of


def _each(
    columns: dict[str, tuple[str, str]],
    *,
    group: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    zero_is_missing: bool = False,
    only_with: str = "",
) -> tuple[Scalar, ...]:
    """Column -> (token key, catalogue column); either may be empty."""
    return tuple(
        Scalar(
            columns=(name, f"{group}.{name}") if group else (name,),
            token=token,
            catalogue=catalogue,
            low=low,
            high=high,
            zero_is_missing=zero_is_missing,
            only_with=only_with,
        )
        for name, (token, catalogue) in columns.items()
    )


_SHAPE_SCALARS = (
    *_each({"SHAPE_R": ("tok_shape_r", "radius_arcsec")}, low=1e-6),
    *_each(
        {"SHAPE_E1": ("tok_shape_e1", ""), "SHAPE_E2": ("tok_shape_e2", "")},
        low=-1.0,
        high=1.0,
        only_with="tok_shape_r",
    ),
)
_LEGACY_SCALARS = (
    *_each({f"FLUX_{b}": (f"tok_flux_{b.lower()}", f"flux_{b.lower()}_nmgy") for b in "GRIZ"}),
    *_each({f"FLUX_W{n}": (f"tok_flux_w{n}", "") for n in range(1, 5)}),
    *_SHAPE_SCALARS,
    *_each({"EBV": ("tok_ebv", "")}, low=0.0),
)
_HSC_SCALARS = (
    *_each({f"a_{b}": (f"tok_a_{b}", "") for b in "grizy"}),
    *_each({f"{b}_cmodel_mag": (f"tok_mag_{b}", f"mag_{b}") for b in "grizy"}, low=0.0, high=50.0),
    *_each({f"i_sdssshape_shape{ij}": (f"tok_shape{ij}", "") for ij in (11, 22, 12)}),
)
_SDSS_SCALARS = tuple(
    Scalar(columns=columns, element=element, catalogue=f"flux_{band}_nmgy", zero_is_missing=True)
    for number, band in enumerate("ugriz")
    for columns, element in (
        (("SPECTROFLUX",), number),  # HDF5
        ((f"SPECTROFLUX_{band.upper()}",), None),  # Parquet
    )
)
_DESI_SCALARS = (
    *_each(
        {
            f"FLUX_{b.upper()}": (f"tok_flux_{b}", f"flux_{b}_nmgy")
            for b in ("g", "r", "z", "w1", "w2")
        },
        zero_is_missing=True,
    ),
    *_SHAPE_SCALARS,
    *_each({"EBV": ("tok_ebv", "")}, low=0.0, zero_is_missing=True),
)
_GAIA_SCALARS = (
    *_each(
        {f"phot_{b}_mean_flux": (f"tok_flux_{b}_gaia", "") for b in MAGNITUDE},
        group="photometry",
    ),
    *_each(
        {f"phot_{b}_mean_mag": ("", column) for b, column in MAGNITUDE.items()},
        group="photometry",
    ),
    *(
        scalar
        for name, column in CATALOGUE.items()
        for group in (GAIA_GROUP.get(name, "astrometry"),)
        for scalar in _each(
            {name: ("tok_parallax" if name == "parallax" else "", column)}, group=group
        )
    ),
    *_each({"ra": ("tok_ra", ""), "dec": ("tok_dec", "")}, group="astrometry"),
)
_PROVABGS_SCALARS = (
    Scalar(columns=("LOG_MSTAR", "PROVABGS_LOGMSTAR_BF"), catalogue="log10_stellar_mass_msun"),
    *_each(
        {
            "Z_MW": ("", "stellar_metallicity"),  # mass weighted
            "TAGE_MW": ("", "age_gyr"),  # mass weighted
            "AVG_SFR": ("", "sfr_msun_per_year"),
        }
    ),
    *_each({f"MAG_{b}": ("", f"mag_{b.lower()}") for b in "GRZ"}, low=1.0, high=50.0),
)
# Their builders keep science targets alone; files of other origin may hold more.
_SCIENCE_FIBRES = (
    ("OBJTYPE", "TGT", "a sky or bad fibre"),
    ("COADD_FIBERSTATUS", "0", "a fibre with a problem"),
)

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        name="legacysurvey",
        survey="legacysurvey",
        needs=IMAGE["flux"],
        marks=("FLUX_W1", "FLUX_I", "SHAPE_E1", "BRICKNAME", *OBJECT_MASK, *SOURCES["X"]),
        image=Pixels(
            band_prefix="DES-",
            pixel_scale_arcsec=PIXEL_SCALE_ARCSEC,
            zero_point_mag=22.5,
            mask_true_is="good",
        ),
        scalars=_LEGACY_SCALARS,
        texts=(("TYPE", "morphology"),),
        id_columns=("RELEASE", "BRICKID", "OBJID"),
    ),
    Dataset(
        name="hsc",
        survey="hsc",
        needs=IMAGE["flux"],
        marks=("i_cmodel_mag", "i_sdssshape_shape11", *(f"a_{band}" for band in "grizy")),
        image=Pixels(
            band_prefix="HSC-",
            pixel_scale_arcsec=HSC_PIXEL_SCALE_ARCSEC,
            zero_point_mag=27.0,
            mask_true_is="good",
        ),
        scalars=_HSC_SCALARS,
    ),
    Dataset(
        name="sdss",
        survey="sdss",
        needs=SPECTRUM["flux"],
        marks=("ZWARNING", "SPECTROFLUX", "SPECTROFLUX_G", "VDISP", "PLATE"),
        spectrum=True,
        redshift=Redshift(
            columns=("Z",),
            source="sdss",
            warning=("ZWARNING",),
            error=("Z_ERR",),
            spectrum_class=("CLASS",),
        ),
        scalars=_SDSS_SCALARS,
        refused=(("TARGETTYPE", "SCIENCE", "no science target"),),
        id_columns=("PLATE", "MJD", "FIBERID", "BESTOBJID"),
    ),
    Dataset(
        name="desi",
        survey="desi",
        needs=SPECTRUM["flux"],
        marks=("ZWARN", "FIBERFLUX_G", "TARGETID", "COADD_FIBERSTATUS"),
        spectrum=True,
        redshift=Redshift(
            columns=("Z",),
            source="desi",
            warning=("ZWARN",),
            error=("ZERR",),
            spectrum_class=("SPECTYPE",),
        ),
        scalars=_DESI_SCALARS,
        refused=_SCIENCE_FIBRES,
    ),
    Dataset(
        name="gaia",
        survey="gaia",
        needs=XP["coefficients"],
        marks=XP["coefficients"],
        xp=True,
        scalars=_GAIA_SCALARS,
    ),
    Dataset(
        name="gz10",
        survey="gz10",
        needs=("gz10_label", "ans"),
        marks=("gz10_label", "ans"),
        picture=True,
        redshift=Redshift(columns=("redshift", "z"), source="gz10"),  # no flag exists
        label=("gz10_label", "ans"),
    ),
    Dataset(
        name="desi_provabgs",
        survey="provabgs",
        needs=("LOG_MSTAR", "PROVABGS_LOGMSTAR_BF"),
        marks=("Z_HP", "PROVABGS_MCMC", "PROVABGS_THETA_BF"),
        # DESI's own redshift of the galaxy. Only successful ones are in the sample, the others
        # are made up for by PROVABGS_W_ZFAIL, so it is trusted without a flag.
        redshift=Redshift(columns=("Z_HP",), source="desi", error=("ZERR",)),
        scalars=_PROVABGS_SCALARS,
    ),
)


def first_of(names: Names, present: Collection[str]) -> str:
    """The first of the names that a file has, "" where it has none."""
    return next((name for name in names if name in present), "")


def which_dataset(present: Collection[str], file: Path) -> Dataset:
    """The data set that a file belongs to, by its columns; by the folders' names where two fit.

    Raises:
        ValueError: neither tells.
    """
    holding = [each for each in DATASETS if first_of(each.needs, present)]
    marked = [each for each in holding if first_of(each.marks, present)] or holding
    if len(marked) > 1:
        folders = [part.lower().removeprefix("mmu_") for part in file.parts[:-1]]
        for folder in reversed(folders):
            named = [each for each in marked if folder.startswith((each.name, each.survey))]
            if len(named) == 1:
                return named[0]
    if len(marked) == 1:
        return marked[0]
    expected = "; ".join(
        f"{each.name}: {' or '.join(each.needs)}, with one of {', '.join(each.marks)}"
        for each in DATASETS
    )
    raise ValueError(
        "not a known data set of the Multimodal Universe: neither its columns nor its folder "
        f"tell which. Expected {expected}; got {_some(sorted(present))}"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:12]) or "no columns"
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown
