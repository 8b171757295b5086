"""Questions to a sky: similarity search over the objects that `index` holds."""

from discovery.errors import SourceGone
from discovery.positions import parse_position
from discovery.query import Query
from discovery.results import Hits, Seed
from discovery.sky import Sky, open
from index.errors import (
    ClusterUnavailable,
    EncoderMismatch,
    NoObjectNear,
    NotASky,
    OutsideFootprint,
    PartMissing,
    SkykinError,
    UnknownObject,
    VersionCorrupt,
)
from index.evaluation import Evaluation, evaluate
from index.ray_nodes import Cluster

__all__ = [
    "Cluster",
    "ClusterUnavailable",
    "EncoderMismatch",
    "Evaluation",
    "Hits",
    "NoObjectNear",
    "NotASky",
    "OutsideFootprint",
    "PartMissing",
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
