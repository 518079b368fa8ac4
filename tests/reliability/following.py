"""Followers as programs have them: they keep what they get and the last position, and come back with it.

WebSockets are those of picows, so framing is not judged by the code that wrote it.
"""

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, cast

import msgspec
from picows import (
    WSError,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from tests.handlers.followers import EventFrames
from tests.raw import request
from tests.reliability.record import Row, Wish
from tests.running import PATIENCE

# How a stream ends that its client may take up again at once: going away, and too slow.
RESUMABLE = (1001, 4408)
WIRES = ("json", "msgpack", "sse")


class Trace:
    """What one follower got, over all its connections.

    `start`: the offset behind which its record begins, None until it is known. `position`: the last one it
    was shown, "" for none yet. `until`: with this value a reading ends the record. `endings`: the close
    codes that it may get.
    """

    def __init__(
        self,
        wish: Wish,
        since: str = "",
        until: int | None = None,
        endings: Sequence[int] = RESUMABLE,
    ) -> None:
        self.wish = wish
        self.endings = endings
        self.since = since
        self.start: int | None = 0 if since == "earliest" else None
        self.until = until
        self.position = ""
        self.record: list[Row] = []
        self.live = False
        self.ended = asyncio.Event()
        self.connections = 0
        self.resumed = 0
        self.codes: list[int] = []
        self.failure: BaseException | None = None

    @property
    def asks(self) -> str:
        """What it resumes from."""
        return self.position or self.since

    def connected(self) -> None:
        """A new connection."""
        self.connections += 1
        self.live = False

    def take(self, message: dict[str, Any]) -> None:
        """What the gate says."""
        match message["type"]:
            case "reading" | "event":
                self._reading(message)
            case "readings":
                for item in message["items"]:
                    self._reading(item)
            case "subscribed":
                self._subscribed(message)
            case "live":
                self.live = True
            case "position":
                pass
            case _:
                raise AssertionError(message)
        self.position = message["position"]

    def _subscribed(self, message: dict[str, Any]) -> None:
        assert message["recovered"] is (True if self.asks else None), message
        self.resumed += bool(self.position)
        if self.start is None:
            self.start = offset(message["position"])

    def _reading(self, item: dict[str, Any]) -> None:
        value = item["value"]
        self.position = item["position"]
        row = Row(offset(self.position), item["device"], item["metric"], item["ts"], value)
        self.record.append(row)
        if value == self.until:
            self.ended.set()


def offset(position: str) -> int:
    """The offset in a position of the gate."""
    return int(position.rpartition("-")[2])


class Connection(Protocol):
    """One connection of a follower. `closed`: done when it is over."""

    closed: asyncio.Future[None]

    def lose(self) -> None:
        """Break it off without a word."""

    def pause(self) -> None:
        """Read nothing any more."""

    def resume(self) -> None:
        """Read on."""


class _Kept:
    """What both kinds of connection have: the trace, the transport, the end."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def lose(self) -> None:
        """See Connection."""
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """See Connection."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """See Connection."""
        if self.transport is not None:
            self.transport.resume_reading()

    def done(self) -> None:
        """The connection is over."""
        if not self.closed.done():
            self.closed.set_result(None)

    def guarded(self, work: Callable[[], None]) -> None:
        """What goes wrong here is the test's failure, not the library's to log."""
        try:
            work()
        except Exception as error:
            self.trace.failure = self.trace.failure or error
            self.lose()


class _Socket(WSListener, _Kept):
    """A WebSocket with one subscription."""

    def __init__(self, trace: Trace, *, packed: bool, terms: dict[str, Any]) -> None:
        WSListener.__init__(self)
        _Kept.__init__(self, trace)
        self._packed = packed
        self._terms = terms

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        self._transport = transport
        self.transport = transport.underlying_transport
        self.trace.connected()
        command = {"type": "subscribe", "id": 1, "match": self.trace.wish.match, **self._terms}
        if self.trace.wish.metrics:
            command["metrics"] = self.trace.wish.metrics
        if self.trace.asks:
            command["since"] = self.trace.asks
        if self._packed:
            transport.send(WSMsgType.BINARY, msgspec.msgpack.encode(command))
        else:
            transport.send(WSMsgType.TEXT, json.dumps(command).encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a message."""
        self.guarded(lambda: self._frame(transport, frame))

    def _frame(self, transport: WSTransport, frame: WSFrame) -> None:
        match frame.msg_type:
            case WSMsgType.CLOSE:
                # picows knows no codes of applications.
                payload = frame.get_payload_as_bytes()
                code, reason = int.from_bytes(payload[:2]), payload[2:].decode()
                self.trace.codes.append(code)
                assert code in self.trace.endings, (code, reason)
                self.trace.position = reason or self.trace.position
                transport.send_close(frame.get_close_code())
                transport.disconnect()
            case WSMsgType.TEXT:
                assert not self._packed
                self.trace.take(msgspec.json.decode(frame.get_payload_as_bytes()))
            case WSMsgType.BINARY:
                assert self._packed
                self.trace.take(msgspec.msgpack.decode(frame.get_payload_as_bytes()))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The end."""
        self.done()


class _Events(asyncio.Protocol, _Kept):
    """An event stream. A gate that is closing answers 503: that is the end of this connection."""

    def __init__(self, trace: Trace, head: bytes) -> None:
        _Kept.__init__(self, trace)
        self._head = head
        self._answer = b""
        self._frames: EventFrames | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = cast("asyncio.Transport", transport)
        self.trace.connected()
        self.transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        """Take events."""
        self.guarded(lambda: self._data(data))

    def _data(self, data: bytes) -> None:
        if self._frames is None:
            head, end, data = (self._answer + data).partition(b"\r\n\r\n")
            if not end:
                self._answer = head
                return
            status = int(head[9:12])
            assert status in (200, 503), head
            if status != 200:
                self.lose()
                return
            assert b"chunked" not in head.lower()
            self._frames = EventFrames()
        for message in self._frames.feed(data):
            self.trace.take(message)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end."""
        self.done()


class Place:
    """Where the gate is, whether it is up, and whether it has gone for good."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.token = token
        self.up = asyncio.Event()
        self.over = False


async def connect(place: Place, wire: str, trace: Trace, *, buffer: int = 0, **terms: str) -> Connection:
    """Follow over one connection. ConnectionError.

    `buffer`: bytes that the client's kernel takes unread; `terms`: further fields of the subscription.
    """
    loop = asyncio.get_running_loop()
    own = await _socket(place.port, buffer)
    try:
        if wire != "sse":
            packed = wire == "msgpack"
            headers = {"Authorization": f"Bearer {place.token}"}
            if packed:
                headers["Sec-WebSocket-Protocol"] = "tidegate.msgpack"
            _, socket = await ws_connect(
                lambda: _Socket(trace, packed=packed, terms=terms),
                f"ws://127.0.0.1:{place.port}/v1/stream?time=us",
                extra_headers=headers,
                websocket_handshake_timeout=PATIENCE,
                disconnect_on_exception=False,
                socket_factory=lambda _: own,
                use_aiofastnet=False,
            )
            if socket is None:
                # Lost in the moment that it was made.
                raise ConnectionError("the connection was lost at once")
            return socket  # type: ignore[return-value]
        query = [f"match={pattern}" for pattern in trace.wish.match]
        query += [f"metric={metric}" for metric in trace.wish.metrics]
        query += [f"{name}={value}" for name, value in terms.items()]
        resume = (f"Last-Event-ID: {trace.asks}",) if trace.asks else ()
        head = request("GET", f"/v1/events?time=us&{'&'.join(query)}", token=place.token, headers=resume)
        _, events = await loop.create_connection(lambda: _Events(trace, head), sock=own)
        return events
    except (WSError, OSError, TimeoutError) as error:
        own.close()
        raise ConnectionError(str(error)) from error


async def _socket(port: int, buffer: int) -> socket.socket:
    own = socket.socket()
    own.setblocking(False)
    try:
        if buffer:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    except BaseException:
        own.close()
        raise
    return own


class Clients:
    """Connections of one test; those that are left at its end are lost then."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._open: list[tuple[Connection, Trace]] = []

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.lose()
        for _, one in self._open:
            if one.failure is not None and kind is None:
                raise one.failure

    async def connect(self, wire: str, trace: Trace, *, buffer: int = 0, **terms: str) -> Connection:
        """See connect."""
        connection = await connect(self._place, wire, trace, buffer=buffer, **terms)
        self._open.append((connection, trace))
        return connection

    async def lose(self) -> None:
        """Break off all connections."""
        for connection, _ in self._open:
            connection.lose()
        await self.closed()

    async def closed(self) -> None:
        """Wait until all connections are over."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(connection.closed for connection, _ in self._open))


class Follower:
    """Follows until the gate has gone for good. `lives`: how long a connection lasts before it breaks it off
    itself, None if it never does.
    """

    def __init__(self, wire: str, trace: Trace, chance: random.Random, lives: float | None) -> None:
        self.wire = wire
        self.trace = trace
        self.killed = 0
        self._chance = chance
        self._lives = lives
        self._connection: Connection | None = None

    def stop(self) -> None:
        """Break off the connection of now."""
        if self._connection is not None:
            self._connection.lose()

    async def run(self, place: Place) -> None:
        """Follow, lose the connection, come back."""
        trace, chance = self.trace, self._chance
        while not place.over:
            # A gate of several workers takes its time to start on a busy machine.
            async with asyncio.timeout(3 * PATIENCE):
                await place.up.wait()
            with contextlib.suppress(ConnectionError):
                self._connection = await connect(place, self.wire, trace)
                await self._last(self._connection)
            if trace.failure is not None:
                raise trace.failure
            if not place.over:
                await asyncio.sleep(chance.uniform(0, 0.1))

    async def _last(self, connection: Connection) -> None:
        """Stay connected for a while, or to the end of the connection."""
        if self._lives is not None and not self.trace.ended.is_set():
            await asyncio.wait((connection.closed,), timeout=self._chance.uniform(0, self._lives))
            if not connection.closed.done() and not self.trace.ended.is_set():
                self.killed += 1
                connection.lose()
        await connection.closed
