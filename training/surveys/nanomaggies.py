"""Fluxes in nanomaggies: what a header must say of them, and the AB magnitudes they give.

Pixels and tables of the Legacy Survey are in nanomaggies, AB zero point 22.5, without correction
for Galactic extinction; so are the magnitudes here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from training.observations import CatalogueValue

ZERO_POINT_MAG = 22.5  # AB
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPNT")
_NANOMAGGY = r"\(?(nanomagg(y|ies|ys)|nmgy)\)?"
_FLUX_UNIT = re.compile(rf"{_NANOMAGGY}(/pix(el)?|perpixel)?")
_IVAR_UNIT = re.compile(rf"1/{_NANOMAGGY}(\^|\*\*)?2|{_NANOMAGGY}(\^|\*\*)?-2")


def photometry(flux_nmgy: Mapping[str, float]) -> dict[str, CatalogueValue]:
    """Columns of the object table: flux_g_nmgy.. and, where the flux is positive, mag_g.. (AB)."""
    columns: dict[str, CatalogueValue] = {}
    for letter, flux in flux_nmgy.items():
        columns[f"flux_{letter}_nmgy"] = flux
        if flux > 0:
            columns[f"mag_{letter}"] = float(ZERO_POINT_MAG - 2.5 * np.log10(flux))
    return columns


def check_flux_header(header: Mapping[str, Any]) -> bool:
    """Whether a header gives a unit at all; without one the survey's own convention holds.

    Raises:
        ValueError: BUNIT is not nanomaggies, or a zero point is not 22.5.
    """
    for key in _ZERO_POINT_KEYS:
        value = header.get(key)
        if value is None or value == "":
            continue
        try:
            agrees = abs(float(value) - ZERO_POINT_MAG) < 1e-3
        except (TypeError, ValueError):
            agrees = False
        if not agrees:
            raise ValueError(f"{key}: expected the zero point of nanomaggies, 22.5, got {value!r}")
    return check_unit(str(header.get("BUNIT") or ""), where="BUNIT")


def check_ivar_header(header: Mapping[str, Any]) -> bool:
    """Whether a header gives a unit of inverse variance; ValueError where it is another one."""
    return _check(str(header.get("BUNIT") or ""), _IVAR_UNIT, "BUNIT", "1/nanomaggy^2")


def check_unit(unit: str, *, where: str) -> bool:
    """Whether a unit of flux is given; raise ValueError where it is not nanomaggies."""
    return _check(unit, _FLUX_UNIT, where, "nanomaggy")


def _check(unit: str, allowed: re.Pattern[str], where: str, expected: str) -> bool:
    text = "".join(unit.lower().split())
    if text and not allowed.fullmatch(text):
        raise ValueError(f"{where}: expected {expected}, got {unit.strip()!r}")
    return bool(text)
