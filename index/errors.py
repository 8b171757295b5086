"""The errors a caller can act on. Bad input is a plain ValueError that says what was expected.

SkykinError
├── NotASky             the folder is missing, foreign, or of another format (also a ValueError)
├── SkyBusy             another build holds the folder
├── EncoderMismatch     vectors of two encoders would be mixed
├── VersionCorrupt      a file of a version is missing, cut short or changed
├── DiskFull            nothing more can be written; what was published stays whole
├── UnknownObject       no object has that id, or none of its vectors is of that view
├── OutsideFootprint    the position lies where this sky has no objects
├── NoObjectNear        inside the footprint, but nothing within the radius
├── GpuUnavailable      a GPU is asked for, and there is none, or none that can be used
├── ClusterUnavailable  no Ray cluster answers, or a sky's segments cannot be opened on it
├── PartMissing         actors of a cluster are lost, and an answer would lack what they hold
├── FaissConflict       two distributions of FAISS are installed over each other
└── GateRefused         a gate: a new version is not good enough to be published
    └── RecallTooLow    measured recall is below what was asked for
"""

from __future__ import annotations

from collections.abc import Sequence


class SkykinError(Exception):
    """Root of the tree."""


class NotASky(SkykinError, ValueError):
    """The folder is missing, foreign, or of another format."""


class SkyBusy(SkykinError):
    """Another build holds the folder."""


class EncoderMismatch(SkykinError):
    """Vectors of two encoders would be mixed."""


class VersionCorrupt(SkykinError):
    """A file of a version is missing, cut short or changed."""


class DiskFull(SkykinError):
    """Nothing more can be written; what was published stays whole."""


class UnknownObject(SkykinError):
    """No object has that id, or none of its vectors is of that view."""


class OutsideFootprint(SkykinError):
    """The position lies where this sky has no objects."""


class NoObjectNear(SkykinError):
    """Inside the footprint, but nothing within the radius."""


class GateRefused(SkykinError):
    """A gate: a new version is not good enough to be published; what was published stays.

    Attributes:
        report: What the nightly measured, as its JSON; None where there is none.
    """

    def __init__(self, message: str, *, report: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.report = report


class RecallTooLow(GateRefused):
    """A gate: measured recall is below what was asked for."""


class GpuUnavailable(SkykinError):
    """A GPU is asked for, and there is none, or none that can be used."""


class ClusterUnavailable(SkykinError):
    """No Ray cluster answers, or the segments of a sky cannot be opened on it."""


class PartMissing(SkykinError):
    """Actors of a cluster are lost, and an answer would lack what they hold.

    Attributes:
        missing: Which rows, as index.cluster.Missing.
    """

    def __init__(self, message: str, *, missing: Sequence[object]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class FaissConflict(SkykinError):
    """Two distributions of FAISS are installed over each other."""
