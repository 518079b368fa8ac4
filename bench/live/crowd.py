"""A crowd of followers on one core, each of whose bytes are compared with what the others got.

All of them follow the same, so all get the same bytes from the moment on that they are live. Whoever is the
first with some of them gives the reference, which is read in full; for the others one memcmp shows that they
got every reading, in order and once. So the whole load is verified, at a price that leaves the receiver
several times faster than any server here can send (see the scenario `ceiling`).
"""

import select
import socket
import time
from collections import deque
from enum import Enum

from bench.live import wire
from bench.verify import Unverified

# Seconds in which a handshake is answered, and in which all must have come at the end.
PATIENCE = 20.0
# Handshakes under way at a time.
WAVE = 50
BUFFER = 1024 * 1024


class Transport(Enum):
    """How followers are connected."""

    WEBSOCKET = "websocket"
    SSE = "sse"


class Reference:
    """The bytes that all followers get, as far as one of them has got them."""

    def __init__(self, reader: wire.Reader) -> None:
        self.reader = reader
        self.data = bytearray()

    def follow(self, piece: memoryview, place: int) -> int:
        """The place behind `piece`, which a follower got at `place`. Unverified if others got another."""
        data = self.data
        end = place + len(piece)
        if data.startswith(piece, place):
            return end
        known = len(data) - place
        if known >= len(piece) or not data.startswith(piece[:known], place):
            raise Unverified(self._difference(bytes(piece), place))
        data += piece[known:]
        self.reader.read(data)
        return end

    def _difference(self, piece: bytes, place: int) -> str:
        wanted = bytes(self.data[place : place + len(piece)])
        at = next(
            (n for n, (ours, theirs) in enumerate(zip(wanted, piece, strict=False)) if ours != theirs), 0
        )
        return (
            f"a follower got other bytes than the others, from {place + at} on: "
            f"{piece[at : at + 160]!r} and not {wanted[at : at + 160]!r}"
        )


class Connection:
    """One socket. `place`: how much of the reference its follower has got."""

    __slots__ = ("place", "receive", "seen")

    def __init__(self, sock: socket.socket) -> None:
        self.receive = sock.recv_into
        self.place = 0
        # How many readings of the reference were timed already.
        self.seen = 0


