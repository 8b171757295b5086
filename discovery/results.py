"""What a search found: a table, where it came from, and files of it for other programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.table import Column, MaskedColumn, Table
from jaxtyping import Float32
from numpy import ndarray

from discovery.exports import encode
from discovery.query import Query
from index.cluster import Missing
from index.disk import new_file

# Column -> unit (as astropy writes it; flux columns carry nanomaggies in their names) and meaning.
_MEANINGS: dict[str, tuple[str | None, str]] = {
    "rank": (None, "1 = most similar"),
    "object_id": (None, "Identifier of the object, as the survey gives it"),
    "score": (None, "Cosine similarity to the query, -1 to 1; rank fusion in view any"),
    "ra_deg": ("deg", "ICRS right ascension"),
    "dec_deg": ("deg", "ICRS declination"),
    "survey": (None, "Survey whose observation was compared"),
    "view": (None, "What was compared: image, spectrum, xp or joint"),
    "known_as": (None, "Published name, where it has been looked up"),
    "redshift": (None, "Redshift"),
    "redshift_source": (None, "Who measured the redshift"),
    "radius_arcsec": ("arcsec", "Half-light radius"),
    "views": (None, "All views this object has"),
}
_PATTERNS = {
    "mag_": ("mag", "AB magnitude in {}"),
    "flux_": (None, "Flux in {}, nanomaggies"),
}
_JSON_COLUMNS = (
    "rank", "object_id", "score", "ra_deg", "dec_deg", "survey", "view", "known_as",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One thing the results should be like, or unlike."""

    view: str  # of the vector that was used
    object_id: str | None = None  # None for an observation of one's own
    source: str | None = None  # file of an observation of one's own
    separation_arcsec: float | None = None  # from the position asked for to the object
    unlike: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hits:
    """Objects, best first, with how they were found."""

    table: Table  # masked where a value is unknown
    query: Query
    version: int
    encoder_hash: str
    view: str  # searched
    seeds: tuple[Seed, ...]
    num_searched: int  # objects that could have been returned
    num_without_position: int | None  # left out by a position or cone; None where neither was asked
    missing: tuple[Missing, ...] = ()  # what a cluster could not search: the answer is not whole

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> tuple[str, ...]:
        """Object ids, best first."""
        return tuple(self.table["object_id"].tolist())

    @property
    def scores(self) -> Float32[ndarray, " hit"]:
        """Scores, best first."""
        return np.asarray(self.table["score"])

    @property
    def seed(self) -> Seed:
        """The first thing the results should be like."""
        return self.seeds[0]

    def to_json(self) -> dict[str, object]:
        """The document of `skykin search --json`; unknown is null, ids are strings."""
        columns = [self.table[name].tolist() for name in _JSON_COLUMNS]
        return {
            "version": self.version,
            "query": self.asked(),
            "hits": [
                dict(zip(_JSON_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)
            ],
        }

    def asked(self) -> dict[str, object]:
        """The query as it was given, and what it came to: seeds, view, k, objects left out."""
        seeds = []
        for seed in self.seeds:
            values = {name: getattr(seed, name) for name in Seed.__slots__}
            seeds.append({name: value for name, value in values.items() if value is not None})
        return {
            **self.query.to_dict(),
            "view": self.view,
            "seeds": seeds,
            "num_searched": self.num_searched,
            **(
                {}
                if self.num_without_position is None
                else {"num_without_position": self.num_without_position}
            ),
            **({"missing": [asdict(each) for each in self.missing]} if self.missing else {}),
        }

    def to_bytes(self, ending: str) -> bytes:
        """The content of a file with that ending: csv, parquet, fits or vot.

        Raises:
            ValueError: another ending.
        """
        provenance = {
            "version": self.version,
            "encoder": self.encoder_hash,
            "query": self.asked(),
        }
        return encode(self.table, provenance, ending)

    def write(self, path: str | Path) -> Path:
        """Write all hits; the ending of the name says how. A file of that name is replaced.

        Version, encoder hash and query are inside: in the comment header of CSV (ECSV), the schema
        metadata of Parquet (key "skykin"), header cards of FITS, INFO elements of VOTable.

        Raises:
            ValueError: another ending, or the folder does not exist.
            DiskFull: nothing appears under the name.
        """
        path = Path(path)
        content = self.to_bytes(path.suffix.removeprefix("."))
        if not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
        with new_file(path) as handle:
            handle.write(content)
        return path


def hits_table(
    objects: pa.Table,
    *,
    scores: Float32[ndarray, " hit"],
    surveys: list[str],
    views: list[str],
) -> Table:
    """Lay out hits as a table, best first.

    Args:
        objects: Lines of the object table in order of rank; NULL becomes masked.
        scores: One a hit.
        surveys: Whose observation was compared, one a hit.
        views: What was compared, one a hit.
    """
    table = Table(masked=False)
    num = len(scores)
    own: dict[str, Column] = {
        "rank": Column(np.arange(1, num + 1, dtype=np.int32)),
        "object_id": _column(objects["object_id"]),
        "score": Column(scores),
        "ra_deg": _column(objects["ra_deg"]),
        "dec_deg": _column(objects["dec_deg"]),
        "survey": Column(np.array(surveys, dtype=str)),
        "view": Column(np.array(views, dtype=str)),
        "known_as": (
            _column(objects["known_as"])
            if "known_as" in objects.column_names
            else MaskedColumn(np.full(num, ""), mask=np.ones(num, dtype=bool), dtype="U1")
        ),
    }
    rest = [
        name
        for name in objects.column_names
        if name not in own and name != "object_key" and not name.startswith("_")
    ]
    for name in (*own, *rest):
        table[name] = own[name] if name in own else _column(objects[name])
        unit, meaning = _meaning(name)
        table[name].unit = unit
        table[name].description = meaning
    return table


def _meaning(name: str) -> tuple[str | None, str]:
    for prefix, (unit, meaning) in _PATTERNS.items():
        if name.startswith(prefix):
            return unit, meaning.format(name.split("_")[1])
    return _MEANINGS.get(name, (None, name.replace("_", " ")))


def _column(values: pa.ChunkedArray) -> Column:
    """An astropy column of an Arrow one: masked where NULL, lists joined by commas."""
    missing = np.asarray(values.is_null())
    kind = values.type
    if pa.types.is_list(kind):
        data = np.array([",".join(map(str, one or ())) for one in values.to_pylist()], dtype=str)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        data = np.array(values.fill_null("").to_pylist(), dtype=str)
    elif pa.types.is_dictionary(kind):
        data = np.array([one or "" for one in values.to_pylist()], dtype=str)
    else:
        data = values.fill_null(pa.scalar(0).cast(kind)).to_numpy()
    if missing.any():
        return MaskedColumn(data, mask=missing)
    return Column(data)
