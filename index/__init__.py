"""Observations to a searchable sky: store, segments, versions, exact search.

The way in is `index.building.build`, the way out `index.versions.open_version`; the errors that a
caller can act on are drawn in `index.errors`.
"""
