"""SQL predicates on the object table, such as `redshift > 0.2 and mag_r < 20`.

DuckDB's own parser reads the text. The tree it gives is checked node by node against a list of what
is allowed and against the table's columns, and the condition is written anew from the tree: the
user's text itself never reaches the database. NULL follows SQL: a comparison with NULL is neither
true nor false. Division by zero gives NULL.
"""

from __future__ import annotations

import atexit
import json
import re
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any

import duckdb

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}
_INFIX = {"+": "+", "-": "-", "*": "*", "/": "/", "%": "%", "~~": "LIKE", "!~~": "NOT LIKE"} | {
    "~~*": "ILIKE",
    "!~~*": "NOT ILIKE",
}
_CALLS = (
    "abs", "ceil", "contains", "ends_with", "exp", "floor", "ln", "log10", "lower", "pow", "power",
    "round", "sqrt", "starts_with", "upper",
)  # fmt: skip
_TESTS = ("contains", "ends_with", "starts_with", "~~", "!~~", "~~*", "!~~*")  # true or false
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NO_LOCATION = re.compile(r'"query_location(_length)?": \d+')


def condition(predicate: str, columns: Mapping[str, str]) -> str:
    """The predicate, checked and written anew as a condition over quoted columns.

    Args:
        predicate: What may stand behind WHERE: comparisons, BETWEEN, IN, LIKE, IS NULL, AND, OR,
            NOT, arithmetic and a few functions over columns, numbers, texts, true, false and NULL.
        columns: Name -> type of each column that may be used; names are matched without case.

    Raises:
        ValueError: the text is no predicate, names an unknown column, or uses something not
            allowed; the message names the column or the place.
    """
    if not predicate.strip():
        raise ValueError("expected a predicate such as 'redshift > 0.2', got an empty text")
    statement = _parse(predicate)
    where = statement["node"].pop("where_clause", None)
    if _NO_LOCATION.sub("", json.dumps(statement)) != _frame():
        raise ValueError(f"expected one condition and nothing behind it, got {predicate!r}")
    known = {name.lower(): name for name in columns}
    written = _Writer(known).write(where)
    truths = {name.lower() for name, kind in columns.items() if kind.lower().startswith("bool")}
    _check_truth(where, truths, predicate)
    return written


def _check_truth(node: dict[str, Any], truths: Set[str], predicate: str) -> None:
    """Raise ValueError where a number or a text stands for true or false, as in `mag_r`."""
    kind, what = node["class"], node["type"]
    if kind == "CONJUNCTION" or what == "OPERATOR_NOT":
        for child in node["children"]:
            _check_truth(child, truths, predicate)
        return
    is_condition = kind in ("COMPARISON", "BETWEEN", "OPERATOR", "CAST")
    if kind == "COLUMN_REF":
        is_condition = ".".join(node["column_names"]).lower() in truths
    if kind == "CONSTANT":
        is_condition = node["literal"]["kind"] in ("BOOLEAN", "NULL_LITERAL")
    if kind == "FUNCTION":
        is_condition = node["function_name"].lower() in _TESTS
    if not is_condition:
        raise ValueError(
            f"expected a condition that is true or false, such as 'redshift > 0.2', "
            f"got a value in {predicate!r}"
        )


@cache
def _database() -> Any:
    atexit.register(_database.cache_clear)  # a database that outlives Python complains on stderr
    return duckdb.connect(config={"enable_external_access": "false"})


def connection() -> Any:
    """A connection of one's own to an empty database in memory; opening a database takes longer."""
    return _database().cursor()


@cache
def _frame() -> str:
    """What stands around a condition, as JSON."""
    statement = _parse("true")
    statement["node"].pop("where_clause")
    return _NO_LOCATION.sub("", json.dumps(statement))


def _parse(predicate: str) -> dict[str, Any]:
    with connection() as database:
        (text,) = database.execute(
            "SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT 1 FROM objects WHERE\n{predicate}"]
        ).fetchone()
    parsed = json.loads(text)
    if parsed["error"] and parsed["error_type"] == "not implemented":  # another statement
        raise ValueError(f"expected one condition and nothing behind it, got {predicate!r}")
    if parsed["error"]:
        raise ValueError(f"cannot read the predicate {predicate!r}: {parsed['error_message']}")
    if len(parsed["statements"]) != 1:
        raise ValueError(f"expected one condition and nothing behind it, got {predicate!r}")
    return parsed["statements"][0]


