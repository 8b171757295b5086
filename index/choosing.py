"""Which objects of a version a question is about: predicate, cone, MOC, surveys, view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from index.filtering import Filter
from index.footprint import covers
from index.version import Version

if TYPE_CHECKING:
    from mocpy import MOC


def choose(
    version: Version,
    *,
    where: str | None = None,
    cone: tuple[float, float, float] | None = None,
    moc: MOC | None = None,
    surveys: Sequence[str] = (),
    view: str | None = None,
) -> Filter:
    """The objects that a predicate, a cone, a MOC and surveys leave, for `Version.search`.

    Made once and kept for the next question that has the same.

    Args:
        version: An open version.
        where: As `Version.where` takes it; None: all.
        cone: ra_deg, dec_deg, radius_arcsec, as `Version.in_cone` takes them; None: all.
        moc: Cells of the sky; objects without a position lie in none. None: all.
        surveys: Objects that have a row of one of these; empty: all.
        view: In which the surveys' rows are; None: any.

    Raises:
        ValueError: as `Version.where` and `Version.in_cone`, or a survey that no row here is of.
    """
    num_keys = version.manifest.next_object_key

    def make() -> Filter:
        made = version.everything
        if where is not None:
            made &= Filter(version.allowed_by(where))
        if cone is not None:
            made &= Filter.of_keys(version.in_cone(*cone)[0], num_keys)
        if moc is not None:
            made &= Filter.of_keys(in_moc(version, moc), num_keys)
        if surveys:
            made &= Filter.of_keys(seen_by(version, surveys, view=view), num_keys)
        return made

    if where is None and cone is None and moc is None and not surveys:
        return version.everything
    cells = None if moc is None else moc.to_string(format="ascii")
    return version.filters.get((where, cone, cells, *surveys, view if surveys else None), make)


def objects_in(version: Version, view: str) -> Bool[ndarray, " key"]:
    """Which objects, by key, have a row in a view; of "any" those that are in the table."""

    def make() -> Filter:
        mine = [each for each in version.segment_rows if each.live.segment.view == view]
        there = np.zeros(version.manifest.next_object_key, bool)
        for keys in (
            version.object_table.keys() if view == "any" else (each.keys() for each in mine)
        ):
            there[keys] = True
        return Filter(there)

    allowed = version.filters.get(("view", view), make).allowed
    assert allowed is not None
    return allowed


def in_moc(version: Version, moc: MOC) -> Int64[ndarray, " n"]:
    """Keys, ascending, of the objects whose position lies in a MOC."""
    found = [np.empty(0, np.int64)]
    for some in version.object_table.positions():
        found.append(some.keys[covers(moc, some.ra_deg, some.dec_deg)])
    return np.sort(np.concatenate(found))


def seen_by(
    version: Version, surveys: Sequence[str], *, view: str | None = None
) -> Int64[ndarray, " n"]:
    """Keys, ascending, of the objects that have a row of one of these surveys.

    Args:
        version: An open version.
        surveys: By name; a joint view of several counts for each.
        view: Only rows of this view; None or "any": of every view.

    Raises:
        ValueError: no row here is of such a survey.
    """
    there = set[str]()
    found = [np.empty(0, np.int64)]
    for each in version.segment_rows:
        alive, known = each.live.alive, each.surveys
        of_row = known.of_row if alive is None else known.of_row[alive]
        live = {known.names[number] for number in np.unique(of_row)}
        there.update(part for name in live for part in name.split("+"))
        meant = [not set(name.split("+")).isdisjoint(surveys) for name in known.names]
        if view in (None, "any", each.live.segment.view):
            found.append(each.keys()[np.array(meant, bool)[of_row]])
    for survey in surveys:
        if survey not in there:
            raise ValueError(
                f"no observation here is of survey {survey!r}: expected {', '.join(sorted(there))}"
            )
    return np.unique(np.concatenate(found))
