"""A closed loop over WebSockets: each connection says something, waits until it comes back, says it again.

Run as `python -m bench.load.echo`, pinned; it prints one JSON object. Every byte that comes back is compared.
"""

import argparse
import gc
import select
import socket
import sys
from time import perf_counter

import msgspec

from bench import contract
from bench.live.wire import TEXT, check_upgraded, head_end, masked, upgrade
from bench.load import client
from bench.load.open_loop import BadAnswer, percentile
from bench.load.wrk import PATIENCE, Closed
from bench.verify import Subject, Unverified

SENT = masked(contract.ECHO_TEXT)
WANTED = bytes((TEXT, len(contract.ECHO_TEXT))) + contract.ECHO_TEXT
# Messages of a check: more than a server might have by chance in one read.
CHECKED = 5
_TIMEOUT = 10.0
_RECEIVE = 64 * 1024


def run(url: str, connections: int, seconds: float) -> Closed:
    """Load for `seconds` in a process on the load core; Void if an answer is bad."""
    arguments = [url, str(seconds), str(connections)]
    return client.run("bench.load.echo", arguments, seconds + PATIENCE, Closed)


def check(subject: Subject) -> None:
    """A WebSocket at /echo gives back each text as it came."""
    connection = _connect(subject.url)
    try:
        for _ in range(CHECKED):
            connection.sendall(SENT)
            found = b""
            while len(found) < len(WANTED):
                data = connection.recv(_RECEIVE)
                if not data:
                    break
                found += data
            if found != WANTED:
                raise Unverified(f"expected {WANTED!r} back from the WebSocket, got {found[:200]!r}")
    finally:
        connection.close()


def measure(url: str, connections: int, seconds: float) -> Closed:
    """The loop itself; BadAnswer, OSError, Unverified."""
    poll, sockets = select.epoll(), {}
    for _ in range(connections):
        connection = _connect(url)
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    sends = {fd: connection.send for fd, connection in sockets.items()}
    receives = {fd: connection.recv for fd, connection in sockets.items()}
    sent, begun, latencies = {}, dict.fromkeys(sockets, b""), []
    began = perf_counter()
    for fd, send in sends.items():
        sent[fd] = perf_counter()
        send(SENT)
    now, end, waits = began, began + seconds, poll.poll
    while now < end:
        ready = waits(_TIMEOUT)
        if not ready:
            raise BadAnswer(f"nothing came back for {_TIMEOUT} s")
        for fd, _ in ready:
            data = begun[fd] + receives[fd](_RECEIVE)
            if data != WANTED:
                if data == begun[fd] or not WANTED.startswith(data):
                    raise BadAnswer(f"expected the text back, got {data[:200]!r}")
                begun[fd] = data
                continue
            now = perf_counter()
            latencies.append(now - sent[fd])
            begun[fd] = b""
            sends[fd](SENT)
            sent[fd] = now
    spent = perf_counter() - began
    for connection in sockets.values():
        connection.close()
    ordered = sorted(latencies)
    p50, p99 = (percentile(ordered, share) * 1000 for share in (0.5, 0.99))
    return Closed(len(ordered), len(ordered) / spent, p50, p99)


def _connect(url: str) -> socket.socket:
    """A WebSocket that is open; Unverified, OSError."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=_TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asked, accept = upgrade("", contract.ECHO)
    connection.sendall(asked)
    head = b""
    while head_end(head) < 0:
        data = connection.recv(_RECEIVE)
        if not data:
            raise Unverified(
                f"expected 101 for a WebSocket at {contract.ECHO}, got {head[:200]!r} and the end"
            )
        head += data
    check_upgraded(head, accept)
    return connection


def main() -> int:
    """The process that loads."""
    parser = argparse.ArgumentParser("python -m bench.load.echo")
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("connections", type=int)
    options = parser.parse_args()
    # A collection in between would look like a slow answer.
    gc.disable()
    try:
        found = measure(options.url, options.connections, options.seconds)
    except (BadAnswer, Unverified, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
