"""Query parameters and page cursors: read strictly, refused with the name of the parameter."""

import re
from typing import TypeVar

from handlers.exchange import Head, Media, Request
from handlers.problems import Problem
from handlers.times import (
    InvalidTime,
    Stamp,
    TimeFormat,
    parse_duration,
    parse_time,
    rfc3339,
    to_datetime,
    to_ms,
    to_us,
)
from storage.models import is_device, is_metric
from storage.patterns import InvalidPattern, Pattern, Selection, parse_pattern

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
REPEATS_MAX = 64

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)

T = TypeVar("T")

Query = dict[str, list[str]]


def invalid(name: str, detail: str) -> Problem:
    """A 400 that names the parameter."""
    return Problem("invalid_parameter", f"{name}: {detail}")


def one(query: Query, name: str) -> str | None:
    """The value of a parameter that may be given once."""
    values = query.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise invalid(name, "expected once")
    return values[0]


def several(query: Query, name: str) -> list[str]:
    """The values of a repeatable parameter."""
    values = query.get(name, [])
    if len(values) > REPEATS_MAX:
        raise invalid(name, f"expected at most {REPEATS_MAX} times")
    return values


def limit(query: Query) -> int:
    """How many items a page has: 1 to 1000, 100 if nothing is said."""
    text = one(query, "limit")
    if text is None:
        return LIMIT_DEFAULT
    if _INTEGER.fullmatch(text) is None or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid("limit", f"expected a whole number from 1 to {LIMIT_MAX}")
    return int(text)


def choice(query: Query, name: str, choices: dict[str, T], default: T) -> T:
    """One of the named values."""
    text = one(query, name)
    if text is None:
        return default
    if text not in choices:
        raise invalid(name, f"expected one of {', '.join(choices)}")
    return choices[text]


def time(query: Query, name: str, default: int) -> int:
    """Microseconds of an RFC 3339 time or of milliseconds."""
    text = one(query, name)
    if text is None:
        return default
    try:
        if _INTEGER.fullmatch(text):
            return parse_time(int(text))
        # A + that nobody escaped arrives as a space.
        return parse_time(text[:-6] + "+" + text[-5:] if text[-6:-5] == " " else text)
    except InvalidTime as error:
        raise invalid(name, str(error)) from error


def duration(query: Query, name: str) -> int | None:
    """Microseconds of a duration such as 5m."""
    text = one(query, name)
    if text is None:
        return None
    try:
        return parse_duration(text)
    except InvalidTime as error:
        raise invalid(name, str(error)) from error


def metrics(query: Query) -> tuple[str, ...]:
    """The metrics asked for; none means all."""
    names = several(query, "metric")
    for name in names:
        if not is_metric(name):
            raise invalid("metric", "expected 1 to 64 characters of A-Z a-z 0-9 _ . : / % -")
    return tuple(names)


def bearer(head: Head) -> str:
    """The token of a stream: from the header, else from the query, since browsers cannot set headers."""
    given = head.headers.get("Authorization", "")
    return given.partition(" ")[2].strip() if given else (one(head.query, "access_token") or "")


def patterns(query: Query) -> tuple[Pattern, ...]:
    """The device patterns asked for; none means all."""
    try:
        return tuple(parse_pattern(text) for text in several(query, "match"))
    except InvalidPattern as error:
        raise invalid("match", str(error)) from error


def selection(request: Request) -> Selection:
    """What the request asks for, cut to what its token grants."""
    query = request.head.query
    return Selection(patterns(query), request.head.principal.grants.patterns, metrics(query))


def device(request: Request) -> str:
    """The device of the path; what cannot be a device does not exist."""
    name = request.head.params["device"]
    if not is_device(name):
        raise Problem("not_found", "a device id is 1 to 128 characters: tokens joined by dots")
    return name


def readable_device(request: Request) -> str:
    """The device of the path if the token may see it; else it does not exist, for this token."""
    name = request.head.params["device"]
    if not request.head.principal.grants.allow(name):
        raise Problem("not_found", f"there is no device {name}")
    return name


_FORMATS = {"rfc3339": TimeFormat.RFC3339, "ms": TimeFormat.MS, "us": TimeFormat.US}


def time_format(query: Query) -> TimeFormat:
    """How times are to be written."""
    return choice(query, "time", _FORMATS, TimeFormat.RFC3339)


def stamp(request: Request) -> Stamp:
    """How this answer writes times."""
    head = request.head
    if "time" in head.query:
        match choice(head.query, "time", _FORMATS, TimeFormat.RFC3339):
            case TimeFormat.MS:
                return to_ms
            case TimeFormat.US:
                return to_us
    # MessagePack would make a timestamp extension of a datetime; API.md wants RFC 3339.
    return to_datetime if head.accept is Media.JSON else rfc3339
