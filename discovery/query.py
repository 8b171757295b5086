"""A question to a sky: what to look like, where to look, how many to return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from discovery.positions import parse_position
from index.asked_recall import DEFAULT_RECALL, check_recall
from training.modalities import VIEWS
from training.observations import Observation, check_position

Number = float | int  # said in full: to a run-time type checker an int is no float

DEFAULT_K = 50
DEFAULT_RADIUS_ARCSEC = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for. At least one seed: like, position, name, file, or observations.

    The seeds' unit vectors are added, those of `unlike` subtracted, and the sum scaled to unit
    length. A seed gives its vector of the view that is searched, or of its own view where it lacks
    that one (an image may ask for spectra). Objects that are seeds are left out of their results.

    Raises:
        ValueError: a field is out of range, ill-formed, or contradicts another; says which.
    """

    like: Sequence[str] = ()  # object ids
    unlike: Sequence[str] = ()  # object ids to move away from
    position: tuple[Number, Number] | str | None = None  # ICRS degrees, or as parse_position reads
    radius_arcsec: Number = DEFAULT_RADIUS_ARCSEC  # how far the object at `position` may be
    name: str | None = None  # published name, resolved by CDS Sesame (network)
    file: Path | str | None = None  # an observation of one's own
    survey: str | None = None  # how to read `file`
    observations: Sequence[Observation] = ()  # of one's own, already read
    where: str | None = None  # SQL predicate on the object table; it sees NULL, never NaN
    cone: tuple[Number, Number, Number] | None = None  # ra_deg, dec_deg, radius_deg
    moc: Path | str | None = None  # file of a MOC (FITS, JSON or ASCII): only objects inside
    seen_by: Sequence[str] = ()  # only objects that one of these surveys observed in the view
    collapse_arcsec: Number | None = None  # of hits as close as this, the best alone; None = all
    view: str | None = None  # where to search; None = the seeds' own: image, else spectrum
    k: int | None = None  # None = 50, or all of a smaller sky
    exclude: Sequence[str] = ()  # object ids never to return
    recall: Number = DEFAULT_RECALL  # share of the exact answer to find, on average; 1 = exact

    def __post_init__(self) -> None:
        for field in ("like", "unlike", "exclude", "seen_by"):
            object.__setattr__(self, field, _ids(field, getattr(self, field)))
        object.__setattr__(self, "observations", tuple(self.observations))
        if isinstance(self.position, str):
            object.__setattr__(self, "position", parse_position(self.position))
        elif self.position is not None:
            object.__setattr__(self, "position", _numbers("position", self.position, 2))
            check_position(*self.position)
        if self.cone is not None:
            object.__setattr__(self, "cone", _checked_cone(self.cone))
        object.__setattr__(self, "radius_arcsec", float(self.radius_arcsec))
        both = sorted(set(self.like) & set(self.unlike))
        if both:
            raise ValueError(f"object {both[0]} is given both as like and as unlike")
        if not any((self.like, self.position, self.name, self.file, self.observations)):
            raise ValueError(
                "a query needs something to look like: an object id, a position, a name, "
                "a file, or observations"
            )
        if (self.file is None) != (self.survey is None):
            raise ValueError(
                "file and survey are given together: the survey says how to read the file; "
                f"got file={self.file!s}, survey={self.survey}"
            )
        if self.k is not None and (isinstance(self.k, bool) or self.k < 1):
            raise ValueError(f"k must be between 1 and the number of objects, got {self.k}")
        if self.collapse_arcsec is not None and not 0 < self.collapse_arcsec <= 3600:
            raise ValueError(f"collapse_arcsec must be in (0, 3600], got {self.collapse_arcsec}")
        check_recall(self.recall)
        if not 0 < self.radius_arcsec <= 3600:
            raise ValueError(f"radius_arcsec must be in (0, 3600], got {self.radius_arcsec}")
        if self.view is not None and self.view not in (*VIEWS, "any"):
            raise ValueError(f"unknown view {self.view!r}: expected one of {', '.join(VIEWS)}, any")
        if self.where is not None and not self.where.strip():
            raise ValueError('where is blank: expected a predicate such as "redshift > 0.2"')
        if self.where is not None and not _is_utf8(self.where):
            raise ValueError(f"where is not UTF-8: {self.where!r}")

    def to_dict(self) -> dict[str, object]:
        """Everything that was asked, ready for JSON: fields that differ from their default."""
        asked: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "observations":
                asked[field.name] = [observation.object_id for observation in value]
            elif isinstance(value, tuple):
                asked[field.name] = list(value)
            else:
                asked[field.name] = str(value) if isinstance(value, Path) else value
        return asked


def _is_utf8(text: str) -> bool:
    """False for bytes of another encoding, which Python keeps as lone surrogates."""
    return text.encode(errors="replace").decode() == text


def parse_cone(text: str) -> tuple[float, float, float]:
    """Read "RA,DEC,RADIUS", all in degrees.

    Raises:
        ValueError: not three numbers, or off the sky.
    """
    try:
        ra_deg, dec_deg, radius_deg = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f'expected a cone as RA,DEC,RADIUS in degrees, such as "150.1,2.2,0.5", got {text!r}'
        ) from None
    return _checked_cone((ra_deg, dec_deg, radius_deg))


def _ids(field: str, ids: Sequence[object]) -> tuple[str, ...]:
    if isinstance(ids, str):
        what = "surveys" if field == "seen_by" else "object ids"
        raise ValueError(f"{field} takes a list of {what}, got the single string {ids!r}")
    checked: dict[str, None] = {}  # each once, in order
    for object_id in ids:
        if not isinstance(object_id, str):
            raise ValueError(
                f"object ids are strings (19 digits do not fit a float), got "
                f"{type(object_id).__name__} {object_id!r} in {field}"
            )
        checked[object_id] = None
    return tuple(checked)


def _numbers(field: str, values: object, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        raise ValueError(f"{field} takes {count} numbers in degrees, got {values!r}")
    return numbers


def _checked_cone(cone: object) -> tuple[float, float, float]:
    ra_deg, dec_deg, radius_deg = _numbers("cone", cone, 3)
    check_position(ra_deg, dec_deg)
    if not 0 < radius_deg <= 180:
        raise ValueError(f"the radius of a cone must be in (0, 180] degrees, got {radius_deg}")
    return ra_deg, dec_deg, radius_deg
