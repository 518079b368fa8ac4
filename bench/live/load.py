"""`python -m bench.live.load` loads a target with followers and a writer: a task on stdin, JSON on stdout.

closed: two writes are always under way, for the highest throughput. Followers are read in sweeps, so that
nobody has to wake them, and few calls take in much: a server pays for sending, as if they were elsewhere.
open: writes at a fixed rate, each delivery timed from when its write was due (see bench/load/open_loop.py).
The loop spins then.
drain: every follower has in its socket what comes between two sweeps, the server is idle: how fast the crowd
itself can be.
"""

import gc
import sys
import time
from collections import deque

import msgspec
from msgspec import Struct

from bench.environment import Cores, CoreWatch, group_cpu
from bench.live.crowd import PATIENCE, Crowd, Load, Transport, Writer
from bench.live.memory import resident
from bench.load import client
from bench.load.open_loop import Open, percentile
from bench.verify import Unverified

# Seconds between two sweeps, and followers of a sweep that are read before the writer is looked after again.
SWEEP, SLICE = 0.05, 50
# Writes under way in a closed loop: one that is committed, and one that waits for that; and seconds between
# two of them, or a group commit would make one of both.
UNDER_WAY, APART = 2, 0.002
# Seconds from the first follower to the end: servers ping after 25 s, which the crowd does not take.
SECONDS_MAX = 22.0
# Drains, and writes of each.
DRAINS, DRAINED = 50, 10


class Shape(Struct, frozen=True):
    """What a load is: so many followers, `readings` a write, `rate` writes per second if it is an open loop.

    `stuck`: followers beside them that read nothing, and `overflow` what they want then. `padding`: length of
    the values, 0 for numbers.
    """

    followers: int
    readings: int = 1
    transport: Transport = Transport.WEBSOCKET
    rate: float = 0.0
    stuck: int = 0
    overflow: str = ""
    padding: int = 0
    drain: bool = False


class Task(Struct, frozen=True):
    """A load of one server, whose processes are those of `group`."""

    shape: Shape
    host: str
    port: int
    token: str
    group: int
    warm_up: float
    seconds: float


class Loaded(Struct, frozen=True):
    """What was found, everything verified.

    `rate`: deliveries (readings times followers) per second; `size`: bytes of one, on the wire. `memory`:
    bytes resident in the server before and after. `open`: of an open loop, latencies of deliveries.
    """

    deliveries: int
    rate: float
    size: float
    memory: tuple[int, int]
    cores: Cores
    open: Open | None = None


def run(task: Task) -> Loaded:
    """Load in a process on the load core; Void if the target does not do what it must."""
    timeout = task.warm_up + task.seconds + 4 * PATIENCE
    return client.run("bench.live.load", [], timeout, Loaded, msgspec.json.encode(task))


def perform(task: Task) -> Loaded:
    """Connect, warm up, measure. Unverified, OSError."""
    shape, address = task.shape, (task.host, task.port, task.token)
    began = time.monotonic()
    writer = Writer(*address, shape.padding)
    crowd = Crowd(*address, shape.transport, shape.padding)
    load = Load(crowd, writer)
    try:
        crowd.join(shape.followers)
        if shape.stuck:
            crowd.stick(shape.stuck, shape.overflow)
        if shape.drain:
            return _drain(load, task)
        measure = _open if shape.rate else _closed
        measure(load, shape, task.warm_up)
        before, length, first = resident(task.group), len(crowd.reference.data), writer.written
        watch = CoreWatch(lambda: group_cpu(task.group))
        spent, opened = measure(load, shape, task.seconds)
        cores = watch.read()
        after = resident(task.group)
        if time.monotonic() - began > SECONDS_MAX:
            raise Unverified(f"it took more than {SECONDS_MAX:.0f} s, and pings are no readings")
        readings = writer.written - first
        deliveries = readings * len(crowd)
        size = (len(crowd.reference.data) - length) / max(1, readings)
        return Loaded(deliveries, deliveries / spent, size, (before, after), cores, opened)
    finally:
        load.close()


