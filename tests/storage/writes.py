"""Writes for the tests of the log, whatever takes them, and the selection of everything."""

from collections.abc import Sequence

from storage.models import Draft, Idempotency, Value, Write
from storage.patterns import Selection, parse_pattern

EVERYTHING = Selection([], [parse_pattern(">")])
DAY = 24 * 3600 * 1_000_000


def write(
    *readings: Draft, received: int = 1, strict: bool = False, idempotency: Idempotency | None = None
) -> Write:
    """A write as the handlers make it."""
    return Write(list(readings), received, 100 * len(readings), strict=strict, idempotency=idempotency)


def numbers(device: str, metric: str, stamps: Sequence[int], value: Value = 1) -> Write:
    """A write of one series."""
    return write(*((device, metric, ts, value) for ts in stamps))
