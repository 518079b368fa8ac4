"""Times and durations as they stand on the wire: RFC 3339, milliseconds, `5m`."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum

import msgspec

from storage.models import TS_END

_HOUR = r"(?:[01]\d|2[0-3])"
_RFC3339 = re.compile(
    rf"\d{{4}}-\d\d-\d\d[Tt ]{_HOUR}:[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-]{_HOUR}:[0-5]\d)", re.ASCII
)
_DURATION = re.compile(r"([1-9][0-9]{0,9})(ms|s|m|h|d|w)", re.ASCII)
_UNITS = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)

# Up to here (2106) a float of seconds tells microseconds apart after rounding.
_FLOAT_EXACT = 2**32 * 1_000_000

EXPECTED = "expected RFC 3339 with an offset, or milliseconds since 1970; years 1970 to 9999"


class InvalidTime(ValueError):
    """Not a time or duration of the wire; the message says what was expected."""


class TimeFormat(IntEnum):
    """What `?time=` asks for."""

    RFC3339 = 0
    MS = 1
    US = 2


Stamp = Callable[[int], str | int | datetime]
Stamps = Callable[[Sequence[int]], Sequence[str | int | datetime]]


def parse_time(given: str | int) -> int:
    """Microseconds since 1970, cut (not rounded) to the microsecond."""
    if type(given) is int:
        micros = given * 1000
    else:
        text = str(given)
        if _RFC3339.fullmatch(text) is None:
            raise InvalidTime(EXPECTED)
        try:
            since = datetime.fromisoformat(text.upper()) - _EPOCH
        except ValueError as error:
            raise InvalidTime(f"{error}; {EXPECTED}") from error
        micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not 0 <= micros < TS_END:
        raise InvalidTime(EXPECTED)
    return micros


def parse_duration(text: str) -> int:
    """Microseconds of `100ms`, `30s`, `5m`, `1h`, `1d`, `1w`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidTime("expected a duration such as 100ms, 30s, 5m, 1h, 1d or 1w")
    micros = int(found[1]) * _UNITS[found[2]]
    if micros >= TS_END:
        raise InvalidTime("the duration is too long")
    return micros


def rfc3339(micros: int) -> str:
    """The time in UTC, with as many digits as it needs: none or six."""
    return (_NAIVE_EPOCH + timedelta(microseconds=micros)).isoformat() + "Z"


def to_datetime(micros: int) -> datetime:
    """The time as the JSON encoder writes it fastest: it prints an aware datetime as RFC 3339."""
    if micros < _FLOAT_EXACT:
        return datetime.fromtimestamp(micros / 1e6, UTC)
    return _EPOCH + timedelta(microseconds=micros)


def to_ms(micros: int) -> int:
    """Milliseconds, cut."""
    return micros // 1000


def to_us(micros: int) -> int:
    """Microseconds."""
    return micros


def column(style: Stamp) -> Stamps:
    """The same for a column of times."""
    if style is to_datetime:
        return _to_datetimes
    return lambda many: [style(micros) for micros in many]


def _to_datetimes(many: Sequence[int]) -> Sequence[datetime]:
    if max(many, default=0) >= _FLOAT_EXACT:
        return [to_datetime(micros) for micros in many]
    # A sixth of what datetime.fromtimestamp takes for all of them.
    return msgspec.convert([micros / 1e6 for micros in many], list[datetime], strict=False)