def _closed(load: Load, shape: Shape, seconds: float) -> tuple[float, None]:
    """Writes, as many as are acknowledged; seconds until the last was delivered."""
    writer, crowd = load.writer, load.crowd
    start = now = time.monotonic()
    sweep, written, owed = start + SWEEP, 0.0, UNDER_WAY
    due: deque[int] = deque()
    while now < start + seconds:
        if owed and now - written >= APART:
            writer.write(shape.readings)
            written, owed = now, owed - 1
        if not due and now >= sweep:
            due.extend(load.ready())
            sweep = now + SWEEP
        for _ in range(min(SLICE, len(due))):
            crowd.take(due.popleft())
        owed += load.acknowledged(0 if due else APART if owed else max(0.0, sweep - now))
        now = time.monotonic()
    load.finish()
    return time.monotonic() - start, None


def _open(load: Load, shape: Shape, seconds: float) -> tuple[float, Open]:
    """Writes at the rate of the shape; what the deliveries took."""
    writer, crowd, clock = load.writer, load.crowd, time.monotonic
    ends, followers = crowd.reference.reader.ends, crowd.followers
    total, first = max(1, int(shape.rate * seconds)), writer.written
    wanted = total * shape.readings * len(crowd)
    for follower in followers.values():
        follower.seen = first
    dues: list[float] = []
    lags: list[float] = []
    latencies: list[float] = []
    idle = 0.0
    start = clock()
    deadline = start + seconds + PATIENCE
    due = start
    while len(latencies) < wanted:
        now = clock()
        if now > deadline:
            raise Unverified(f"{wanted - len(latencies)} of {wanted} deliveries did not come in time")
        if len(dues) < total and due <= now:
            writer.write(shape.readings)
            lags.append(now - due)
            dues.append(due)
            due = start + len(dues) / shape.rate
        fds, acknowledged = load.turn(0)
        if not fds:
            if not acknowledged:
                idle += clock() - now
            continue
        now = clock()
        for fd in fds:
            follower = followers[fd]
            seen, place = follower.seen, follower.place
            while seen < len(ends) and ends[seen] <= place:
                latencies.append(now - dues[(seen - first) // shape.readings])
                seen += 1
            follower.seen = seen
    spent = clock() - start
    load.finish()
    return spent, _summary(shape, latencies, lags, len(crowd), idle / spent, spent)


def _summary(
    shape: Shape, latencies: list[float], lags: list[float], followers: int, idle: float, spent: float
) -> Open:
    ordered = sorted(latencies)
    p50, p90, p99, p999 = (percentile(ordered, share) * 1000 for share in (0.5, 0.9, 0.99, 0.999))
    planned = shape.rate * shape.readings * followers
    # The last write is due one interval before the end.
    writes = len(lags)
    rate = planned * min(1.0, writes / shape.rate / spent) if spent else 0.0
    return Open(
        planned=planned,
        rate=rate,
        requests=len(ordered),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=ordered[-1] * 1000,
        lag_p99_ms=percentile(sorted(lags), 0.99) * 1000,
        waited=0,
        idle=idle,
    )


def _drain(load: Load, task: Task) -> Loaded:
    """Deliveries per second of the crowd by itself: it looks only once all of a write is in its sockets."""
    shape, writer, crowd = task.shape, load.writer, load.crowd
    spent, watch, before = 0.0, CoreWatch(lambda: group_cpu(task.group)), resident(task.group)
    for _ in range(DRAINS):
        for _ in range(DRAINED):
            writer.write(shape.readings)
            if not load.acknowledged(PATIENCE):
                raise Unverified("a write was not acknowledged")
        began = time.perf_counter()
        load.finish()
        spent += time.perf_counter() - began
    deliveries = writer.written * len(crowd)
    size = len(crowd.reference.data) / writer.written
    return Loaded(deliveries, deliveries / spent, size, (before, resident(task.group)), watch.read())


def main() -> int:
    """The process that loads."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    # A collection in between would look like a slow delivery.
    gc.disable()
    try:
        loaded = perform(task)
    except (Unverified, OSError) as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(loaded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
