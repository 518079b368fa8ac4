"""A small target of streams that keeps the contract, and can be told to break it in one way."""

import base64
import contextlib
import hashlib
import itertools
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NEVER = 1 << 30
_TS = "2026-11-21T08:00:00.000000Z"


class Streaming(socketserver.ThreadingTCPServer):
    """The target. `fault`: what it does wrong, from reading number `after` on; "" if nothing."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, fault: str, after: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.after = after
        self.lock = threading.Lock()
        self.followers: list[tuple[socket.socket, bool]] = []
        self.offsets = itertools.count(1)
        self.held: dict[str, object] | None = None

    def wrong(self, fault: str, number: int) -> bool:
        """Whether this is the fault, and its time has come."""
        return self.fault == fault and number >= self.after

    def publish(self, value: object) -> None:
        """Give a reading to all followers."""
        number = int(str(value).partition(":")[0])
        out = self.altered(number, self.reading(value))
        for place, (follower, events) in enumerate(self.followers):
            odd = place == len(self.followers) - 1
            for one in out:
                data = event(one) if events else self.framed(one, number)
                if odd and self.wrong("drops one for one", number):
                    continue
                if odd and self.wrong("other bytes for one", number):
                    data = data.replace(b"08:00:00", b"08:00:01")
                follower.sendall(data * (1 + (odd and self.wrong("doubles one for one", number))))
        if number >= self.after and self.fault.endswith("for one"):
            self.after = _NEVER

    def reading(self, value: object) -> dict[str, object]:
        """What is sent of a value."""
        position = f"3f9a1c07-{next(self.offsets)}"
        return {"device": "bench.live", "metric": "m", "ts": _TS, "value": value, "position": position}

    def altered(self, number: int, reading: dict[str, object]) -> list[dict[str, object]]:
        """What all get instead of a reading."""
        if self.wrong("wrong value", number):
            reading["value"] = 0.5
        if self.wrong("no position", number):
            del reading["position"]
        if self.wrong("drops one for all", number):
            self.after = _NEVER
            return []
        if self.wrong("doubles one for all", number):
            self.after = _NEVER
            return [reading, reading]
        if self.wrong("swaps two", number):
            if self.held is None:
                self.held = reading
                return []
            self.after = _NEVER
            return [reading, self.held]
        return [reading]

    def framed(self, reading: dict[str, object], number: int) -> bytes:
        """The frame of a reading."""
        data = frame({"type": "reading", **reading})
        if self.wrong("binary frames", number):
            return b"\x82" + data[1:]
        if self.wrong("not JSON", number):
            return data.replace(b'"type"', b"'type'")
        return data


class Handler(socketserver.BaseRequestHandler):
    """One connection."""

    server: Streaming
    request: socket.socket

    def handle(self) -> None:
        """A head, then frames."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that has seen enough hangs up.
        with contextlib.suppress(OSError), self.request.makefile("rb") as self.file:
            self.serve()

    def serve(self) -> None:
        """Until the client goes."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.file.readline()
            if not line:
                # Who only wanted to know whether somebody listens.
                return
            head += line
        fault = self.server.fault
        if head.startswith(b"GET /v1/events"):
            self.events()
            self.file.read()
            return
        key = next(line[19:] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        if fault == "wrong accept":
            accept = base64.b64encode(b"x" * 20)
        self.request.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        while (command := self.command()) is not None:
            if command["type"] == "subscribe":
                self.request.sendall(frame({"type": "subscribed", "id": 1, "recovered": None}))
                self.server.followers.append((self.request, False))
                self.request.sendall(frame({"type": "live", "id": 1}))
            else:
                self.write(command)

    def events(self) -> None:
        """Follow over server-sent events."""
        kind = b"text/html" if self.server.fault == "wrong type" else b"text/event-stream"
        self.request.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        first = b"" if self.server.fault == "no verdict" else b"event: recovery\ndata: {}\n\n"
        self.server.followers.append((self.request, True))
        if first:
            self.request.sendall(b"%x\r\n%b\r\n" % (len(first), first))
        else:
            self.request.sendall(event({"position": "x"}))

    def write(self, command: dict[str, object]) -> None:
        """Publish, then acknowledge."""
        readings = command["readings"]
        assert isinstance(readings, list)
        with self.server.lock:
            for item in readings:
                self.server.publish(item["value"])
            if self.server.fault == "no acknowledgement":
                return
            count = len(readings) + (self.server.fault == "miscounts")
            self.request.sendall(frame({"type": "ack", "id": command["id"], "accepted": count}))

    def command(self) -> dict[str, object] | None:
        """The next command of the client; None at its end."""
        head = self.file.read(2)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self.file.read(2), "big")
        mask, payload = self.file.read(4), self.file.read(size)
        found = json.loads(bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)))
        assert isinstance(found, dict)
        return found


def frame(content: object) -> bytes:
    """A text frame."""
    payload = json.dumps(content, separators=(",", ":")).encode()
    size = len(payload)
    return (struct.pack("!BB", 0x81, size) if size < 126 else struct.pack("!BBH", 0x81, 126, size)) + payload


def event(reading: dict[str, object]) -> bytes:
    """A reading as an event, in a chunk."""
    data = f"id: {reading['position']}\nevent: reading\ndata: {json.dumps(reading)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextmanager
def streaming(fault: str = "", after: int = 3) -> Iterator[int]:
    """The target, running; its port."""
    server = Streaming(fault, after)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        port: int = server.server_address[1]
        yield port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
