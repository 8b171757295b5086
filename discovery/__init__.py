"""Questions to a sky: similarity search over the objects that `index` holds."""

from discovery.errors import SourceGone
from discovery.positions import parse_position
from discovery.query import Query
from discovery.results import Hits, Seed
from discovery.sky import Sky, open
from index.errors import (
    EncoderMismatch,
    NoObjectNear,
    NotASky,
    OutsideFootprint,
    SkykinError,
    UnknownObject,
    VersionCorrupt,
)
from index.evaluation import Evaluation, evaluate

__all__ = [
    "EncoderMismatch",
    "Evaluation",
    "Hits",
    "NoObjectNear",
    "NotASky",
    "OutsideFootprint",
    "Query",
    "Seed",
    "Sky",
    "SkykinError",
    "SourceGone",
    "UnknownObject",
    "VersionCorrupt",
    "evaluate",
    "open",
    "parse_position",
]
