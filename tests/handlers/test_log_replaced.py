"""A failover or a restore at run time: the log is another one, and whoever followed the old one is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from storage.errors import Unavailable
from storage.log import LogState
from storage.models import Batch
from tests.handlers.sockets import Ended, Socket, connect, values
from tests.handlers.test_sse import listen
from tests.raw import until
from tests.running import PATIENCE, Running, administrate


def reading(value: Any, metric: str = "t", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, **more}


async def replace(gate: Running) -> str:
    """Have the database say that its log is another one, as if another node had noticed; where it stands."""
    engine: Any = gate.gate.engine
    state = engine.state()
    if gate.settings.database_url:
        statement = "UPDATE tidegate.head SET epoch = 'other'"
        await asyncio.to_thread(administrate, gate.settings.database_url, statement)
    else:
        engine._writer.state = engine._state = LogState("other", state.head, state.floor)
    return f"other-{state.head}"


async def noticed(gate: Running) -> None:
    """Wait until the streams know."""
    await until(lambda: gate.gate.live.hub.epoch == "other")


@pytest.fixture
async def socket(gate: Running) -> AsyncIterator[Socket]:
    async with connect(gate) as connected:
        yield connected


async def test_all_streams_end_with_a_position_in_the_log_that_was(gate: Running, socket: Socket) -> None:
    position = (await gate.write("a", reading(1))).json["position"]
    await socket.follow(1, ">")
    async with listen(gate) as events, connect(gate) as idle:
        await events.verdict()
        await replace(gate)
        ended = await socket.end()
        assert (ended.code, ended.reason) == (1001, position)
        assert (await idle.end()).code == 1001
        (last,) = await events.ended()
        assert (last.name, last.own_id) == ("position", position)


async def test_who_comes_back_is_told_and_follows_the_new_log(gate: Running, socket: Socket) -> None:
    old = (await gate.write("a", reading(1))).json["position"]
    await socket.follow(1, ">")
    here = await replace(gate)
    assert (await socket.end()).reason == old
    async with connect(gate) as again, listen(gate, headers={"Last-Event-ID": old}) as events:
        subscribed, _ = await again.follow(1, ">", since=old)
        assert subscribed == {
            "type": "subscribed",
            "id": 1,
            "position": here,
            "recovered": False,
            "reason": "unknown_epoch",
        }
        verdict = await events.verdict()
        assert verdict.data == {"recovered": False, "reason": "unknown_epoch", "position": here}
        position = (await gate.write("a", reading(2))).json["position"]
        assert position.startswith("other-")
        heard = await again.hear()
        assert (heard["value"], heard["position"]) == (2, position)
        assert (await events.next()).own_id == position


async def test_what_is_committed_to_the_new_log_never_comes_with_an_old_position(
    gate: Running, socket: Socket
) -> None:
    """The commit itself is the first to know."""
    old = (await gate.write("a", reading(1))).json["position"]
    await socket.follow(1, ">")
    gate.gate.live.healer._look_at = float("inf")
    await replace(gate)
    ack = await gate.write("a", reading(2))
    assert ack.json["position"] == "other-2"
    with pytest.raises(Ended) as ended:
        await socket.hear()
    assert (ended.value.code, ended.value.reason) == (1001, old)
    async with connect(gate) as again:
        assert values(await again.follow(1, ">", since="other-1")) == [2]


async def test_memory_of_the_old_log_is_gone(gate: Running) -> None:
    await gate.write("a", reading(1), reading(2))
    hub = gate.gate.live.hub
    assert (hub.window.after, hub.head) == (0, 2)
    await replace(gate)
    await noticed(gate)
    assert (hub.window.after, hub.head, hub.window.size) == (2, 2, 0)


async def test_a_position_of_the_new_log_is_known_before_this_process_has_noticed(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has shown it: it is worth a question to the database."""
    live, engine = gate.gate.live, gate.gate.engine
    await gate.write("a", reading(1))
    monkeypatch.setattr(live.healer, "_look_at", float("inf"))
    ask = engine.refresh

    async def refresh() -> LogState:
        await replace(gate)
        return await ask()

    monkeypatch.setattr(engine, "refresh", refresh)
    async with connect(gate) as socket, listen(gate, headers={"Last-Event-ID": "other-1"}) as events:
        # Whoever asks while it is noticed must ask again: nothing was said that could mislead.
        assert [event.name for event in await events.ended()] == []
        ended = await socket.end()
        assert (ended.code, ended.reason) == (1001, "")
    async with connect(gate) as socket:
        subscribed, _ = await socket.follow(1, ">", since="other-1")
        assert subscribed["recovered"] is True


