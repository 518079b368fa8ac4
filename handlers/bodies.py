"""Bodies that must fit one schema as a whole."""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from handlers.problems import Fault, Problem

T = TypeVar("T")

# What the decoders raise for input that is not well-formed. A text that is not UTF-8 is a
# UnicodeDecodeError (a ValueError, like what json raises), nesting beyond all measure a RecursionError.
NOT_WELL_FORMED = (msgspec.DecodeError, ValueError, RecursionError)

_PLACE = re.compile(r"(.*?) - at `(?:key` in `)?\$(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """The content: Problem 400 if it is not well-formed, 422 with a pointer if it does not fit."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise Problem("invalid", "the body does not fit", [verdict(str(error), None, "")]) from error
    except NOT_WELL_FORMED as error:
        raise malformed(error) from error


def malformed(error: Exception) -> Problem:
    """The 400 for what a decoder refused."""
    if type(error) is RecursionError:
        return Problem("malformed", "the body is nested too deeply")
    return Problem("malformed", f"the body cannot be decoded: {error}")


def verdict(message: str, content: object, base: str) -> Fault:
    """What msgspec says of an item, with its pointer. `content`: the item decoded as it is, if known."""
    # Fields are unknown at the root only; their names may be anything, a place of msgspec's as well.
    unknown = _UNKNOWN.fullmatch(message)
    if unknown is not None:
        return Fault(f"{base}/{escape(unknown[1])}", "invalid", message)
    placed = _PLACE.fullmatch(message)
    detail, path = (message, "") if placed is None else (placed[1], placed[2])
    if path == ".values[...]" and type(content) is dict:
        # msgspec does not tell the key.
        for key, value in content["values"].items():
            if type(key) is str and type(value) not in (bool, int, float, str):
                return Fault(f"{base}/values/{escape(key)}", "invalid", detail)
    steps = path.replace("[...]", "").replace("[", ".").replace("]", "")
    return Fault(base + steps.replace(".", "/"), "invalid", detail)


def escape(token: str) -> str:
    """A token of a JSON pointer (RFC 6901); lone surrogates, which no answer can hold, become `?`."""
    return token.encode("utf-8", "replace").decode().replace("~", "~0").replace("/", "~1")
