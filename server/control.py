"""The channel between the parent and a worker: messages over a socket pair, questions with a deadline."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import cast

import msgspec
from msgspec import Struct

from server.totals import Family
from storage.counters import Spent
from storage.errors import Unavailable

_log = logging.getLogger("tidegate.control")

# Seconds that the parent may take to gather the figures of all.
COLLECT_DEADLINE = 2.0
# And to add up what was spent.
SETTLE_DEADLINE = 1.0
# Bytes that say how long a message is.
_LENGTH = 4


class Ready(Struct, frozen=True, tag=True):
    """The worker accepts connections."""


class Beat(Struct, frozen=True, tag=True):
    """The worker's loop turns."""


class Collect(Struct, frozen=True, tag=True):
    """A worker asks the parent for the figures of all, the parent asks a worker for its own."""


class Figures(Struct, frozen=True, tag=True):
    """The answer to it, and what a worker says last."""

    families: list[Family]


class Failed(Struct, frozen=True, tag=True):
    """There is no answer."""


class Settle(Struct, frozen=True, tag=True):
    """A worker says what it admitted under the limits of all (storage.counters)."""

    spent: list[Spent]


class Settled(Struct, frozen=True, tag=True):
    """The answer to it: the fills, and how many share the account."""

    fills: list[float]
    processes: int


Message = Ready | Beat | Collect | Figures | Settle | Settled | Failed


class _Frame(Struct, frozen=True, array_like=True):
    """`number`: 0 for what needs no answer, n for a question, -n for the answer to it."""

    number: int
    message: Message


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Frame).decode


class Channel(asyncio.Protocol):
    """One end. `hear` is called with what needs no answer, `answer` with questions, `lost` at the end.

    What `answer` raises as Unavailable the other end gets as Unavailable.
    """

    def __init__(
        self,
        hear: Callable[[Message], None],
        answer: Callable[[Message], Awaitable[Message]],
        lost: Callable[[], None],
    ) -> None:
        self._hear = hear
        self._answer = answer
        self._lost = lost
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    def tell(self, message: Message) -> None:
        """Say something, unless nobody is there."""
        self._send(0, message)

    async def ask(self, question: Message, deadline: float) -> Message:
        """The answer to a question; Unavailable if there is none within `deadline` seconds."""
        number = next(self._numbers)
        asked: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            async with asyncio.timeout(deadline):
                self._send(number, question)
                answer = await asked
        except TimeoutError:
            raise Unavailable(f"no answer between the processes within {deadline} s") from None
        finally:
            del self._asked[number]
        if type(answer) is Failed:
            raise Unavailable("no answer between the processes")
        return answer

    def close(self) -> None:
        """Send what is kept, then end."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        received = self._received
        received += data
        while len(received) >= _LENGTH:
            end = _LENGTH + int.from_bytes(received[:_LENGTH], "big")
            if len(received) < end:
                break
            frame = _decode(bytes(received[_LENGTH:end]))
            del received[:end]
            self._take(frame)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(Failed())
        for task in self._answering:
            task.cancel()
        self._lost()

    def _take(self, frame: _Frame) -> None:
        if frame.number == 0:
            self._hear(frame.message)
        elif frame.number < 0:
            asked = self._asked.get(-frame.number)
            # Who asked may have given up.
            if asked is not None and not asked.done():
                asked.set_result(frame.message)
        else:
            task = asyncio.get_running_loop().create_task(self._reply(frame))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _reply(self, frame: _Frame) -> None:
        try:
            answer = await self._answer(frame.message)
        except Unavailable:
            answer = Failed()
        except Exception:
            _log.exception("a question between the processes failed")
            answer = Failed()
        self._send(-frame.number, answer)

    def _send(self, number: int, message: Message) -> None:
        if self._transport is None:
            # Nobody will ever answer.
            asked = self._asked.get(number)
            if asked is not None:
                asked.set_result(Failed())
            return
        data = _encode(_Frame(number, message))
        self._transport.write(len(data).to_bytes(_LENGTH, "big") + data)


class ParentLink:
    """What a worker can ask of its parent, which is also the account of limits where there is no Redis."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.processes = 1

    async def figures(self) -> list[Family]:
        """The figures of all workers. Unavailable."""
        match await self._channel.ask(Collect(), COLLECT_DEADLINE):
            case Figures(families):
                return families
            case _:
                return []

    async def settle(self, spent: Sequence[Spent]) -> list[float]:
        """See storage.counters.Counters."""
        match await self._channel.ask(Settle(list(spent)), SETTLE_DEADLINE):
            case Settled(fills, processes):
                self.processes = processes
                return fills
            case _:
                raise Unavailable("the parent keeps no account")
