"""Readings as columns of PostgreSQL hold them, and columns as text array literals on their way there.

A number is a double and a kind that says whether it came as an integer: integers within 2**53 are
exact in it. Literals because the driver has neither bind parameters nor COPY (dependencies.md, 2).
"""

import math
from collections.abc import Iterable, Sequence

import msgspec
import orjson

from storage.errors import Refused
from storage.models import INTEGER_MAX, Value

INTEGER, NUMBER, BOOLEAN, TEXT = range(4)
_KINDS: dict[type, int] = {int: INTEGER, float: NUMBER, bool: BOOLEAN, str: TEXT}
_NUMERIC = {int, float}


def numbers(column: Sequence[int | float | None]) -> str:
    """The array literal of a column of numbers."""
    return "{" + orjson.dumps(column)[1:-1].decode() + "}"


def flags(column: Iterable[bool]) -> str:
    """The array literal of a column of booleans."""
    return "{" + ",".join("t" if flag else "f" for flag in column) + "}"


def texts(column: Iterable[str | None]) -> str:
    """The array literal of a column of texts; None is NULL."""
    return "{" + ",".join("NULL" if text is None else _quoted(text) for text in column) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def encode_values(column: list[Value]) -> tuple[str, str, str | None]:
    """The literals of the columns num, kind and txt (None: all are NULL). Refused if one does not fit."""
    try:
        kinds = [_KINDS[type(value)] for value in column]
        found = set(kinds)
        text = None
        numeric: list[int | float | None]
        if TEXT in found:
            text = texts(value if type(value) is str else None for value in column)
            numeric = [None if type(value) is str else value for value in column]  # type: ignore[misc]
        else:
            numeric = column  # type: ignore[assignment]
        if BOOLEAN in found:
            numeric = [int(value) if type(value) is bool else value for value in numeric]
        if INTEGER in found:
            _check_integers(numeric)
        if NUMBER in found:
            _check_numbers(numeric)
        literal = numbers(numeric)
        if text is not None:
            check_text(text)
    except (KeyError, TypeError) as error:
        raise Refused(f"the database cannot hold the value: {error}") from error
    return literal, numbers(kinds), text


def check_text(text: str) -> None:
    """Refused if it cannot be said in UTF-8, or not in PostgreSQL."""
    if "\0" in text:
        raise Refused("the database cannot hold U+0000")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"the database cannot hold the text: {error}") from error


def _check_integers(column: list[int | float | None]) -> None:
    for value in column:
        if type(value) is int and not -INTEGER_MAX <= value <= INTEGER_MAX:
            raise Refused("the database cannot hold integers beyond 2**53")


def _check_numbers(column: list[int | float | None]) -> None:
    for value in column:
        if type(value) is float and not math.isfinite(value):
            raise Refused("the database cannot hold numbers that are not finite")


def decode_value(num: float | None, kind: int, txt: str | None) -> Value:
    """The value of a row."""
    if kind == NUMBER:
        return num  # type: ignore[return-value]
    if kind == INTEGER:
        return int(num)  # type: ignore[arg-type]
    return bool(num) if kind == BOOLEAN else txt  # type: ignore[return-value]


labels = msgspec.json.Decoder(dict[str, str])
