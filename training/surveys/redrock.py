"""Redshift tables of DESI: redrock-*.fits (HDU REDSHIFTS) and older zbest-*.fits (HDU ZBEST).

They lie beside the spectra they belong to, under the same name, and are joined by TARGETID: the
order of rows means nothing. A redshift and a class are to be trusted where ZWARN is 0.

Source: desidatamodel, redrock-SURVEY-PROGRAM-PIXNUM; ZWARN bits from its page on bit masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.surveys.files import FITS_SUFFIXES, stem
from training.surveys.lazy_fits import check_kinds, open_lazily

KINDS = ("redrock", "zbest")
_HDUS = ("REDSHIFTS", "ZBEST")
_COLUMNS = ("targetid", "z", "zerr", "zwarn", "spectype")
ZWARN_BITS = {
    0: "SKY", 1: "LITTLE_COVERAGE", 2: "SMALL_DELTA_CHI2", 3: "NEGATIVE_MODEL",
    4: "MANY_OUTLIERS", 5: "Z_FITLIMIT", 6: "NEGATIVE_EMISSION", 7: "UNPLUGGED", 8: "BAD_TARGET",
    9: "NODATA", 10: "BAD_MINFIT", 11: "POORDATA", 16: "LOW_DEL_CHI2", 17: "LOW_DEL_CHI2_BGS",
    18: "BAD_SPECQA", 19: "BAD_PETALQA",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Redshift:
    """One row; NaN as it is in the file."""

    z: float
    z_error: float
    zwarn: int
    spectral_class: str  # GALAXY, QSO or STAR


@dataclass(frozen=True, slots=True)
class Redshifts:
    """The rows of a table by TARGETID, and what is wrong with others."""

    by_target: dict[int, Redshift]
    repeated: tuple[str, ...]  # a reason for each row whose TARGETID came before


def find(spectra: Path) -> Path | None:
    """The redshift table of a file called coadd-... or spectra-..., None where there is none."""
    name = stem(spectra)
    for prefix in ("coadd", "spectra"):
        if name.startswith(f"{prefix}-"):
            rest = name.removeprefix(prefix)
            candidates = (
                spectra.parent / f"{kind}{rest}{suffix}"
                for kind in KINDS
                for suffix in FITS_SUFFIXES
            )
            return next((file for file in candidates if file.is_file()), None)
    return None


def read_redshifts(file: Path) -> Redshifts:
    """All rows of a redshift table; of a TARGETID given twice the first counts.

    Raises:
        OSError: the file cannot be read or is not FITS.
        ValueError: it is damaged or holds no such table.
    """
    with open_lazily(file) as opened:
        hdu = next((hdu for hdu in opened.hdus() if hdu.name in _HDUS), None)
        if hdu is None:
            raise ValueError(f"no usable HDU: expected a table {' or '.join(_HDUS)}")
        missing = set(_COLUMNS) - {"zerr"} - set(hdu.columns)
        if missing:
            raise ValueError(f"HDU {hdu.number} {hdu.name}: no column {', '.join(sorted(missing))}")
        table = opened.table(hdu, frozenset(_COLUMNS))
    check_kinds(table, whole=("targetid", "zwarn"), numbers=("z", "zerr"))
    by_target: dict[int, Redshift] = {}
    repeated = []
    columns = {name: column.tolist() for name, column in table.items()}
    for row, target in enumerate(columns["targetid"]):
        if target in by_target:
            repeated.append(f"row {row} (TARGETID {target}): the TARGETID came before")
            continue
        by_target[target] = Redshift(
            z=float(columns["z"][row]),
            z_error=float(columns["zerr"][row]) if "zerr" in columns else float("nan"),
            zwarn=int(columns["zwarn"][row]),
            spectral_class=str(columns["spectype"][row]).strip(),
        )
    return Redshifts(by_target, tuple(repeated))


def bit_names(value: int, names: dict[int, str]) -> str:
    """The bits of a mask as words, "bit 12" where a bit has no name."""
    bits = [bit for bit in range(64) if value >> bit & 1]
    return ", ".join(names.get(bit, f"bit {bit}") for bit in bits)
