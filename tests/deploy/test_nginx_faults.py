"""Gates die and come back behind nginx while devices write and others follow: nothing is lost or doubled."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.followers import follow
from tests.deploy.nodes import Writer, two_nodes
from tests.reliability.following import Place
from tests.reliability.record import Wish, differences

pytestmark = pytest.mark.system

EVERYTHING = Wish([">"])


async def test_gates_come_and_go_and_nothing_that_was_answered_is_lost(
    tmp_path: Path, postgres_url: str
) -> None:
    """Promise: a gate may go at any time, by SIGKILL or by SIGTERM.

    Of the writes that nginx must not repeat only those are answered 503 which that gate had in its hands;
    those with an Idempotency-Key are answered 200 all the same. Followers come back to whichever gate there
    is and end with the whole log.
    """
    async with two_nodes(tmp_path, DATABASE_URL=postgres_url) as nodes:
        stop = asyncio.Event()
        timed = [Writer(nodes, f"timed{number}", keyed=False) for number in range(8)]
        keyed = [Writer(nodes, f"keyed{number}", keyed=True) for number in range(8)]
        writers = [*timed, *keyed]
        followers = follow(EVERYTHING)
        place = Place(nodes.proxy.port, nodes.token())
        place.up.set()

        def acked() -> int:
            return sum(len(writer.acked) for writer in writers)

        async with asyncio.TaskGroup() as following:
            for follower in followers:
                following.create_task(follower.run(place))
            async with asyncio.TaskGroup() as writing:
                for writer in writers:
                    writing.create_task(writer.run(stop))
                for node, number in zip(nodes.nodes, (signal.SIGKILL, signal.SIGTERM), strict=True):
                    await _more(acked, 300)
                    await node.end(number)
                    await _more(acked, 300)
                    await node.start()
                await _more(acked, 300)
                stop.set()
            log = await nodes.stored()
            for follower in followers:
                await _reach(lambda trace=follower.trace: len(trace.record), len(log))
            place.over = True
            for node in nodes.nodes:
                await node.end(signal.SIGTERM)
    assert [row.offset for row in log] == list(range(1, len(log) + 1))
    stored = Counter((row.device, row.value) for row in log)
    assert set(stored.values()) == {1}
    assert {(writer.device, value) for writer in writers for value in writer.acked} == stored.keys()
    answers = [sum((writer.answers for writer in some), Counter[int]()) for some in (timed, keyed)]
    assert answers[0].keys() <= {200, 503}
    assert answers[0][503] <= 2 * len(timed), answers
    assert answers[1].keys() == {200}, answers
    for follower in followers:
        assert follower.trace.connections > 1
        assert differences(follower.trace.record, log, EVERYTHING, 0) == []


async def _more(count: Callable[[], int], more: int) -> None:
    """Wait until there are so many more."""
    await _reach(count, count() + more)


async def _reach(count: Callable[[], int], goal: int) -> None:
    async with asyncio.timeout(20):
        while count() < goal:
            await asyncio.sleep(0.01)
