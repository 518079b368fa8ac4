"""Values as a column of SQLite holds them: it has no boolean, so that is a BLOB of one byte."""

from collections.abc import Iterable

from storage.models import Value

_TRUE, _FALSE = b"\x01", b"\x00"

# How SQL tells numbers from booleans and text.
IS_NUMBER = "typeof(value) IN ('integer', 'real')"


def encode_value(value: Value) -> Value | bytes:
    """The value as its column holds it."""
    if value is True:
        return _TRUE
    return _FALSE if value is False else value


def decode_value(stored: Value | bytes) -> Value:
    """The value that `encode_value` made this of."""
    if type(stored) is bytes:
        return stored == _TRUE
    return stored  # type: ignore[return-value]


def decode_values(stored: Iterable[Value | bytes]) -> list[Value]:
    """The same for a column: without a call for each."""
    return [value == _TRUE if type(value) is bytes else value for value in stored]  # type: ignore[misc]


def same_value(one: Value, other: Value) -> bool:
    """Whether two values are one: 1 and 1.0 are, 1 and true are not."""
    return one == other and (type(one) is bool) == (type(other) is bool)
