"""Gates that share a Redis: what they tell each other, what they count together, and what they do without."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.running import PATIENCE, Running, run_gate, samples
from tests.servers.redis import redis

SECRET = "a secret that two gates share, long enough for HS256"


@asynccontextmanager
async def gates(tmp_path: Path, url: str, count: int = 2, **environment: str) -> AsyncIterator[list[Running]]:
    """Gates that are one as far as Redis goes: each has a database of its own."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                run_gate(tmp_path / f"data{number}", REDIS_URL=url, JWT_SECRET=SECRET, **environment)
            )
            for number in range(count)
        ]


async def until(condition: Callable[[], object], what: str = "") -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def metric(gate: Running, name: str) -> float:
    """A figure of /metrics, all its labels together."""
    found = samples((await gate.get("/metrics")).body)
    return sum(value for each, value in found.items() if each.startswith(name))


async def test_a_limit_holds_over_both_and_a_burst_at_one_is_known_to_the_other(
    tmp_path: Path, redis_url: str
) -> None:
    async with gates(tmp_path, redis_url, RATE_LIMIT="100") as (one, two):
        async with asyncio.timeout(PATIENCE):
            while await metric(one, "tidegate_limits_processes") != 2:
                await asyncio.sleep(0.05)
        begun = asyncio.get_running_loop().time()
        burst = [(await one.get("/v1/devices")).status for _ in range(10)]
        statuses = [(await gate.get("/v1/devices")).status for _ in range(20) for gate in (one, two)]
        drained = 100 / 60 * (asyncio.get_running_loop().time() - begun)
        # Of the account, where Redis was silent for a while: see auth/shared_limits.py.
        lost = sum([await metric(gate, "tidegate_limits_lost_total") for gate in (one, two)])
        assert burst == [200] * 10 or lost
        # Of the lease of the second, and what drains meanwhile.
        assert statuses.count(200) <= 10 + 3 + drained + 2 * lost * (10 + 2 * (10 + 1))
        # Who hears of the burst at once admits nothing.
        assert set(statuses) | {200} == {200, 429}
        assert await metric(one, "tidegate_limits_settled_total") > 0


async def test_a_token_revoked_at_one_is_refused_at_the_other_at_once(tmp_path: Path, redis_url: str) -> None:
    async with gates(tmp_path, redis_url) as (one, two):
        for gate in (one, two):
            created = await gate.post(
                "/v1/clients", {"id": "boiler", "scopes": ["readings:read"], "devices": ["acme.>"]}
            )
            assert created.status == 201
        token = one.token(["readings:read"], ["acme.>"], subject="boiler")
        assert (await two.get("/v1/latest", token=token)).status == 200
        assert (await one.call("DELETE", "/v1/clients/boiler")).status == 204
        # Two has a database of its own: it can know this by a message only.
        async with asyncio.timeout(PATIENCE):
            while (await two.get("/v1/latest", token=token)).status != 401:
                await asyncio.sleep(0.01)


async def settled(gate: Running, count: int) -> None:
    settlement = gate.gate._shared._settlement
    await until(lambda: settlement and settlement.settled >= count, "settled")


async def test_failed_logins_count_over_both(tmp_path: Path, redis_url: str) -> None:
    async with gates(tmp_path, redis_url, LOGIN_LIMIT="4") as (one, two):
        statuses, failed = [], [0, 0]
        for number in range(14):
            gate = (one, two)[number % 2]
            answer = await gate.post(
                "/v1/token",
                data=b"grant_type=client_credentials&client_id=nobody&client_secret=wrong",
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                token="",
            )
            statuses.append(answer.status)
            failed[number % 2] += answer.status == 401
            await settled(gate, failed[number % 2])
        assert set(statuses) == {401, 429}
        # Four, and what each may not have heard of.
        assert statuses.count(401) <= 4 + 2


async def test_a_deleted_device_is_forgotten_at_the_other(tmp_path: Path, redis_url: str) -> None:
    async with gates(tmp_path, redis_url) as (one, two):
        for gate in (one, two):
            await gate.write("acme.boiler", {"metric": "t", "value": 1})
            assert (await gate.get("/v1/devices/acme.boiler/latest")).status == 200
        assert len(two.gate.cache) == 1
        assert (await one.call("DELETE", "/v1/devices/acme.boiler")).status == 204
        await until(lambda: len(two.gate.cache) == 0)


async def readiness(gate: Running) -> tuple[int, str, str]:
    answer = await gate.get("/readyz", token="")
    return answer.status, answer.json["status"], answer.json["parts"]["redis"]["status"]


async def works(gate: Running) -> None:
    written = await gate.write("acme.boiler", {"metric": "t", "value": 1})
    assert written.status == 200
    assert (await gate.get("/v1/devices/acme.boiler/latest")).json["metrics"]["t"]["value"] == 1
    assert (await gate.get("/v1/devices/acme.boiler/readings")).status == 200


async def degraded(gate: Running) -> None:
    async with asyncio.timeout(PATIENCE):
        while await readiness(gate) != (200, "degraded", "degraded"):
            await works(gate)
    assert (await gate.get("/livez", token="")).status == 200
    await works(gate)


async def recovered(gate: Running) -> None:
    async with asyncio.timeout(PATIENCE):
        while await readiness(gate) != (200, "ready", "ok"):
            await asyncio.sleep(0.01)
    await works(gate)


async def test_without_redis_everything_goes_on_and_readiness_says_degraded(tmp_path: Path) -> None:
    limits = {"RATE_LIMIT": "100000", "POINT_LIMIT": "100000"}
    async with redis(tmp_path) as server, gates(tmp_path, server.url, 1, **limits) as (gate,):
        await recovered(gate)
        server.freeze()
        await degraded(gate)
        server.thaw()
        await recovered(gate)
        await server.kill()
        await degraded(gate)
        await server.start()
        await recovered(gate)


async def test_a_gate_starts_without_redis(tmp_path: Path) -> None:
    async with redis(tmp_path) as server:
        await server.kill()
        async with gates(tmp_path, server.url, 1, RATE_LIMIT="1000") as (gate,):
            assert await readiness(gate) == (200, "degraded", "degraded")
            await works(gate)
            await server.start()
            await recovered(gate)


async def test_alone_there_is_no_part_named_redis(gate: Running) -> None:
    assert "redis" not in (await gate.get("/readyz", token="")).json["parts"]
    assert b"tidegate_redis" not in (await gate.get("/metrics")).body
