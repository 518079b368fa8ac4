"""An open loop: requests at a fixed rate, latency counted from when each SHOULD have been sent.

Whoever waits for an answer before the next request leaves out the requests that a stall would have
delayed (coordinated omission). Here they are due whether or not the server keeps up; one that finds all
connections busy waits, and that counts. None of the packaged tools does this: h2load counts from the
real sending, autocannon fills in what it supposes.

The client spins on its core, so that it sends within microseconds of the plan, and gives the core away
whenever it has nothing to do: a database that shares it would else be woken at the kernel's next tick
only, milliseconds later. What the client cannot keep itself is its lag: it is measured where a
connection was free, and shown. Run as
`python -m bench.load.open_loop`, pinned, with its request on stdin; it prints one JSON object.
"""

import argparse
import gc
import math
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Sequence
from time import perf_counter

import msgspec
from msgspec import Struct

from bench.load import client
from bench.load.histogram import counted

# Seconds after the last planned request in which all must be answered.
PATIENCE = 10.0
# From these on a client is late: milliseconds of its own lag (p99), share of the rate that was planned.
LAG_MAX, RATE_MIN = 0.5, 0.98
_RECEIVE = 256 * 1024
_HEAD_END = b"\r\n\r\n"


class Open(Struct, frozen=True):
    """What was measured; times in milliseconds.

    `planned` and `rate`: requests per second that were to be, and that were. `lag`: how late a request
    was sent although a connection was free, the client's own fault. `waited`: requests that found
    every connection busy. `idle`: share of the client's time in which it had nothing to do.
    `histogram`: of the latencies, by bucket (bench/load/histogram.py).
    """

    planned: float
    rate: float
    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    lag_p99_ms: float
    waited: int
    idle: float
    histogram: dict[int, int] = {}

    @property
    def late(self) -> bool:
        """Whether the client itself did not keep to the plan, so that its latencies are in doubt."""
        return self.lag_p99_ms > LAG_MAX or self.rate < RATE_MIN * self.planned


class BadAnswer(Exception):
    """The server said something else than 200, or hung up."""


def run(url: str, request: bytes, connections: int, seconds: float, rate: float) -> Open:
    """Load at `rate` requests per second in a process on the load core; Void if an answer is bad."""
    arguments = [url.removeprefix("http://"), str(rate), str(seconds), str(connections)]
    return client.run("bench.load.open_loop", arguments, seconds + 2 * PATIENCE, Open, request)


class Client:
    """Connections to one server."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self._sockets = {}
        self._poll = select.epoll()
        for _ in range(connections):
            sock = socket.create_connection((host, port), timeout=PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)

    def close(self) -> None:
        """Hang up."""
        self._poll.close()
        for sock in self._sockets.values():
            sock.close()

    def measure(self, request: bytes, rate: float, seconds: float) -> Open:
        """Send `rate` requests per second for `seconds`; BadAnswer, OSError (TimeoutError among them)."""
        total, interval = max(1, int(rate * seconds)), 1 / rate
        sends = {fd: sock.send for fd, sock in self._sockets.items()}
        receives = {fd: sock.recv for fd, sock in self._sockets.items()}
        free, poll, give_way = deque(sends), self._poll.poll, os.sched_yield
        # Per connection when its request was due, and what has come of the answer.
        dues: dict[int, float] = {}
        begun: dict[int, bytes] = {}
        latencies: list[float] = []
        lags: list[float] = []
        sent = waited = 0
        idle = 0.0
        # Whether the request that is due next has found no free connection.
        starved = False
        start = now = perf_counter()
        due, deadline = start, start + seconds + PATIENCE
        while len(latencies) < total:
            before = now
            worked = False
            now = perf_counter()
            if now > deadline:
                raise TimeoutError(f"{total - len(latencies)} of {total} requests were not answered in time")
            while sent < total and due <= now:
                worked = True
                if not free:
                    waited += not starved
                    starved = True
                    break
                fd = free.popleft()
                if sends[fd](request) != len(request):
                    raise BadAnswer("the server does not read")
                dues[fd] = due
                if not starved:
                    lags.append(now - due)
                starved = False
                sent += 1
                due = start + sent * interval
                now = perf_counter()
            for fd, _ in poll(0):
                worked = True
                data = receives[fd](_RECEIVE)
                if fd in begun:
                    data = begun.pop(fd) + data
                if is_whole(data):
                    latencies.append(perf_counter() - dues[fd])
                    free.append(fd)
                else:
                    begun[fd] = data
            if not worked:
                idle += now - before
                give_way()
        spent = perf_counter() - start
        return _summary(rate, spent, latencies, lags, waited, idle / spent)


def is_whole(data: bytes) -> bool:
    """Whether an answer has come in full; BadAnswer unless it is one 200."""
    if not data.startswith(b"HTTP/1.1 200"):
        raise BadAnswer(f"expected 200, got {data[:200]!r}" if data else "the server hung up")
    end = data.find(_HEAD_END) + 4
    if end < 4:
        return False
    head = data[:end].lower()
    place = head.find(b"\r\ncontent-length:")
    if place < 0:
        raise BadAnswer(f"expected Content-Length, got {head!r}")
    whole = end + int(head[place + 17 : head.find(b"\r\n", place + 17)])
    if len(data) > whole:
        raise BadAnswer(f"expected one answer, got more: {data[whole:][:200]!r}")
    return len(data) == whole


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that is not below `share` of them all (nearest rank); 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _summary(
    rate: float, spent: float, latencies: list[float], lags: list[float], waited: int, idle: float
) -> Open:
    ordered = sorted(latencies)
    p50, p90, p99, p999 = (percentile(ordered, share) * 1000 for share in (0.5, 0.9, 0.99, 0.999))
    return Open(
        planned=rate,
        rate=len(ordered) / spent,
        requests=len(ordered),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=ordered[-1] * 1000 if ordered else 0.0,
        lag_p99_ms=percentile(sorted(lags), 0.99) * 1000,
        waited=waited,
        idle=idle,
        histogram=counted(ordered),
    )


def main() -> int:
    """The process that loads."""
    parser = argparse.ArgumentParser("python -m bench.load.open_loop")
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("connections", type=int)
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    request = sys.stdin.buffer.read()
    loop = Client(host, int(port), options.connections)
    # A collection in between would look like a slow answer.
    gc.disable()
    try:
        measured = loop.measure(request, options.rate, options.seconds)
    except (BadAnswer, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        loop.close()
    sys.stdout.buffer.write(msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
