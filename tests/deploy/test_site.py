"""All parts of docs/operations.md at once: nginx, two gates of two workers, PostgreSQL twice, Redis."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.deploy.followers import follow
from tests.deploy.nodes import Writer, more, reach, stored_once, two_nodes
from tests.reliability.following import Place
from tests.reliability.record import Wish, differences
from tests.reliability.test_failover import pair
from tests.servers.redis import redis

pytestmark = pytest.mark.system

EVERYTHING = Wish([">"])


async def test_a_site_loses_a_gate_and_then_its_primary_and_nothing_that_was_answered(tmp_path: Path) -> None:
    """Promises 1 to 4 with every part in its place: a gate is killed under load, then the primary.

    The replica confirms each commit (`synchronous_standby_names`), so it may take over the epoch, and
    followers go on where they were.
    """
    async with (
        pair(tmp_path, synchronous_standby_names="*") as (primary, standby, url),
        redis(tmp_path) as server,
        two_nodes(
            tmp_path, DATABASE_URL=url, DATABASE_SYNCHRONOUS="1", REDIS_URL=server.url, WORKERS="2"
        ) as nodes,
    ):
        stop = asyncio.Event()
        writers = [Writer(nodes, f"d{number}", keyed=number % 2 == 0) for number in range(8)]
        followers = follow(EVERYTHING)
        place = Place(nodes.proxy.port, nodes.token())
        place.up.set()
        async with asyncio.TaskGroup() as following:
            for follower in followers:
                following.create_task(follower.run(place))
            async with asyncio.TaskGroup() as writing:
                for writer in writers:
                    writing.create_task(writer.run(stop))
                await more(writers, 300)
                first = nodes.nodes[0]
                await first.end(signal.SIGKILL)
                await more(writers, 300)
                await first.start()
                await more(writers, 300)
                await primary.stop("immediate")
                await standby.promote()
                await more(writers, 300)
                stop.set()
            log = await nodes.stored()
            for follower in followers:
                await reach(follower.trace.record.__len__, len(log))
            place.over = True
            for node in nodes.nodes:
                await node.end(signal.SIGTERM)
    stored_once(log, writers)
    assert sum(follower.trace.connections for follower in followers) > len(followers)
    for follower in followers:
        assert differences(follower.trace.record, log, EVERYTHING, 0) == []
