"""The errors of this floor; the tree itself is drawn in index/errors.py.

SkykinError
├── ...
└── SourceGone        the file an object was made from is not there any more, or has changed
"""

from __future__ import annotations

from index.errors import SkykinError


class SourceGone(SkykinError):
    """The file an object was made from is not there any more, or has changed."""
