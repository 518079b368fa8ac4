"""Promises 3 and 4 where a server is lost for good: the log goes on, or everybody is told that it cannot."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.reliability.cluster import Node
from tests.reliability.following import Clients, Trace
from tests.reliability.record import Wish
from tests.reliability.test_parts_away import node, until_status
from tests.running import PATIENCE
from tests.servers.postgres import PostgresServer, postgres, replica
from tests.servers.redis import redis


@asynccontextmanager
async def pair(tmp_path: Path, **conf: str) -> AsyncIterator[tuple[PostgresServer, PostgresServer, str]]:
    """A primary, its replica, and the URL that leads to whichever takes writes."""
    async with postgres(tmp_path, **conf) as primary, replica(primary, tmp_path) as standby:
        places = ",".join(f"127.0.0.1:{server.port}" for server in (primary, standby))
        yield primary, standby, f"postgresql://postgres@{places}/postgres?target_session_attrs=read-write"


async def written(one: Node, value: int) -> str:
    """The position after a reading was written."""
    answer = await one.gate.write("a.b", {"metric": "m", "value": value})
    assert answer.status == 200, answer
    position: str = answer.json["position"]
    return position


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_failover_changes_the_epoch_unless_it_cannot_have_lost_anything(
    tmp_path: Path, synchronous: bool
) -> None:
    environment = {"DATABASE_SYNCHRONOUS": "1"} if synchronous else {}
    async with AsyncExitStack() as stack:
        primary, standby, url = await stack.enter_async_context(pair(tmp_path))
        one = await stack.enter_async_context(node(tmp_path / "node", DATABASE_URL=url, **environment))
        before = await written(one, 1)
        trace = Trace(Wish(["a.>"]), "earliest", until=2, endings=(1001, 1013))
        async with Clients(one.place) as clients:
            following = await clients.connect("json", trace)
            async with asyncio.timeout(PATIENCE):
                while not trace.record or not await _has(standby, 1):
                    await asyncio.sleep(0.02)
            await primary.stop("immediate")
            await standby.promote()
            await until_status(one.gate, "/readyz", 200, PATIENCE)
            after = await written(one, 2)
            if synchronous:
                assert after.partition("-")[0] == before.partition("-")[0]
                async with asyncio.timeout(PATIENCE):
                    await trace.ended.wait()
                assert [row.value for row in trace.record] == [1, 2]
                return
            assert after.partition("-")[0] != before.partition("-")[0]
            async with asyncio.timeout(PATIENCE):
                await following.closed
            assert trace.failure is None
        verdict = await _verdict(one, before)
        assert (verdict["recovered"], verdict["reason"]) == (False, "unknown_epoch")
        assert str(verdict["position"]).partition("-")[0] == after.partition("-")[0]


async def _has(server: PostgresServer, value: int) -> bool:
    rows = await server.query("SELECT count(*) FROM tidegate.readings WHERE num = %s", (value,))
    return bool(rows[0][0])


async def _verdict(one: Node, since: str) -> dict[str, object]:
    """What is said to a follower that comes with a position."""
    async with one.gate.session.ws_connect(
        f"{one.gate.url}/v1/stream", headers={"Authorization": f"Bearer {one.place.token}"}
    ) as socket:
        await socket.send_json({"type": "subscribe", "id": 1, "match": ["a.>"], "since": since})
        answer: dict[str, object] = await socket.receive_json(timeout=PATIENCE)
        return answer


async def test_a_node_killed_between_commit_and_publish_costs_the_followers_of_the_others_nothing(
    tmp_path: Path,
) -> None:
    """Nobody hears of its last commits: Redis is frozen when they are made, and thaws when it is dead."""
    async with postgres(tmp_path) as database, redis(tmp_path) as server:
        shared = {"DATABASE_URL": database.url, "REDIS_URL": server.url}
        async with node(tmp_path / "one", **shared) as one, node(tmp_path / "two", **shared) as two:
            await written(one, 1)
            traces = [Trace(Wish(["a.>"]), "earliest", until=21) for _ in range(2)]
            async with Clients(two.place) as clients:
                for wire, trace in zip(("json", "sse"), traces, strict=True):
                    await clients.connect(wire, trace)
                server.freeze()
                try:
                    for value in range(2, 21):
                        await written(one, value)
                    await one.end(signal.SIGKILL)
                finally:
                    server.thaw()
                await written(two, 21)
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*(trace.ended.wait() for trace in traces))
            assert [[row.value for row in trace.record] for trace in traces] == [list(range(1, 22))] * 2