class Crowd:
    """Followers of one target; the first `stuck` of them read nothing any more once they are live."""

    def __init__(self, host: str, port: int, token: str, transport: Transport, padding: int = 0) -> None:
        self._address = host, port
        self._token = token
        self._transport = transport
        self._events = wire.EventReader(padding)
        self.reference = Reference(self._events if transport is Transport.SSE else wire.FrameReader(padding))
        self.poll = select.epoll()
        self.followers: dict[int, Connection] = {}
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._socks: list[socket.socket] = []

    def __len__(self) -> int:
        return len(self.followers)

    def join(self, count: int) -> None:
        """Connect so many more followers; all of them are live then. Unverified, OSError."""
        while count > 0:
            self._wave(min(WAVE, count))
            count -= WAVE

    def stick(self, count: int, overflow: str) -> None:
        """Connect followers that read nothing once they are live, into the smallest of buffers."""
        for _ in range(count):
            sock = self._connect(receive_buffer=4096)
            self._open(sock, overflow)

    def _wave(self, count: int) -> None:
        socks = [self._connect() for _ in range(count)]
        for sock in socks:
            # The handshake is blocking, one after the other: the server works on the others meanwhile.
            self._open(sock)
        for sock in socks:
            sock.setblocking(False)
            self.followers[sock.fileno()] = Connection(sock)
            self.poll.register(sock, select.EPOLLIN)

    def _open(self, sock: socket.socket, overflow: str = "") -> None:
        if self._transport is Transport.SSE:
            self._events.chunked = _open_events(sock, self._token)
        else:
            _open_frames(sock, self._token, overflow)

    def _connect(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        self._socks.append(sock)
        sock.settimeout(PATIENCE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def take(self, fd: int) -> Connection:
        """Read what there is for a follower, and compare it. Unverified."""
        follower = self.followers[fd]
        count = follower.receive(self._buffer)
        if not count:
            raise Unverified("the server hung up on a follower")
        follower.place = self.reference.follow(self._view[:count], follower.place)
        return follower

    def lacking(self, readings: int) -> str:
        """What is not there yet of so many readings, in words; "" if all followers have all of them."""
        if self.reference.reader.next < readings:
            return f"reading {self.reference.reader.next} of {readings} did not come to anybody"
        end = len(self.reference.data)
        late = sum(follower.place < end for follower in self.followers.values())
        return f"{late} of {len(self.followers)} followers did not get everything" if late else ""

    def close(self) -> None:
        """Hang up."""
        self.poll.close()
        for sock in self._socks:
            sock.close()


class Writer:
    """Writes readings over a WebSocket. `written`: numbers given out; `acknowledged`: writes answered."""

    def __init__(self, host: str, port: int, token: str, padding: int = 0) -> None:
        self.sock = socket.create_connection((host, port), timeout=PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            _upgrade(self.sock, token)
        except (Unverified, OSError):
            self.sock.close()
            raise
        self.sock.setblocking(False)
        self.written = 0
        self._padding = padding
        self._writes = 0
        self._waiting: deque[tuple[int, int]] = deque()
        self._data = bytearray()

    @property
    def waiting(self) -> int:
        """Writes that are not acknowledged yet."""
        return len(self._waiting)

    def write(self, count: int) -> None:
        """Write the next `count` readings."""
        data = wire.write(self._writes, self.written, count, self._padding)
        if self.sock.send(data) != len(data):
            raise Unverified("the target does not read what is written")
        self._waiting.append((self._writes, count))
        self._writes += 1
        self.written += count

    def take(self) -> int:
        """Read acknowledgements; how many writes they were for. Unverified."""
        data = self.sock.recv(BUFFER)
        if not data:
            raise Unverified("the server hung up on the writer")
        self._data += data
        before, at = len(self._waiting), 0
        while (place := wire.frame_at(self._data, at)) is not None:
            found = wire.message(self._data[place[0] : place[1]])
            if not self._waiting:
                raise Unverified(f"expected no acknowledgement, got {str(found)[:300]}")
            id, count = self._waiting.popleft()
            if (found.get("type"), found.get("id"), found.get("accepted")) != ("ack", id, count):
                raise Unverified(f"expected {count} accepted of write {id}, got {str(found)[:300]}")
            at = place[1]
        del self._data[:at]
        return before - len(self._waiting)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


class Load:
    """A crowd and a writer, driven by one loop."""

    def __init__(self, crowd: Crowd, writer: Writer) -> None:
        self.crowd = crowd
        self.writer = writer
        self._fd = writer.sock.fileno()
        crowd.poll.register(self._fd, select.EPOLLIN)
        self._writer_poll = select.poll()
        self._writer_poll.register(self._fd, select.POLLIN)

    def acknowledged(self, timeout: float) -> int:
        """Wait for the writer alone, so many seconds at most; how many writes were acknowledged."""
        return self.writer.take() if self._writer_poll.poll(timeout * 1000) else 0

    def ready(self) -> list[int]:
        """The followers for whom there is something to take."""
        return [fd for fd, _ in self.crowd.poll.poll(0, len(self.crowd) + 1) if fd != self._fd]

    def turn(self, timeout: float) -> tuple[list[int], int]:
        """Handle what has come: followers that got something, and how many writes were acknowledged."""
        acknowledged, fds = 0, []
        for fd, _ in self.crowd.poll.poll(timeout):
            if fd == self._fd:
                acknowledged += self.writer.take()
            else:
                self.crowd.take(fd)
                fds.append(fd)
        return fds, acknowledged

    def finish(self) -> None:
        """Until every write is acknowledged and every follower has every reading. Unverified."""
        deadline = time.monotonic() + PATIENCE
        while (lacking := self.crowd.lacking(self.writer.written)) or self.writer.waiting:
            if time.monotonic() > deadline:
                raise Unverified(lacking or f"{self.writer.waiting} writes were not acknowledged")
            self.turn(0.05)

    def close(self) -> None:
        """Hang up."""
        self.crowd.close()
        self.writer.close()


def _upgrade(sock: socket.socket, token: str) -> None:
    request, accept = wire.upgrade(token)
    sock.sendall(request)
    data = b""
    while (end := wire.head_end(data)) < 0:
        data += _more(sock)
    wire.check_upgraded(data[:end], accept)
    if data[end:]:
        raise Unverified(f"expected nothing before a subscription, got {data[end:][:200]!r}")


def _open_frames(sock: socket.socket, token: str, overflow: str) -> None:
    """Until the follower is live. Nothing is written then, so that nothing comes behind it."""
    _upgrade(sock, token)
    sock.sendall(wire.subscribe(overflow))
    data, at = b"", 0
    while True:
        data += _more(sock)
        while (place := wire.frame_at(data, at)) is not None:
            found = wire.message(data[place[0] : place[1]])
            at = place[1]
            if found.get("type") == "live" and at == len(data):
                return
            if found.get("type") != "subscribed":
                raise Unverified(f"expected to become live, got {data[:300]!r}")


def _open_events(sock: socket.socket, token: str) -> bool:
    """Until the follower is live; whether its events come in chunks."""
    sock.sendall(wire.events(token))
    data = b""
    while (at := wire.head_end(data)) < 0:
        data += _more(sock)
    chunked, text = wire.check_events(data[:at]), b""
    while True:
        if chunked:
            while (place := wire.chunk_at(data, at)) is not None:
                text += data[place[0] : place[1]]
                at = place[1] + 2
        else:
            text, at = text + data[at:], len(data)
        if b"event: reading\n" in text:
            raise Unverified("expected the event recovery before the first reading")
        if b"event: recovery\n" in text and text.endswith(b"\n\n") and at == len(data):
            return chunked
        data += _more(sock)


def _more(sock: socket.socket) -> bytes:
    try:
        data = sock.recv(65536)
    except TimeoutError as error:
        raise Unverified(f"no answer within {PATIENCE:.0f} s of a new stream") from error
    if not data:
        raise Unverified("the server hung up on a new stream")
    return data
