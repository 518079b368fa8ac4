"""The floor of a fan-out: a bare uvloop loop that writes prepared bytes to N sockets.

The readings of one write are framed once and joined into one piece, which every transport is given. There is no
queue, no bound, no filter, nothing is kept; what a client sends is trusted.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import struct
import sys
from datetime import UTC, datetime

import uvloop

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n"
)
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
sockets: set[asyncio.Transport] = set()
streams: set[asyncio.Transport] = set()
offsets = itertools.count(1)


def frame(content: object) -> bytes:
    """A text frame."""
    payload = json.dumps(content, separators=(",", ":")).encode()
    size = len(payload)
    head = struct.pack("!BB", 0x81, size) if size < 126 else struct.pack("!BBH", 0x81, 126, size)
    return head + payload


def chunk(data: bytes) -> bytes:
    """A chunk of an event stream."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reading(item: dict[str, object]) -> dict[str, object]:
    """A reading as it is sent."""
    return {
        "device": item["device"],
        "metric": item["metric"],
        "ts": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "value": item["value"],
        "position": f"3f9a1c07-{next(offsets)}",
    }


def event(content: dict[str, object]) -> bytes:
    """The event of a reading."""
    data = json.dumps(content, separators=(",", ":"))
    return f"id: {content['position']}\nevent: reading\ndata: {data}\n\n".encode()


class Connection(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the head."""
        self.transport = transport
        self.data = b""
        self.framed = False

    def data_received(self, data: bytes) -> None:
        """A head first, then frames."""
        self.data += data
        if not self.framed:
            head, end, rest = self.data.partition(b"\r\n\r\n")
            if not end:
                return
            self.data = rest
            self.open(head)
        while self.framed and len(self.data) >= 6:
            size, begin = self.data[1] & 0x7F, 6
            if size == 126:
                size, begin = int.from_bytes(self.data[2:4], "big"), 8
            if len(self.data) < begin + size:
                return
            mask, payload = self.data[begin - 4 : begin], self.data[begin : begin + size]
            self.data = self.data[begin + size :]
            self.take(bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)))

    def open(self, head: bytes) -> None:
        """Answer the request."""
        if head.startswith(b"GET /v1/stream "):
            key = next(line[19:] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
            self.transport.write(SWITCH % base64.b64encode(hashlib.sha1(key + GUID).digest()))
            self.framed = True
        elif head.startswith(b"GET /v1/events"):
            first = b'id: x-0\nevent: recovery\ndata: {"recovered":null}\n\n'
            self.transport.write(EVENTS + chunk(first))
            streams.add(self.transport)
        else:
            self.transport.write(NO_CONTENT)

    def take(self, payload: bytes) -> None:
        """Follow, or write."""
        command = json.loads(payload)
        if command["type"] == "subscribe":
            sockets.add(self.transport)
            self.transport.write(frame({"type": "live", "id": command["id"]}))
            return
        readings = [reading(item) for item in command["readings"]]
        data = b"".join(frame({"type": "reading", **item}) for item in readings)
        for transport in sockets:
            transport.write(data)
        if streams:
            data = chunk(b"".join(map(event, readings)))
            for transport in streams:
                transport.write(data)
        self.transport.write(frame({"type": "ack", "id": command["id"], "accepted": len(readings)}))

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        sockets.discard(self.transport)
        streams.discard(self.transport)


async def main() -> None:
    """Serve."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
