"""Joint views of objects that several surveys saw.

One observation with image and spectrum has its joint vector from the encoder at once. Where the
image is one survey's and the spectrum another's, the observations are read again, merged, and
embedded together; that vector stands in place of the joint vectors of the single observations. It
is made again when a part changes, and tried again by every build where a part could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.embedding import JointTask
from index.objects import ROW_FIELDS
from index.predicate import connection
from training.observations import fingerprint

_OBSERVATION = ("survey", "release", "source_id")
_COLUMNS = ("object_key", "view", *_OBSERVATION, "source", "source_part", "fingerprint")


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint vector to be had from several observations, and the row that will stand for it."""

    object_key: int
    task: JointTask
    surveys: tuple[str, ...]
    calibrated: bool

    def row(self) -> dict[str, Any]:
        empty: dict[str, Any] = dict.fromkeys(ROW_FIELDS)
        return empty | {
            "object_key": self.object_key,
            "survey": "+".join(self.surveys),
            "release": "",
            "source_id": self.task.object_id,
            "object_id": self.task.object_id,
            "source": "",
            "source_part": "",
            "fingerprint": self.task.fingerprint,
            "calibrated": self.calibrated,
            "notes": [],
        }


def find_joints(rows: pa.Table, object_ids: dict[int, str]) -> dict[int, Joint]:
    """Objects whose joint view has to be made from several observations, by key.

    Args:
        rows: All rows that the new version will have: object_key, view, ROW_FIELDS.
        object_ids: By key.
    """
    with connection() as database:
        database.register("seen", rows.select([*_COLUMNS]))
        keys = database.sql(
            """
            SELECT object_key FROM seen WHERE source <> '' AND "view" IN ('image', 'spectrum')
            GROUP BY object_key
            HAVING count(DISTINCT (survey, release, source_id)) > 1
               AND count(DISTINCT "view") = 2
            """
        ).to_arrow_table()["object_key"]
    joints = {}
    if len(keys):
        some = rows.filter(pc.is_in(rows["object_key"], keys.combine_chunks()))
        lines: dict[int, list[dict[str, Any]]] = {}
        for line in some.select([*_COLUMNS, "calibrated"]).to_pylist():
            lines.setdefault(line["object_key"], []).append(line)
        for key, mine in lines.items():
            joint = _joint(key, mine, object_ids)
            if joint is not None:
                joints[key] = joint
    return joints


def _rank(line: dict[str, Any]) -> tuple[Any, ...]:
    """The order in which merge_rows takes values too."""
    return (not line["calibrated"], *(line[name] for name in _OBSERVATION))


def _joint(key: int, lines: list[dict[str, Any]], object_ids: dict[int, str]) -> Joint | None:
    lines = sorted((line for line in lines if line["source"]), key=_rank)
    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        parts.setdefault(tuple(line[name] for name in _OBSERVATION), line)
    best = {}
    for view in ("image", "spectrum"):
        line = next(line for line in lines if line["view"] == view)
        best[view] = tuple(line[name] for name in _OBSERVATION)
    if best["image"] == best["spectrum"]:
        return None
    task = JointTask(
        object_ids[key],
        fingerprint("joint", *(line["fingerprint"] for line in parts.values())),
        tuple(
            (line["survey"], line["source"], line["source_part"], line["fingerprint"])
            for line in parts.values()
        ),
    )
    surveys = tuple(dict.fromkeys(line["survey"] for line in parts.values()))
    return Joint(key, task, surveys, all(line["calibrated"] for line in parts.values()))
