"""`python -m bench.micro.hub SCENARIO WARM_UP SECONDS`: the hub alone, its followers without sockets.

There are as many different filters as the scenario says, ten of which take in each reading, in a batch of its
own: the most that a reading can cost. What is counted is readings of input per second of process time. Before
that each follower is checked: it got what is for it, in order, once, and nothing else.
"""

import argparse
import gc
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from bench.cells import Loop
from bench.verify import Unverified
from handlers.hub import Hub
from handlers.live.filters import Filter
from handlers.live.follower import Follower, Owner
from handlers.live.subscription import Overflow, Subscription
from handlers.live.wires import JsonFrames
from handlers.times import to_datetime
from storage.models import Batch, Reading
from storage.patterns import parse_pattern

MATCHES = 10
EPOCH = "3f9a1c07"
# Batches of one measurement, and of one check.
SOME, CHECKED = 2_000, 300
QUEUE, WINDOW = 2 * 1024 * 1024, 32 * 1024 * 1024
# Ways to ask for the devices of a group.
_PATTERNS = ("bench.g{}.*", "bench.g{}.>", "bench.g{}.one")
_GRANTS = (parse_pattern("bench.>"),)


class Workload(msgspec.Struct, frozen=True):
    """So many filters, and so many readings a batch; `cold`: each is of a device never seen before."""

    filters: int
    batch: int = 1
    cold: bool = False


WORKLOADS = {
    "filters-10": Workload(10),
    "filters-100": Workload(100),
    "filters-1000": Workload(1_000),
    "filters-10000": Workload(10_000),
    "filters-1000-cold": Workload(1_000, cold=True),
    "filters-1000-batch": Workload(1_000, batch=100),
}


class Nobody(Owner):
    """The owner of a follower that is never slow."""

    def too_slow(self) -> None:
        """See Owner."""
        raise Unverified("a follower was called slow")

    def broken(self) -> None:
        """See Owner."""
        raise Unverified("a follower broke")

    def dropped(self, subscription: Subscription) -> bytes:
        """See Owner."""
        raise Unverified("something was dropped")


class Drain:
    """A Sink that takes everything; `write` costs as little as a method of C can."""

    __slots__ = ("pending", "write")

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self.write = keep
        # int() is 0.
        self.pending: Callable[[], int] = int

    def hold(self) -> None:
        """See Sink."""

    def release(self) -> None:
        """See Sink."""

    def close(self) -> None:
        """See Sink."""

    abort = close


class Bench:
    """A hub with the followers of a workload. `kept`: what each has got since, if `keep`."""

    def __init__(self, workload: Workload, *, keep: bool = False) -> None:
        self.workload = workload
        self.hub = Hub(0, epoch=EPOCH, window=WINDOW, now=time.monotonic, alarm=_nothing, observe=_nothing)
        self.kept: list[deque[bytes]] = []
        self._groups = max(1, workload.filters // MATCHES)
        self._times = itertools.count(1_790_000_000_000_000, 1_000)
        wire = JsonFrames(0, EPOCH, to_datetime)
        for number in range(workload.filters):
            kept: deque[bytes] = deque(maxlen=None if keep else 0)
            self.kept.append(kept)
            follower = Follower(self.hub, Nobody(), Drain(kept.append), wire, QUEUE)
            subscription = Subscription(1, self._filter(number), Overflow.DISCONNECT, 0.0, 0)
            follower.add(subscription)
            follower.go_live(subscription)

    def _filter(self, number: int) -> Filter:
        """No two of them are the same: each names a metric of its own beside that which comes."""
        group, place = divmod(number, MATCHES)
        pattern = _PATTERNS[0 if self.workload.cold else place % len(_PATTERNS)]
        return Filter([parse_pattern(pattern.format(group))], _GRANTS, ("m", f"only-{number}"))

    def batches(self) -> Iterator[Batch]:
        """Batches without end, their readings of one group after the other."""
        size = self.workload.batch
        for first in itertools.count(1, size):
            yield Batch(first, first + size - 1, [self._reading(first + n) for n in range(size)])

    def _reading(self, offset: int) -> Reading:
        device = f"n{offset}" if self.workload.cold else "one"
        return Reading(offset, f"bench.g{offset % self._groups}.{device}", "m", next(self._times), offset)

    def check(self) -> None:
        """Publish some batches, to followers that keep what they get; Unverified."""
        some = list(itertools.islice(self.batches(), CHECKED))
        for batch in some:
            self.hub.publish(batch)
        readings = [reading for batch in some for reading in batch.readings]
        for number, kept in enumerate(self.kept):
            group = number // MATCHES
            wanted = [reading.offset for reading in readings if reading.offset % self._groups == group]
            found = offsets(b"".join(kept))
            if found != wanted:
                raise Unverified(f"follower {number} expected {wanted[:20]}, got {found[:20]}")


def offsets(data: bytes) -> list[int]:
    """The values of the readings in joined frames."""
    found = []
    while data:
        size, begin = data[1], 2
        if size == 126:
            size, begin = int.from_bytes(data[2:4], "big"), 4
        found.append(msgspec.json.decode(data[begin : begin + size])["value"])
        data = data[begin + size :]
    return found


def measure(workload: Workload, seconds: float) -> tuple[int, float]:
    """Batches that were handed on, and the seconds of process time that it took. Unverified."""
    bench = Bench(workload)
    source, publish, spent, count = bench.batches(), bench.hub.publish, 0.0, 0
    for batch in itertools.islice(source, SOME):
        publish(batch)
    gc.collect()
    gc.freeze()
    before = bench.hub.figures.delivered
    while spent < seconds:
        some = list(itertools.islice(source, max(1, SOME // workload.batch)))
        began = time.process_time()
        for batch in some:
            publish(batch)
        spent += time.process_time() - began
        count += len(some)
    delivered = bench.hub.figures.delivered - before
    if delivered != (wanted := count * workload.batch * MATCHES):
        raise Unverified(f"expected {wanted} deliveries, counted {delivered}")
    return count, spent


def _nothing(_: float) -> None:
    """Nobody waits for this."""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench.micro.hub", description=__doc__)
    parser.add_argument("scenario", choices=WORKLOADS)
    parser.add_argument("warm_up", type=float)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    workload = WORKLOADS[options.scenario]
    try:
        Bench(workload, keep=True).check()
        measure(workload, options.warm_up / 4)
        count, spent = measure(workload, options.seconds)
    except Unverified as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(Loop(count, spent, 0, workload.batch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
