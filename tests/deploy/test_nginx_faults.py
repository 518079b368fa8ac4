"""Gates die and come back behind nginx while devices write and others follow: nothing is lost or doubled."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.deploy.followers import follow
from tests.deploy.nodes import Writer, more, reach, stored_once, two_nodes
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

        async with asyncio.TaskGroup() as following:
            for follower in followers:
                following.create_task(follower.run(place))
            async with asyncio.TaskGroup() as writing:
                for writer in writers:
                    writing.create_task(writer.run(stop))
                for node, number in zip(nodes.nodes, (signal.SIGKILL, signal.SIGTERM), strict=True):
                    await more(writers, 300)
                    await node.end(number)
                    await more(writers, 300)
                    await node.start()
                await more(writers, 300)
                stop.set()
            log = await nodes.stored()
            for follower in followers:
                await reach(follower.trace.record.__len__, len(log))
            place.over = True
            for node in nodes.nodes:
                await node.end(signal.SIGTERM)
    stored_once(log, writers)
    answers = [sum((writer.answers for writer in some), Counter[int]()) for some in (timed, keyed)]
    assert answers[0].keys() <= {200, 503}
    assert answers[0][503] <= 2 * len(timed), answers
    assert answers[1].keys() == {200}, answers
    for follower in followers:
        assert follower.trace.connections > 1
        assert differences(follower.trace.record, log, EVERYTHING, 0) == []


async def test_a_rolling_upgrade_by_the_book_is_not_noticed(tmp_path: Path, postgres_url: str) -> None:
    """Promise: docs/operations.md, a new version. No write is answered otherwise than by 200.

    What HTTP leaves to clients remains: a connection that was closed while idle.
    """
    async with two_nodes(tmp_path, DATABASE_URL=postgres_url) as nodes:
        stop = asyncio.Event()
        writers = [Writer(nodes, f"d{number}", keyed=False) for number in range(8)]
        async with asyncio.TaskGroup() as writing:
            for writer in writers:
                writing.create_task(writer.run(stop))
            for node in nodes.nodes:
                await more(writers, 200)
                await nodes.take_out(node)
                await more(writers, 200)
                await node.end(signal.SIGTERM)
                await node.start()
                await nodes.put_back(node)
            await more(writers, 200)
            stop.set()
        log = await nodes.stored()
    answers = sum((writer.answers for writer in writers), Counter[int]())
    assert answers.keys() <= {200, 0}, answers
    assert answers[0] <= 4 * len(writers), answers
    assert sum(len(writer.acked) for writer in writers) == len(log)