async def test_batches_of_another_log_are_not_handed_on(gate: Running, socket: Socket) -> None:
    live = gate.gate.live
    await socket.follow(1, ">")
    await gate.write("a", reading(1))
    assert (await socket.hear())["value"] == 1
    found = await gate.gate.engine.read_from(0, 1, 10, live.healer._selection)
    late = Batch(2, 2, [found.readings[0]], "before")
    live.publish(late)
    live.receive(late, "before")
    await gate.write("a", reading(2))
    heard = await socket.hear()
    assert (heard["value"], heard["position"].rpartition("-")[2]) == (2, "2")


# -- what only the database can tell -----------------------------------------------------------


async def test_a_position_that_another_node_has_shown_is_no_position_ahead(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = gate.gate.live
    await socket.follow(1, "nothing")
    monkeypatch.setattr(live.healer, "_look_at", float("inf"))
    monkeypatch.setattr(live.hub, "publish", lambda _: None)
    position = (await gate.write("a", reading(1), reading(2))).json["position"]
    monkeypatch.undo()
    assert live.hub.head == 0
    subscribed, following = await socket.follow(2, ">", since=position)
    assert subscribed["recovered"] is True
    assert following["type"] == "live"
    assert live.hub.head == 2
    await gate.write("a", reading(3))
    assert (await socket.hear())["value"] == 3


async def test_while_the_database_cannot_tell_the_client_must_ask_again(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = (await gate.write("a", reading(1))).json["position"]
    ahead = position.partition("-")[0] + "-9"

    async def refresh() -> LogState:
        raise Unavailable("the database is away")

    monkeypatch.setattr(gate.gate.engine, "refresh", refresh)
    await socket.say(type="subscribe", id=1, match=[">"], since=ahead)
    ended = await socket.end()
    # No position: the client's own is the better one.
    assert (ended.code, ended.reason) == (1013, "")
    async with listen(gate, headers={"Last-Event-ID": ahead}) as events:
        assert await events.ended() == []
    # Whoever is known here is not harmed.
    async with connect(gate) as other:
        assert values(await other.follow(1, ">", since="earliest")) == [1]


async def test_who_waits_for_a_verdict_may_unsubscribe_and_go(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = (await gate.write("a", reading(1))).json["position"]
    asked, answer = asyncio.Event(), asyncio.Event()
    engine = gate.gate.engine

    async def refresh() -> LogState:
        asked.set()
        await answer.wait()
        return engine.state()

    monkeypatch.setattr(engine, "refresh", refresh)
    await socket.say(type="subscribe", id=1, match=[">"], since=f"{position}0")
    async with asyncio.timeout(PATIENCE):
        await asked.wait()
    await socket.say(type="unsubscribe", id=1)
    assert await socket.hear() == {"type": "unsubscribed", "id": 1}
    async with listen(gate, headers={"Last-Event-ID": f"{position}0"}):
        await until(lambda: gate.gate.live.recoveries.running == 1)
    await until(lambda: gate.gate.live.recoveries.running == 0)
    answer.set()
    assert (await socket.follow(2, ">"))[0]["position"] == position
