"""One connection to one Redis server: commands in, answers out in the same order, one write per turn.

By hand on hiredis: a command costs 2 to 5 microseconds, a thirtieth of what redis.asyncio takes. What a
caller gives up is not taken out of the queue of answers, so that no answer reaches another caller.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import hiredis
from msgspec import Struct

from storage.errors import StorageError, Timeout, Unavailable
from storage.redis.url import Address

# A part of a command, and what Redis says; an error that it answers is a RedisError.
Part = bytes | str | int | float
Command = tuple[Part, ...]
Reply = Any

# Seconds to connect and log in.
CONNECT = 1.0
# Seconds between two looks at whether the server answers, and looks without a word that make it a lost one.
LOOK = 0.25
LOOKS_MAX = 5
# Commands that may wait for their answers, and bytes that may wait for the socket.
WAITING_MAX = 20_000
BYTES_MAX = 4 * 1024 * 1024

# What a server answers that is not the one to ask, or cannot work.
_ELSEWHERE = frozenset(("MOVED", "ASK", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "LOADING"))

# Its stubs know tuples of one item only.
_pack = cast("Callable[[Command], bytes]", hiredis.pack_command)
_NOTHING = object()


class RedisError(StorageError):
    """The server refused a command; its text begins with a code."""


Receiver = Callable[[Reply], None]


class Connection(asyncio.Protocol):
    """Made by `connect`. `changed`: called when it has ended (`error` says why), and when the server says
    that it is not the one to ask.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=self._refused, notEnoughData=_NOTHING)
        self._waiting: deque[Receiver] = deque()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._paused = False
        # Looks since the last word of the server.
        self._silent = 0
        self._look: asyncio.TimerHandle | None = None
        self.error: StorageError = Unavailable("Redis is not connected")

    @property
    def open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    @property
    def answers(self) -> bool:
        """Whether the server is there: not one that was asked and has been silent for a while."""
        return self._transport is not None and self._silent < 2

    # -- commands ------------------------------------------------------------------------------

    def call(self, *command: Part) -> asyncio.Future[Reply]:
        """Send a command. The future fails with RedisError, or Unavailable when the connection ends."""
        future = self._loop.create_future()
        if not self.send(command, partial(_settle, future)):
            future.set_exception(self._refusal())
        return future

    def send(self, command: Command, receiver: Receiver) -> bool:
        """Send a command; `receiver` gets its answer, or an error as its only word.

        False: too much waits, or there is no connection; then `receiver` is not called.
        """
        if self._transport is None or len(self._waiting) >= WAITING_MAX or self._out_bytes > BYTES_MAX:
            return False
        data = _pack(command)
        if not self._out and not self._paused:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        self._out_bytes += len(data)
        self._waiting.append(receiver)
        return True

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self.error = Unavailable(reason)
            self._transport.abort()
            self._end()

    def close(self) -> None:
        """End the connection at once, and tell nobody."""
        self._changed = _nothing
        self.abort("the connection to Redis was closed")

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._look = self._loop.call_later(LOOK, self._watch)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._silent = 0
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                self.receive(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"Redis sent what is no answer: {error}")

    def receive(self, reply: Reply) -> None:
        """Hand an answer to whom it belongs."""
        if not self._waiting:
            self.abort("Redis answered what nobody asked")
            return
        self._waiting.popleft()(reply)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._paused = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self._paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._transport is not None:
            self.error = Unavailable(f"the connection to Redis was lost: {error or 'closed by the server'}")
            self._end()

    # ------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._out and not self._paused and self._transport is not None:
            out, self._out = self._out, []
            self._out_bytes = 0
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _watch(self) -> None:
        """Counted in looks, not in seconds: a loop that was busy reads the answers between two looks."""
        self._look = self._loop.call_later(LOOK, self._watch)
        if self._waiting:
            self._silent += 1
            if self._silent > LOOKS_MAX:
                self.abort(f"Redis did not answer within {LOOK * LOOKS_MAX:.2f} s")
        else:
            self.idle()

    def idle(self) -> None:
        """Ask whether the server is still there."""
        self.send((b"PING",), _ignore)

    def _end(self) -> None:
        self._transport = None
        if self._look is not None:
            self._look.cancel()
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        for receiver in waiting:
            receiver(self.error)
        self._changed()

    def _refused(self, text: str) -> RedisError:
        if text.partition(" ")[0] in _ELSEWHERE:
            self._changed()
        return RedisError(text)

    def _refusal(self) -> StorageError:
        return self.error if self._transport is None else Unavailable("too many commands wait for Redis")


