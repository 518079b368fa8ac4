"""The nouns of the domain, as storage keeps them. Times are microseconds since 1970 in UTC."""

import re
from collections.abc import Callable
from enum import IntEnum

from msgspec import Struct

from storage.errors import StorageError

Value = bool | int | float | str

# device, metric, ts (None: the gate gives it at commit), value
Draft = tuple[str, str, int | None, Value]

DEVICE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
DEVICE_MAX = 128
METRIC = re.compile(r"[A-Za-z0-9_.:/%-]{1,64}", re.ASCII)
TEXT_MAX = 1024
INTEGER_MAX = 2**53
# The first microsecond of the year 10000: the end of what a timestamp can say.
TS_END = 253_402_300_800_000_000


def is_device(name: str) -> bool:
    """Whether `name` is a device id: 1 to 128 characters, tokens joined by dots."""
    return len(name) <= DEVICE_MAX and DEVICE.fullmatch(name) is not None


def is_metric(name: str) -> bool:
    """Whether `name` is a metric name."""
    return METRIC.fullmatch(name) is not None


class Reading(Struct, frozen=True, gc=False, array_like=True):
    """A stored reading: one row of the log."""

    offset: int
    device: str
    metric: str
    ts: int
    value: Value


class Sample(Struct, frozen=True, gc=False):
    """The newest reading of a series, its device and metric known from the place it stands in."""

    ts: int
    value: Value
    offset: int


class Latest(Struct):
    """Per metric the reading with the greatest ts; `offset`: the newest of the device."""

    device: str
    offset: int
    metrics: dict[str, Sample]


class Bucket(Struct, frozen=True, gc=False):
    """Aggregates of the numbers in `[ts, ts + every)`, named as in `FUNCTIONS`."""

    ts: int
    metric: str
    figures: dict[str, int | float]


FUNCTIONS = ("avg", "min", "max", "count", "sum", "first", "last")


class Device(Struct, frozen=True):
    """A registered device; `metrics` in name order."""

    device: str
    name: str
    labels: dict[str, str]
    created_at: int
    last_seen: int
    metrics: tuple[str, ...] = ()


class Client(Struct, frozen=True):
    """A machine account; `ttl`: lifetime in seconds of the tokens it gets, 0 for the default."""

    id: str
    secret_hash: bytes
    scopes: tuple[str, ...]
    devices: tuple[str, ...]
    ttl: int
    created_at: int


class Revocation(Struct, frozen=True, array_like=True):
    """An end to tokens before their time.

    `kind` "token": the one with that jti. `kind` "subject": all of that subject issued at
    or before `cutoff` (seconds since 1970). Forgotten after `expires` (seconds), when no
    such token can be alive any more.
    """

    kind: str
    id: str
    cutoff: int
    expires: int


class Verdict(IntEnum):
    """What a position is worth for somebody who wants to continue from it."""

    OK = 0
    UNKNOWN_EPOCH = 1
    EXPIRED = 2
    AHEAD = 3


# An answer is kept for its idempotency key for this long.
IDEMPOTENCY_SECONDS = 24 * 3600


class Idempotency(Struct, frozen=True):
    """Makes a write repeatable: `digest` tells whether the same key comes with the same body."""

    principal: str
    key: str
    digest: bytes


class Outcome(Struct, frozen=True, array_like=True):
    """What a commit made of one write.

    `conflicts`: indices into the write's readings. `offset`: the head of the log after it.
    """

    accepted: int
    duplicates: int
    conflicts: tuple[int, ...]
    offset: int


Result = Outcome | StorageError


class Write:
    """Readings on their way into the log, and the answer on its way back.

    `received`: microseconds, what a reading without ts is at least given. `size`: bytes, counted
    against the queue's bound. `strict`: a conflict refuses the whole write. `result` is None until
    the write is settled.
    """

    __slots__ = ("_listener", "idempotency", "readings", "received", "result", "size", "strict")

    def __init__(
        self,
        readings: list[Draft],
        received: int,
        size: int,
        strict: bool = False,
        idempotency: Idempotency | None = None,
    ) -> None:
        self.readings = readings
        self.received = received
        self.size = size
        self.strict = strict
        self.idempotency = idempotency
        self.result: Result | None = None
        self._listener: Callable[[Result], None] | None = None

    def then(self, listener: Callable[[Result], None]) -> None:
        """Call `listener` with the result, on the event loop, once the write is settled."""
        if self.result is None:
            self._listener = listener
        else:
            listener(self.result)

    def settle(self, result: Result) -> None:
        """Say how it ended and tell the listener, if there is one."""
        self.result = result
        # Listeners know what knows the write: kept, it would be a cycle for each write.
        listener, self._listener = self._listener, None
        if listener is not None:
            listener(result)


class Batch(Struct, frozen=True, array_like=True):
    """What one transaction added: `first` to `last` without a hole, in log order.

    `epoch`: that of the log that it was added to; "" where a log keeps its epoch as long as the gate runs.
    """

    first: int
    last: int
    readings: list[Reading]
    epoch: str = ""


class Appended(Struct, frozen=True):
    """What one call of the engine made of some writes: one result each, in their order.

    `late`: what an earlier call turned out to have stored, whose writers were told that nobody knows.
    """

    results: list[Result]
    batch: Batch | None = None
    late: Batch | None = None
