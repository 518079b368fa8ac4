import asyncio
from typing import Any

import pytest

from tests.handlers.wire import held_commit, pointers, problem
from tests.running import Reply, Running

A = "/v1/devices/demo.a/readings"
BARE = {"metric": "t", "value": 1}


async def write(gate: Running, content: object, key: str = "k1", **options: Any) -> Reply:
    headers = {"Idempotency-Key": key, **options.pop("headers", {})}
    return await gate.post(options.pop("path", A), content, headers=headers, **options)


async def stored(gate: Running) -> int:
    return len((await gate.get("/v1/readings?limit=1000")).json["items"])


async def test_the_same_key_and_body_get_the_stored_answer_again(gate: Running) -> None:
    await gate.post(A, {**BARE, "ts": 5})
    batch = [BARE, BARE, {**BARE, "ts": 5}, {"metric": "t", "value": 2, "ts": 5}, {}]
    first = await write(gate, batch)
    assert first.status == 200
    await gate.post(A, BARE)
    again = await write(gate, batch)
    assert (again.status, again.body) == (200, first.body)
    assert pointers(again, "rejected") == [("/3", "conflict"), ("/4", "invalid")]
    assert await stored(gate) == 4


async def test_a_quoted_key_and_a_bare_one_are_the_same(gate: Running) -> None:
    first = await write(gate, BARE, "abc")
    assert (await write(gate, BARE, '"abc"')).body == first.body
    assert await stored(gate) == 1


async def test_the_same_key_with_another_body_is_422(gate: Running) -> None:
    await write(gate, BARE)
    problem(await write(gate, {**BARE, "value": 2}), 422, "idempotency_mismatch")
    problem(await write(gate, BARE, path="/v1/devices/demo.b/readings"), 422, "idempotency_mismatch")
    assert await stored(gate) == 1


async def test_keys_are_kept_apart_by_principal(gate: Running) -> None:
    await write(gate, BARE)
    assert (await write(gate, {**BARE, "value": 2}, token=gate.token(subject="other"))).status == 200
    # Another token of the same principal is the same one.
    reply = await write(gate, {**BARE, "value": 3}, token=gate.token(ttl=60))
    problem(reply, 422, "idempotency_mismatch")


async def test_while_the_first_request_runs_the_second_is_409(gate: Running) -> None:
    async with held_commit(gate) as held:
        first = asyncio.create_task(write(gate, BARE))
        await held.arrived.wait()
        reply = await write(gate, BARE)
        problem(reply, 409, "idempotency_running")
        assert int(reply.headers["Retry-After"]) >= 1
        assert not first.done()
    body = (await first).body
    assert (await write(gate, BARE)).body == body
    assert await stored(gate) == 1


async def test_a_refused_write_does_not_use_up_its_key(gate: Running) -> None:
    problem(await write(gate, {"metric": "t"}), 422, "invalid")
    assert (await write(gate, BARE)).status == 200
    await gate.post(A, {**BARE, "ts": 5})
    strict = {"Prefer": "handling=strict"}
    bad = {"metric": "t", "value": 7, "ts": 5}
    problem(await write(gate, bad, "k2", headers=strict), 409, "conflict")
    assert (await write(gate, BARE, "k2")).status == 200


async def test_a_retry_that_conflicts_everywhere_is_refused_in_the_same_words(gate: Running) -> None:
    await gate.post(A, {**BARE, "ts": 5})
    bad = {"metric": "t", "value": 7, "ts": 5}
    first, again = await write(gate, bad), await write(gate, bad)
    problem(first, 422, "invalid")
    assert pointers(first) == pointers(again) == [("", "conflict")]


async def test_a_retry_with_other_grants_is_another_write(gate: Running) -> None:
    await gate.post(A, {**BARE, "ts": 5})
    batch = [
        {"device": "other.a", **BARE},
        {"device": "demo.a", "metric": "t", "value": 7, "ts": 5},
        {"device": "demo.a", **BARE},
    ]
    path = "/v1/readings"
    assert (await write(gate, batch, path=path)).json["accepted"] == 2
    less = gate.token(devices=["demo.>"])
    problem(await write(gate, batch, path=path, token=less), 422, "idempotency_mismatch")


async def test_with_a_key_the_commit_is_waited_for_even_if_the_client_would_not(gate: Running) -> None:
    asynchronous = {"Prefer": "respond-async"}
    reply = await write(gate, BARE, headers=asynchronous)
    assert (reply.status, reply.headers.get("Preference-Applied")) == (200, None)
    assert (await write(gate, BARE, headers=asynchronous)).body == reply.body


@pytest.mark.parametrize("key", ["", '""', "two words", "k" * 256, '"open', "ä"])
async def test_a_key_that_is_none_is_400(gate: Running, key: str) -> None:
    problem(await write(gate, BARE, key), 400, "malformed")
    assert await stored(gate) == 0