class Subscriber(Connection):
    """A connection that listens. `deliver`: called with each message of the channel."""

    def __init__(self, changed: Callable[[], None], deliver: Callable[[bytes], None]) -> None:
        super().__init__(changed)
        self._deliver = deliver
        self._confirmed: asyncio.Future[None] | None = None

    async def subscribe(self, channel: bytes, *, sharded: bool) -> None:
        """Listen from now on; nothing else can be asked any more. RedisError, Unavailable."""
        self._confirmed = self._loop.create_future()
        if not self.send((b"SSUBSCRIBE" if sharded else b"SUBSCRIBE", channel), self._subscribed):
            raise self._refusal()
        await self._confirmed

    def receive(self, reply: Reply) -> None:
        """Messages come unasked, everything else as an answer."""
        if self._confirmed is not None and isinstance(reply, list):
            kind = reply[0]
            if kind in (b"message", b"smessage"):
                self._deliver(reply[2])
                return
            if kind in (b"unsubscribe", b"sunsubscribe"):
                # The slot of the channel has moved to another node.
                self.abort("Redis ended the subscription")
                return
        super().receive(reply)

    def _subscribed(self, reply: Reply) -> None:
        assert self._confirmed is not None
        if not self._confirmed.done():
            if isinstance(reply, StorageError):
                self._confirmed.set_exception(reply)
            else:
                self._confirmed.set_result(None)


C = TypeVar("C", bound=Connection)


class Access(Struct, frozen=True):
    """How to get in. `username`, `password`: "" for none. `name`: of the connection, as Redis lists it."""

    username: str
    password: str
    db: int
    tls: ssl.SSLContext | None
    name: str


async def connect(make: Callable[[], C], address: Address, access: Access) -> C:
    """A connection that is logged in, within `CONNECT` seconds. Unavailable, Timeout, RedisError."""
    loop = asyncio.get_running_loop()
    host, port = address
    name = host if access.tls is not None else None
    connection = None
    try:
        async with asyncio.timeout(CONNECT):
            _, connection = await loop.create_connection(
                make, host, port, ssl=access.tls, server_hostname=name
            )
            answers = [connection.call(*command) for command in _greeting(access)]
            await asyncio.gather(*answers)
    except TimeoutError:
        _drop(connection, "Redis did not answer in time")
        raise Timeout(f"Redis at {host}:{port} did not answer within {CONNECT} s") from None
    except OSError as error:
        _drop(connection, "Redis cannot be reached")
        raise Unavailable(f"Redis at {host}:{port} cannot be reached: {error}") from error
    except BaseException:
        _drop(connection, "Redis refused the connection")
        raise
    return connection


def _greeting(access: Access) -> list[Command]:
    commands: list[Command] = []
    if access.password:
        login = (access.username, access.password) if access.username else (access.password,)
        commands.append((b"AUTH", *login))
    if access.db:
        commands.append((b"SELECT", access.db))
    return [*commands, (b"CLIENT", b"SETNAME", access.name), (b"PING",)]


def _drop(connection: Connection | None, reason: str) -> None:
    if connection is not None:
        connection.abort(reason)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if future.done():
        return
    if isinstance(reply, StorageError):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def _nothing() -> None:
    """Nobody is told."""


def _ignore(_: Reply) -> None:
    """Nobody waits for it."""
