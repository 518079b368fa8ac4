import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server.control import Beat, Channel, Collect, Failed, Figures, Message, Ready
from server.totals import Family, Merge, Sample
from storage.errors import Unavailable
from tests.raw import until

MANY = Figures(
    [Family("a", "counter", "Help.", Merge.SUM, [Sample("a_total", {"b": "c" * 100}, 1.5)] * 5000)]
)


class End:
    """One end of a channel and what came there."""

    def __init__(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        self.heard: list[Message] = []
        self.lost = asyncio.Event()
        self.channel = Channel(self.heard.append, answer, self.lost.set)


async def figures(question: Message) -> Message:
    assert question == Collect()
    return MANY


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    ends = End(figures), End(figures)
    loop = asyncio.get_running_loop()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await loop.create_connection(lambda end=end: end.channel, sock=sock)  # type: ignore[misc]
    yield ends
    for end in ends:
        end.channel.close()
    for end in ends:
        await end.lost.wait()


async def test_messages_arrive_whole_and_in_order(ends: tuple[End, End]) -> None:
    one, other = ends
    sent: list[Message] = [Ready(), MANY, Beat(), MANY]
    for message in sent:
        one.channel.tell(message)
    await until(lambda: len(other.heard) == len(sent))
    assert other.heard == sent


async def test_both_ends_ask_at_the_same_time(ends: tuple[End, End]) -> None:
    asking = [end.channel.ask(Collect(), 5) for end in ends * 5]
    assert await asyncio.gather(*asking) == [MANY] * 10


async def test_who_gets_no_answer_is_told_in_time() -> None:
    asked = asyncio.Event()

    async def never(_: Message) -> Message:
        await asked.wait()
        raise Unavailable("not now")

    one, other = End(never), End(never)
    pair = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: one.channel, sock=pair[0])
    await loop.create_connection(lambda: other.channel, sock=pair[1])
    with pytest.raises(Unavailable, match=r"within 0\.05 s"):
        await one.channel.ask(Collect(), 0.05)
    # What comes too late is for nobody.
    asked.set()
    with pytest.raises(Unavailable):
        await one.channel.ask(Collect(), 5)
    assert other.heard == one.heard == []
    asked.clear()
    # Nor when the other end has gone.
    asking = asyncio.create_task(one.channel.ask(Collect(), 5))
    await asyncio.sleep(0)
    other.channel.close()
    with pytest.raises(Unavailable):
        await asking
    await one.lost.wait()
    with pytest.raises(Unavailable):
        await one.channel.ask(Collect(), 5)
    one.channel.tell(Beat())


async def test_an_answer_that_breaks_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Message) -> Message:
        raise ValueError

    one, other = End(broken), End(broken)
    pair = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: one.channel, sock=pair[0])
    await loop.create_connection(lambda: other.channel, sock=pair[1])
    with pytest.raises(Unavailable):
        await one.channel.ask(Collect(), 5)
    assert "a question between the processes failed" in caplog.text
    assert Failed() not in one.heard
    one.channel.close()
    await one.lost.wait()
    await other.lost.wait()