class _Writer:
    """Writes a checked tree as SQL."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns  # lower case -> as in the table

    def write(self, node: dict[str, Any]) -> str:
        kind, what = node["class"], node["type"]
        if kind == "COLUMN_REF":
            return self._column(node["column_names"])
        if kind == "CONSTANT":
            return _literal(node)
        if kind == "COMPARISON" and what in _COMPARISONS:
            left, right = self.write(node["left"]), self.write(node["right"])
            return f"({left} {_COMPARISONS[what]} {right})"
        if kind == "BETWEEN":
            value, low, high = (self.write(node[part]) for part in ("input", "lower", "upper"))
            return f"({value} BETWEEN {low} AND {high})"
        if kind == "CONJUNCTION":
            word = {"CONJUNCTION_AND": " AND ", "CONJUNCTION_OR": " OR "}[what]
            return f"({word.join(map(self.write, node['children']))})"
        if kind == "OPERATOR":
            return self._operator(what, node["children"])
        if kind == "FUNCTION":
            return self._function(node)
        if kind == "CAST" and _is_boolean_test(node):
            return f"CAST({self.write(node['child'])} AS BOOLEAN)"
        raise ValueError(f"a predicate may not use {what.lower().replace('_', ' ')}")

    def _column(self, names: Sequence[str]) -> str:
        name = ".".join(names)
        if name.lower() not in self.columns:
            known = ", ".join(sorted(self.columns.values()))
            raise ValueError(f"unknown column {name!r} in the predicate: expected one of {known}")
        return quoted(self.columns[name.lower()])

    def _operator(self, what: str, children: list[dict[str, Any]]) -> str:
        parts = [self.write(child) for child in children]
        if what == "OPERATOR_NOT":
            return f"(NOT {parts[0]})"
        if what == "OPERATOR_IS_NULL":
            return f"({parts[0]} IS NULL)"
        if what == "OPERATOR_IS_NOT_NULL":
            return f"({parts[0]} IS NOT NULL)"
        if what in ("COMPARE_IN", "COMPARE_NOT_IN"):
            word = "IN" if what == "COMPARE_IN" else "NOT IN"
            return f"({parts[0]} {word} ({', '.join(parts[1:])}))"
        raise ValueError(f"a predicate may not use {what.lower().replace('_', ' ')}")

    def _function(self, node: dict[str, Any]) -> str:
        name = node["function_name"].lower()
        plain = not (node["distinct"] or node["filter"] or node["order_bys"]["orders"])
        plain = plain and not (node["schema"] or node["catalog"])
        plain = plain and all(not argument["name"] for argument in node["arguments"])
        parts = [self.write(argument["expression"]) for argument in node["arguments"]]
        if plain and node["is_operator"] and name in _INFIX and len(parts) == 2:
            if name in "/%":  # DuckDB's 0 / 0 is NaN, which it sorts above every number
                parts[1] = f"NULLIF({parts[1]}, 0)"
            return f"({parts[0]} {_INFIX[name]} {parts[1]})"
        if plain and node["is_operator"] and name in "+-" and len(parts) == 1:
            return f"({name}{parts[0]})"
        if plain and not node["is_operator"] and name in _CALLS:
            return f"{name}({', '.join(parts)})"
        raise ValueError(
            f"a predicate may not use the function {node['function_name']!r}: "
            f"expected one of {', '.join(_CALLS)}"
        )


def _is_boolean_test(node: dict[str, Any]) -> bool:
    """`x IS TRUE` is parsed as a cast to BOOLEAN; casts written by the user are refused."""
    return node["type_expr"]["type_name"] == "BOOLEAN" and node["query_location_length"] == 0


def _literal(node: dict[str, Any]) -> str:
    kind, text = node["literal"]["kind"], node["literal"]["text"]
    if kind == "NULL_LITERAL":
        return "NULL"
    if kind == "BOOLEAN" and text in ("true", "false"):
        return text.upper()
    if kind in ("INTEGER", "NUMERIC") and _NUMBER.fullmatch(text):
        return text
    if kind == "STRING":
        return "'" + text.replace("'", "''") + "'"
    raise ValueError(f"a predicate may not use the value {text!r} ({kind.lower()})")


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
