"""What docs/operations.md says happens when a part fails, seen by clients through nginx."""

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.nodes import Nodes, two_nodes
from tests.running import Caller
from tests.servers.postgres import postgres
from tests.servers.redis import redis

pytestmark = pytest.mark.system

READING = {"metric": "m", "value": 1}


def through(nodes: Nodes) -> Caller:
    """A client."""
    gate = nodes.nodes[0].gate
    assert gate is not None
    return Caller(nodes.proxy.url, gate.settings, gate.session, gate._issuer)


async def ready(nodes: Nodes) -> list[tuple[int, str]]:
    """What each gate says of itself: the status of /readyz, and its word for the whole."""
    found = []
    for node in nodes.nodes:
        assert node.gate is not None
        reply = await node.gate.get("/readyz", token="")
        found.append((reply.status, reply.json["status"]))
    return found


@pytest.mark.parametrize("frozen", [False, True], ids=["away", "frozen"])
async def test_without_its_database_a_gate_says_so_and_comes_back_by_itself(
    tmp_path: Path, frozen: bool
) -> None:
    async with (
        postgres(tmp_path) as server,
        two_nodes(tmp_path, DATABASE_URL=server.url) as nodes,
    ):
        client = through(nodes)
        assert (await client.write("a.b", READING)).status == 200
        for node in nodes.nodes:
            # It has the newest value in memory then.
            assert node.gate is not None
            assert (await node.gate.get("/v1/devices/a.b/latest")).status == 200
        bearer = {"Authorization": f"Bearer {client.token()}"}
        async with client.session.get(client.url + "/v1/events?match=>", headers=bearer) as events:
            await events.content.readuntil(b"\n\n")
            if frozen:
                server.freeze()
            else:
                await server.stop("fast")
            try:
                await _is_told(client, nodes)
            finally:
                if frozen:
                    server.thaw()
                else:
                    await server.start()
            await _is_back(client, nodes)
            # The stream that was open all the time goes on.
            await client.write("a.b", {"metric": "m", "ts": 4_000_000_000_000, "value": 77})
            await _event(events, b'"value":77')


async def test_without_redis_nothing_is_refused_and_followers_get_all(
    tmp_path: Path, postgres_url: str
) -> None:
    async with (
        redis(tmp_path) as server,
        two_nodes(tmp_path, DATABASE_URL=postgres_url, REDIS_URL=server.url) as nodes,
    ):
        writer, follower = (node.gate for node in nodes.nodes)
        assert writer is not None
        assert follower is not None
        bearer = {"Authorization": f"Bearer {follower.token()}"}
        async with follower.session.get(follower.url + "/v1/events?match=>", headers=bearer) as events:
            await events.content.readuntil(b"\n\n")
            await _until_ready(nodes, "ready")
            assert (await writer.write("a.b", READING)).status == 200
            await _event(events, b'"value":1')
            await server.kill()
            for value in (2, 3, 4):
                assert (await writer.write("a.b", {"metric": "m", "value": value})).status == 200
                await _event(events, b'"value":%d' % value)
            await _until_ready(nodes, "degraded")
            await server.start()
            await _until_ready(nodes, "ready")
            assert (await writer.write("a.b", {"metric": "m", "value": 5})).status == 200
            await _event(events, b'"value":5')


async def _event(events: aiohttp.ClientResponse, text: bytes) -> None:
    """Wait for an event with this text."""
    async with asyncio.timeout(10):
        while text not in await events.content.readuntil(b"\n\n"):
            pass


async def _until_ready(nodes: Nodes, word: str) -> None:
    """Wait until both gates say this of themselves, with 200."""
    async with asyncio.timeout(15):
        while await ready(nodes) != [(200, word)] * 2:
            await asyncio.sleep(0.05)


async def _is_told(client: Caller, nodes: Nodes) -> None:
    """503 with Retry-After, soon, of the gates' own; what is in memory is answered; alive but not ready."""
    for _ in range(6):
        begun = time.monotonic()
        refused = await client.write("a.b", READING)
        assert (refused.status, refused.json["code"] in ("unavailable", "timeout")) == (503, True), refused
        assert int(refused.headers["Retry-After"]) >= 1
        assert "no gate answered" not in refused.json["detail"], "nginx must not speak for the gates"
        assert time.monotonic() - begun < 9.0
    assert (await client.get("/v1/devices/a.b/latest")).status == 200
    assert (await client.get("/livez", token="")).status == 200
    assert await ready(nodes) == [(503, "unavailable")] * 2


async def _is_back(client: Caller, nodes: Nodes) -> None:
    await _until_ready(nodes, "ready")
    for _ in range(4):
        try:
            assert (await client.write("a.b", READING)).status == 200
        except aiohttp.ClientError as error:
            raise AssertionError("the client was cut off") from error
