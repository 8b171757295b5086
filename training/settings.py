"""Values of a file as one of the frozen configurations, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

Settings = TypeVar("Settings")


def validated(
    cls: type[Settings], values: Mapping[str, Any], *, named: Mapping[str, str] | None = None
) -> Settings:
    """A configuration of some values.

    Args:
        cls: The dataclass of the configuration.
        values: By field.
        named: How the file calls a field, where it calls it otherwise.

    Raises:
        ValueError: names the first key that is wrong, as the file calls it, and what is.
    """
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        key = ".".join([(named or {}).get(path[0], path[0]), *path[1:]]) if path else "settings"
        raise ValueError(f"{key}: {_told(first)}") from error


def _told(error: ErrorDetails) -> str:
    """What was expected and, where it is one value, what came."""
    if error["type"] == "unexpected_keyword_argument":
        return "unknown key"
    if error["type"] == "value_error":  # one of ours, which tells both
        return error["msg"].removeprefix("Value error, ")
    came = f", got {error['input']!r}" if isinstance(error["input"], str | int | float) else ""
    return error["msg"] + came
