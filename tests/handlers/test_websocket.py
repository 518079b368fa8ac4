"""`GET /v1/stream`: every sentence that API.md has on the WebSocket."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import msgspec
import picows
import pytest
import websockets
from aiohttp import WSMsgType, WSServerHandshakeError

from handlers.live import recovery, streams
from handlers.websocket import WebSocket
from storage.errors import Unavailable
from tests.clock import Clock
from tests.handlers.sockets import Ended, Socket, connect, values
from tests.handlers.wire import (
    create_client,
    expired_token,
    held_commit,
    log_in,
    stopped_intervals,
)
from tests.raw import Raw, request, until
from tests.running import PATIENCE, Running, client_tls, run_gate

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def reading(value: Any, metric: str = "t", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, **more}


@pytest.fixture
async def socket(gate: Running) -> AsyncIterator[Socket]:
    async with connect(gate) as connected:
        yield connected


# -- following ---------------------------------------------------------------------------------


async def test_without_since_the_stream_begins_now(gate: Running, socket: Socket) -> None:
    position = (await gate.write("a.b", reading(1))).json["position"]
    subscribed, live = await socket.follow(1, "a.>")
    assert subscribed == {"type": "subscribed", "id": 1, "position": position, "recovered": None}
    assert live == {"type": "live", "id": 1, "position": position}
    written = await gate.write("a.b", reading(2.5, ts="2026-01-01T00:00:00Z"))
    assert await socket.hear() == {
        "type": "reading",
        "device": "a.b",
        "metric": "t",
        "ts": "2026-01-01T00:00:00Z",
        "value": 2.5,
        "position": written.json["position"],
    }


async def test_readings_of_a_batch_come_in_log_order(gate: Running, socket: Socket) -> None:
    await socket.follow(1, ">")
    await gate.write("a.b", *(reading(number) for number in range(300)))
    heard = [await socket.hear() for _ in range(300)]
    assert values(heard) == list(range(300))
    offsets = [int(message["position"].rpartition("-")[2]) for message in heard]
    assert offsets == list(range(1, 301))


async def test_only_what_patterns_and_metrics_take_in_comes(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a.*.c", "b.>", metrics=["t", "u"])
    for device, metric in (("a.b.c", "t"), ("a.b.c", "v"), ("a.b", "t"), ("b", "t"), ("b.c", "u")):
        await gate.write(device, reading(f"{device} {metric}", metric))
    assert values([await socket.hear(), await socket.hear()]) == ["a.b.c t", "b.c u"]


async def test_since_brings_what_was_missed_first_then_the_rest(gate: Running, socket: Socket) -> None:
    since = (await gate.write("a", reading(1))).json["position"]
    last = (await gate.write("a", *(reading(n) for n in range(2, 700)))).json["position"]
    heard = await socket.follow("x", ">", since=since)
    assert heard[0] == {"type": "subscribed", "id": "x", "position": since, "recovered": True}
    assert {message["type"] for message in heard[1:-1]} == {"readings"}
    assert {message["id"] for message in heard[1:]} == {"x"}
    assert heard[-1]["position"] == last
    await gate.write("a", reading(700))
    assert values([*heard, await socket.hear()]) == list(range(2, 701))


async def test_earliest_is_all_there_is(gate: Running, socket: Socket) -> None:
    await gate.write("a", reading(1), reading(2))
    heard = await socket.follow(1, ">", since="earliest")
    assert heard[0]["recovered"] is True
    assert values(heard) == [1, 2]


@pytest.mark.parametrize("reason", ["unknown_epoch", "ahead", "expired"])
async def test_what_cannot_be_recovered_is_said_and_the_stream_goes_on(
    gate: Running, socket: Socket, reason: str
) -> None:
    first = (await gate.write("a", reading(1, ts=1))).json["position"]
    here = (await gate.write("a", reading(2))).json["position"]
    epoch, _, offset = here.rpartition("-")
    if reason == "expired":
        await gate.gate.engine.sweep(1_000_000_000)
        since = f"{epoch}-0"
        assert first == f"{epoch}-1"
    else:
        since = "other-1" if reason == "unknown_epoch" else f"{epoch}-{int(offset) + 5}"
    heard = await socket.follow(1, ">", since=since)
    assert heard[0] == {
        "type": "subscribed",
        "id": 1,
        "position": here,
        "recovered": False,
        "reason": reason,
    }
    await gate.write("a", reading(3))
    assert (await socket.hear())["value"] == 3


async def test_latest_brings_the_newest_value_of_each_series_first(gate: Running, socket: Socket) -> None:
    await gate.write("a", reading(1, ts=2000), reading(0, ts=1000), reading("u", "u", ts=1))
    await gate.write("b", reading(9))
    heard = await socket.follow(1, "a", metrics=["t"], latest=True)
    assert [message["type"] for message in heard] == ["subscribed", "readings", "live"]
    assert heard[1]["items"] == [
        {"device": "a", "metric": "t", "ts": "1970-01-01T00:00:02Z", "value": 1, "latest": True}
    ]
    await gate.write("a", reading(2))
    assert (await socket.hear())["value"] == 2


async def test_latest_with_since_brings_both(gate: Running, socket: Socket) -> None:
    await gate.write("a", reading(1), reading(2))
    heard = await socket.follow(1, "a", since="earliest", latest=True)
    assert values(heard) == [2, 1, 2]


async def test_what_matches_several_subscriptions_is_sent_once(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a.>")
    await socket.follow(2, ">")
    await gate.write("a.b", reading(1))
    await gate.write("b", reading(2))
    assert values([await socket.hear(), await socket.hear()]) == [1, 2]


async def test_after_unsubscribe_nothing_comes(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a")
    await socket.follow(2, "b")
    await socket.say(type="unsubscribe", id=1)
    assert await socket.hear() == {"type": "unsubscribed", "id": 1}
    await gate.write("a", reading(1))
    await gate.write("b", reading(2))
    assert (await socket.hear())["value"] == 2
    await socket.say(type="unsubscribe", id=1)
    assert (await socket.hear())["code"] == "not_found"


async def test_times_can_be_integers(gate: Running) -> None:
    async with connect(gate, query="?time=ms") as socket:
        await socket.follow(1, ">")
        await gate.write("a", reading(1, ts=5000))
        assert (await socket.hear())["ts"] == 5000


async def test_min_interval_gives_the_newest_and_the_last_one_always(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a", min_interval="400ms")
    with stopped_intervals(gate) as began:
        for number in range(1, 6):
            await gate.write("a", reading(number))
        assert (await socket.hear())["value"] == 1
    last = await socket.hear()
    assert last["value"] == 5
    assert round(asyncio.get_running_loop().time() - began, 3) >= 0.4


async def test_a_position_lies_before_what_min_interval_holds_back(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a", min_interval="1h")
    first = (await gate.write("a", reading(1))).json["position"]
    assert (await socket.hear())["value"] == 1
    await gate.write("a", reading(2))
    await gate.write("a", reading(3, "u"))
    held = await socket.hear()
    assert held["value"] == 3
    assert held["position"] == first
    # Also that of an acknowledgement, of another subscription, and of the end.
    assert (await socket.write(9, {"device": "z", **reading(1)}))["position"] == first
    assert (await socket.follow(2, "b"))[0]["position"] == first
    await socket.ws.send_str("no JSON")
    assert (await socket.hear())["type"] == "error"
    assert (await socket.end()).reason == first
    async with connect(gate) as again:
        assert values(await again.follow(1, "a", since=first)) == [2, 3]


async def test_a_position_comes_when_time_passes_without_a_match(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUIET", 0.1)
    await socket.follow(1, "a")
    position = (await gate.write("b", reading(1))).json["position"]
    while (message := await socket.hear())["position"] != position:
        assert message["type"] == "position"
    assert message == {"type": "position", "position": position}


async def test_a_follower_of_rare_matches_resumes_from_a_recent_position(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUIET", 0.1)
    await socket.follow(1, "rare")
    await gate.write("often", *(reading(n) for n in range(500)))
    async with asyncio.timeout(PATIENCE):
        while not (message := await socket.hear())["position"].endswith("-500"):
            pass
    async with connect(gate) as again:
        subscribed, _ = await again.follow(1, "rare", since=message["position"])
        assert subscribed["recovered"] is True


# -- recovery ----------------------------------------------------------------------------------


async def test_what_is_older_than_memory_comes_from_the_database_without_a_gap(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", STREAM_WINDOW="64KiB") as gate:
        for start in range(0, 6000, 1000):
            await gate.write("a", *(reading(n) for n in range(start, start + 1000)))
        assert gate.gate.live.hub.window.after > 5000
        async with connect(gate) as socket:
            await socket.say(type="subscribe", id=1, match=["a"], since="earliest")
            writer = asyncio.create_task(_write_on(gate, 6000, 7000))
            heard = await socket.until("live")
            await writer
            while len(values(heard)) < 7000:
                heard.append(await socket.hear())
        assert values(heard) == list(range(7000))
        metrics = (await gate.get("/metrics")).body.decode()
        assert 'tidegate_stream_recoveries_total{source="database",verdict="recovered"} 1.0' in metrics


async def _write_on(gate: Running, start: int, end: int) -> None:
    for number in range(start, end, 10):
        await gate.write("a", *(reading(n) for n in range(number, number + 10)))


async def test_a_replay_that_breaks_off_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_gate(tmp_path / "data", STREAM_WINDOW="64KiB") as gate:
        await gate.write("a", *(reading(n) for n in range(3000)))

        async def read_from(*_: object) -> None:
            raise Unavailable("the disk is away")

        monkeypatch.setattr(gate.gate.engine, "read_from", read_from)
        async with connect(gate) as socket:
            await socket.say(type="subscribe", id=1, match=["a"], since="earliest")
            ended = await socket.end()
        assert ended.code == 1013
        assert ended.reason.endswith("-0")


async def test_a_replay_whose_readings_grow_too_old_is_never_called_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 10)
    async with run_gate(tmp_path / "data", STREAM_WINDOW="64KiB") as gate:
        await gate.write("a", *(reading(n, ts=n + 1) for n in range(3000)))
        read_from = gate.gate.engine.read_from

        async def sweep_between(*arguments: Any) -> Any:
            if arguments[0] == 50:
                await gate.gate.engine.sweep(2_000_000)
            return await read_from(*arguments)

        monkeypatch.setattr(gate.gate.engine, "read_from", sweep_between)
        async with connect(gate) as socket:
            await socket.say(type="subscribe", id=1, match=["a"], since="earliest")
            ended = await socket.end()
            assert ended.code == 1013
            assert ended.reason.endswith("-50")


async def test_a_follower_that_never_comes_closer_is_told_that_it_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_gate(tmp_path / "data", STREAM_WINDOW="64KiB") as gate:
        await gate.write("a", *(reading(n) for n in range(3000)))
        live = gate.gate.live
        monkeypatch.setattr(live.recoveries, "_patience", 0.3)
        read_from = gate.gate.engine.read_from

        async def slowly(offset: int, *arguments: Any) -> Any:
            await gate.write("a", *(reading(n) for n in range(600)))
            return await read_from(offset, *arguments)

        monkeypatch.setattr(gate.gate.engine, "read_from", slowly)
        async with connect(gate) as socket:
            await socket.say(type="subscribe", id=1, match=["a"], since="earliest")
            assert (await socket.end()).code == 4408


async def test_a_gap_before_the_hub_is_filled_from_the_database(
    gate: Running, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the last batch, behind which nothing comes that would tell."""
    await socket.follow(1, ">")
    hub = gate.gate.live.hub
    publish = hub.publish
    monkeypatch.setattr(hub, "publish", lambda _: None)
    await gate.write("a", reading(1), reading(2))
    monkeypatch.setattr(hub, "publish", publish)
    assert values([await socket.hear(), await socket.hear()]) == [1, 2]
    await gate.write("a", reading(3))
    assert (await socket.hear())["value"] == 3


# -- slow followers ----------------------------------------------------------------------------


async def stalled(socket: Socket) -> None:
    """Stop reading: the kernel's buffers fill, then the gate's."""
    transport: Any = socket.ws._response.connection.transport  # type: ignore[union-attr]
    transport.pause_reading()


async def go_on(socket: Socket) -> None:
    transport: Any = socket.ws._response.connection.transport  # type: ignore[union-attr]
    transport.resume_reading()


async def test_a_slow_follower_is_closed_with_a_position_to_resume_from(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate, connect(gate) as socket:
        await socket.follow(1, "a")
        await stalled(socket)
        await until_flooded(gate, lambda: dropped(gate, "disconnect") == 1)
        await go_on(socket)
        heard, ended = await everything(socket)
        assert ended.code == 4408
        got = [int(value.split()[0]) for value in values(heard)]
        assert got == list(range(len(got)))
        async with connect(gate) as again:
            rest = await again.follow(1, "a", since=ended.reason)
            missed = [int(value.split()[0]) for value in values(rest)]
            assert missed[0] <= len(got)
            assert missed == list(range(missed[0], missed[0] + len(missed)))


async def everything(socket: Socket) -> tuple[list[dict[str, Any]], Ended]:
    """All messages, and how it ended."""
    heard: list[dict[str, Any]] = []
    try:
        while True:
            heard.append(await socket.hear())
    except Ended as ended:
        return heard, ended


def dropped(gate: Running, policy: str) -> int:
    figures = gate.gate.live.hub.figures
    names = ("disconnect", "conflate", "drop_oldest")
    return figures.dropped[names.index(policy)]


async def until_flooded(gate: Running, enough: Any) -> int:
    """Write until the gate has noticed that somebody does not read; how many readings that took."""
    count = 0
    text = "x" * 1000
    async with asyncio.timeout(3 * PATIENCE):
        while not enough():
            readings = [reading(f"{n} {text}", f"m{n % 7}") for n in range(count, count + 200)]
            assert (await gate.write("a", *readings)).status == 200
            count += 200
    return count


async def test_drop_oldest_tells_how_many_it_dropped(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate, connect(gate) as socket:
        await socket.follow(1, "a", overflow="drop_oldest")
        await stalled(socket)
        count = await until_flooded(gate, lambda: dropped(gate, "drop_oldest") >= 100)
        await go_on(socket)
        heard = [await socket.hear()]
        while not values(heard[-1:]) or int(values(heard[-1:])[0].split()[0]) != count - 1:
            heard.append(await socket.hear())
        told = [message for message in heard if message["type"] == "dropped"]
        assert {message["id"] for message in told} == {1}
        numbers = [int(value.split()[0]) for value in values(heard)]
        assert numbers == sorted(set(numbers))
        assert len(numbers) + sum(message["count"] for message in told) == count


async def test_conflate_keeps_the_newest_of_each_series(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate, connect(gate) as socket:
        await socket.follow(1, "a", overflow="conflate")
        await stalled(socket)
        count = await until_flooded(gate, lambda: dropped(gate, "conflate") >= 100)
        await go_on(socket)
        newest: dict[str, int] = {}
        wanted = {f"m{n % 7}": n for n in range(count)}
        while newest != wanted:
            message = await socket.hear()
            assert message["type"] == "reading"
            number = int(message["value"].split()[0])
            assert number > newest.get(message["metric"], -1)
            newest[message["metric"]] = number


async def test_a_slow_follower_slows_nobody(tmp_path: Path) -> None:
    async with (
        run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate,
        connect(gate) as slow,
        connect(gate) as quick,
    ):
        await slow.follow(1, "a")
        await quick.follow(1, "a")
        await stalled(slow)
        heard: list[dict[str, Any]] = []

        async def listen() -> None:
            while True:
                heard.append(await quick.hear())

        listener = asyncio.create_task(listen())
        count = await until_flooded(gate, lambda: dropped(gate, "disconnect") == 1)
        await until(lambda: len(heard) >= count)
        listener.cancel()
        assert [int(v.split()[0]) for v in values(heard)] == list(range(count))


# -- writing -----------------------------------------------------------------------------------


async def test_a_write_is_acknowledged_after_the_commit(gate: Running, socket: Socket) -> None:
    ack = await socket.write(7, {"device": "a", **reading(1, ts=1)}, {"device": "b", "values": {"x": 1}})
    position = (await gate.get("/v1/devices/b/latest")).json["position"]
    assert ack == {
        "type": "ack",
        "id": 7,
        "accepted": 2,
        "duplicates": 0,
        "rejected_count": 0,
        "rejected": [],
        "position": position,
    }
    assert (await socket.write(8, {"device": "a", **reading(1, ts=1)}))["duplicates"] == 1


async def test_a_write_has_a_verdict_per_item(gate: Running, socket: Socket) -> None:
    ack = await socket.write("w", {"device": "a", **reading(1)}, {"device": "a b", **reading(1)})
    assert (ack["accepted"], ack["rejected_count"]) == (1, 1)
    assert ack["rejected"][0]["pointer"] == "/1/device"


@pytest.mark.parametrize(
    ("readings", "code"),
    [([], "invalid"), ([{"device": "a"}], "invalid"), ({"x": 1}, "invalid"), ("x", "invalid")],
)
async def test_a_write_that_stores_nothing_is_an_error(
    gate: Running, socket: Socket, readings: Any, code: str
) -> None:
    await socket.say(type="write", id=1, readings=readings)
    error = await socket.hear()
    assert (error["type"], error["id"], error["code"]) == ("error", 1, code)
    assert (await socket.write(2, {"device": "a", **reading(1)}))["accepted"] == 1


async def test_a_write_needs_scope_and_grant(gate: Running) -> None:
    async with connect(gate, gate.token(["readings:read"])) as socket:
        assert (await socket.write(1, {"device": "a", **reading(1)}))["code"] == "insufficient_scope"
    async with connect(gate, gate.token(["readings:write"], ["b"])) as socket:
        assert (await socket.write(1, {"device": "a", **reading(1)}))["code"] == "forbidden"
        await socket.say(type="subscribe", id=1, match=["b"])
        assert (await socket.hear())["code"] == "insufficient_scope"


async def test_at_most_64_writes_wait_for_their_acknowledgement(gate: Running, socket: Socket) -> None:
    async with held_commit(gate) as held:
        for number in range(65):
            await socket.say(type="write", id=number, readings=[{"device": "a", **reading(number)}])
        error = await socket.hear()
        assert (error["type"], error["id"], error["code"]) == ("error", 64, "rate_limited")
        held.go.set()
        acks = [await socket.hear() for _ in range(64)]
    assert [(ack["type"], ack["id"]) for ack in acks] == [("ack", number) for number in range(64)]


async def test_a_limit_is_an_error_frame_and_again_and_again_the_end(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", RATE_LIMIT="60") as gate, connect(gate) as socket:
        for number in range(40):
            await socket.say(type="write", id=number, readings=[{"device": "a", **reading(number)}])
        heard, ended = await everything(socket)
        assert ended.code == 4429
        codes = [message.get("code", "ack") for message in heard]
        assert sorted(set(codes)) == ["ack", "rate_limited"]


async def test_the_limit_in_readings_holds_on_the_socket(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", POINT_LIMIT="60") as gate, connect(gate) as socket:
        many = [{"device": "a", **reading(n)} for n in range(50)]
        assert (await socket.write(1, *many))["accepted"] == 50
        assert (await socket.write(2, *many))["code"] == "rate_limited"


# -- frames that are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"', "null", '{"type":"subscribe"} x'])
async def test_what_is_no_json_object_is_a_bad_frame(gate: Running, socket: Socket, text: str) -> None:
    await socket.ws.send_str(text)
    assert (await socket.hear())["code"] == "malformed"
    assert (await socket.end()).code == 4400


async def test_a_binary_frame_is_bad_where_text_is_spoken(gate: Running, socket: Socket) -> None:
    await socket.ws.send_bytes(b"{}")
    assert (await socket.hear())["code"] == "malformed"
    assert (await socket.end()).code == 4400


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"type": "jump", "id": 5}, "invalid"),
        ({"id": 5}, "invalid"),
        ({"type": "subscribe", "id": 5}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": []}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": "a"}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a..b"]}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"] * 65}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "metrics": ["a b"]}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "since": "x"}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "since": 5}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "min_interval": "5"}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "min_interval": "9w"}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "overflow": "explode"}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["a"], "metric": ["typo"]}, "invalid"),
        ({"type": "subscribe", "id": 5, "match": ["other.>"]}, "forbidden"),
        ({"type": "unsubscribe", "id": 5}, "not_found"),
    ],
)
async def test_a_command_that_is_wrong_is_an_error_and_nothing_else(
    gate: Running, command: dict[str, Any], code: str
) -> None:
    async with connect(gate, gate.token(devices=["a.>", "a"])) as socket:
        await socket.say(**command)
        error = await socket.hear()
        assert (error["type"], error["code"], error["id"]) == ("error", code, 5)
        assert error["detail"]
        assert (await socket.follow(5, "a"))[0]["type"] == "subscribed"


async def test_an_id_is_taken_once_and_an_error_without_one_has_none(gate: Running, socket: Socket) -> None:
    await socket.follow(1, "a")
    await socket.say(type="subscribe", id=1, match=["b"])
    assert (await socket.hear())["code"] == "conflict"
    await socket.say(type="subscribe", match=["b"])
    assert "id" not in await socket.hear()


async def test_a_pattern_shows_only_what_is_granted(gate: Running) -> None:
    async with connect(gate, gate.token(devices=["a.b", "c.>"])) as socket:
        await socket.follow(1, ">")
        for device in ("a.a", "a.b", "c", "c.d"):
            await gate.write(device, reading(device))
        assert values([await socket.hear(), await socket.hear()]) == ["a.b", "c.d"]


async def test_at_most_256_subscriptions(gate: Running, socket: Socket) -> None:
    for number in range(256):
        await socket.follow(number, f"d{number}")
    await socket.say(type="subscribe", id=256, match=["x"])
    error = await socket.hear()
    assert (error["id"], error["code"]) == (256, "rate_limited")
    await socket.say(type="unsubscribe", id=0)
    await socket.hear()
    await socket.follow(256, "x")
    await gate.write("d255", reading(1))
    assert (await socket.hear())["value"] == 1


async def test_subscriptions_by_the_thousand_end_the_connection_alone(gate: Running, socket: Socket) -> None:
    async with connect(gate) as other:
        await other.follow(1, ">")
        for number in range(1000):
            await socket.say(type="subscribe", id=number, match=[f"d{number}"])
        assert (await socket.end()).code == 4429
        await gate.write("a", reading(1))
        assert (await other.hear())["value"] == 1


async def test_a_frame_of_64_kib_passes_and_a_larger_one_ends_the_connection(
    gate: Running, socket: Socket
) -> None:
    frame = json.dumps({"type": "jump", "id": 1})
    await socket.ws.send_str(frame + " " * (64 * 1024 - len(frame)))
    assert (await socket.hear())["code"] == "invalid"
    await socket.ws.send_str(frame + " " * (64 * 1024 - len(frame) + 1))
    assert (await socket.end()).code == 1009


def client_frame(opcode: int, payload: bytes, *, mask: bool = True, fin: bool = True) -> bytes:
    head = bytes(((0x80 if fin else 0) | opcode, (0x80 if mask else 0) | len(payload)))
    return head + (b"\0\0\0\0" if mask else b"") + payload


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (client_frame(1, b"\xff\xfe"), 1007),
        (client_frame(1, b"{}", mask=False), 1002),
        (client_frame(3, b""), 1002),
        (client_frame(0, b"x"), 1002),
        (client_frame(9, b"x", fin=False), 1002),
        (client_frame(8, b"\x03\xee"), 1002),  # 1006
        (client_frame(8, b"\x03\xe8"), 1000),
        (client_frame(8, b"\x0b\xb8bye"), 3000),
        (client_frame(8, b""), 1000),
    ],
)
async def test_rfc_6455_is_kept_to(gate: Running, frame: bytes, code: int) -> None:
    async with await Raw.open(gate.port) as raw:
        answer = await raw.ask(request("GET", "/v1/stream", token=gate.token(), headers=HANDSHAKE))
        assert answer.status == 101
        await raw.send(frame)
        data = await raw.ended()
        assert data[0] == 0x88
        assert int.from_bytes(data[2:4]) == code


async def test_a_ping_is_answered_also_between_the_pieces_of_a_message(gate: Running) -> None:
    async with await Raw.open(gate.port) as raw:
        await raw.ask(request("GET", "/v1/stream", token=gate.token(), headers=HANDSHAKE))
        command = b'{"type":"unsubscribe","id":1}'
        frames = client_frame(1, command[:5], fin=False) + client_frame(9, b"hello")
        for byte in frames + client_frame(0, command[5:]):
            await raw.send(bytes((byte,)))
        assert await raw.reader.readexactly(7) == b"\x8a\x05hello"
        head = await raw.reader.readexactly(2)
        assert json.loads(await raw.reader.readexactly(head[1]))["code"] == "not_found"


# -- handshake, tokens, origin -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 426),
        (HANDSHAKE[:1], 426),
        (("Connection: keep-alive, Upgrade", "Upgrade: h2c", *HANDSHAKE[2:]), 426),
        ((*HANDSHAKE[:2], "Sec-WebSocket-Version: 12", HANDSHAKE[3]), 426),
        (HANDSHAKE[:3], 400),
        ((*HANDSHAKE[:3], "Sec-WebSocket-Key: AAAA"), 400),
        ((*HANDSHAKE[:3], "Sec-WebSocket-Key: not base64!!!!!!!!!!!!"), 400),
        ((*HANDSHAKE, HANDSHAKE[3]), 400),
        ((*HANDSHAKE, "Content-Length: 3"), 400),
        (("connection: keep-alive, UPGRADE", "upgrade: WebSocket", *HANDSHAKE[2:]), 101),
    ],
)
async def test_a_handshake_is_read_strictly(gate: Running, headers: tuple[str, ...], status: int) -> None:
    async with await Raw.open(gate.port) as raw:
        data = request("GET", "/v1/stream", token=gate.token(), headers=headers)
        answer = await raw.ask(data + (b"abc" if status == 400 and "Content-Length: 3" in headers else b""))
        assert answer.status == status
        if status == 426:
            assert answer.headers["upgrade"] == "websocket"
            assert answer.code == "upgrade_required"
        if status == 101:
            # The key of the RFC's algorithm for sixteen zero bytes.
            assert answer.headers["sec-websocket-accept"] == "ICX+Yqv66kxgM0FcWaLWlFLwTAI="
            assert answer.headers["connection"] == "Upgrade"
            assert "sec-websocket-extensions" not in answer.headers


async def test_frames_that_come_with_the_handshake_count(gate: Running) -> None:
    async with await Raw.open(gate.port) as raw:
        data = request("GET", "/v1/stream", token=gate.token(), headers=HANDSHAKE)
        answer = await raw.ask(data + client_frame(9, b"early"))
        assert answer.status == 101
        assert await raw.reader.readexactly(7) == b"\x8a\x05early"


async def test_a_token_is_needed_and_may_stand_in_the_query(gate: Running) -> None:
    token = gate.token()
    for headers, status in (({}, 401), ({"Authorization": "Bearer x.y.z"}, 401)):
        with pytest.raises(WSServerHandshakeError) as refused:
            await gate.session.ws_connect(gate.url + "/v1/stream", headers=headers)
        assert refused.value.status == status
    with pytest.raises(WSServerHandshakeError) as refused:
        await gate.session.ws_connect(f"{gate.url}/v1/stream?access_token={await expired_token(gate)}")
    assert refused.value.status == 401
    async with gate.session.ws_connect(f"{gate.url}/v1/stream?access_token={token}") as ws:
        assert ws._response.headers["Cache-Control"] == "no-store"
        await Socket(ws).follow(1, ">")
    # On streams only.
    assert (await gate.get(f"/v1/latest?access_token={token}", token="")).status == 401
    assert token not in gate.logged()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:1", "x"])
async def test_a_page_of_another_site_may_not_connect(gate: Running, origin: str) -> None:
    async with connect(gate, headers={"Origin": origin}) as socket:
        assert (await socket.end()).code == 4403


async def test_our_own_pages_and_allowed_ones_may_connect(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", CORS_ORIGINS="https://app.example.com") as gate:
        for origin in (gate.url, "https://app.example.com"):
            async with connect(gate, headers={"Origin": origin}) as socket:
                await socket.follow(1, ">")


async def test_a_token_without_a_scope_for_readings_is_closed(gate: Running) -> None:
    async with connect(gate, gate.token(["devices:read"])) as socket:
        assert (await socket.end()).code == 4403


async def test_an_expired_token_ends_the_stream_within_a_second(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = gate.token()
    expires = jwt.decode(token, options={"verify_signature": False})["exp"]
    took: list[float] = []
    # Who is starved is late: the best of some tells.
    for _ in range(3):
        async with connect(gate, token) as socket:
            await socket.follow(1, ">")
            position = (await gate.write("a", reading(1))).json["position"]
            with monkeypatch.context() as patch:
                patch.setattr(gate.gate.live.streams, "_clock", lambda: expires)
                started = time.monotonic()
                ended = await socket.end()
                took.append(time.monotonic() - started)
            assert (ended.code, ended.reason) == (4401, position)
    assert min(took) < 1.0


async def test_a_revoked_token_ends_the_stream_within_five_seconds(gate: Running) -> None:
    client = await create_client(gate)
    token = (await log_in(gate, client)).json["access_token"]
    async with connect(gate, token) as socket, connect(gate) as other:
        await socket.follow(1, ">")
        await other.follow(1, ">")
        started = time.monotonic()
        assert (await gate.call("DELETE", f"/v1/clients/{client['id']}")).status == 204
        assert (await socket.end()).code == 4401
        assert time.monotonic() - started < 5
        await gate.write("a", reading(1))
        assert (await other.hear())["value"] == 1


# -- life --------------------------------------------------------------------------------------


def loop_clock() -> Clock:
    """The loop's time, stopped; whole seconds can be added to it without rounding."""
    return Clock(float(math.ceil(asyncio.get_running_loop().time())))


async def test_a_silent_client_is_pinged_and_in_the_end_closed(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = loop_clock()
    monkeypatch.setattr(gate.gate.live.streams, "now", clock)
    async with await Raw.open(gate.port) as raw, asyncio.timeout(PATIENCE):
        await raw.ask(request("GET", "/v1/stream", token=gate.token(), headers=HANDSHAKE))
        for _ in range(2):
            clock.now += 25
            assert await raw.reader.readexactly(2) == b"\x89\x00"
        clock.now += 10
        assert (await raw.reader.readexactly(2))[0] == 0x88
        # It is given a while to answer that.
        clock.now += streams.GRACE
        await raw.ended()


async def test_who_answers_pings_stays(gate: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, live = loop_clock(), gate.gate.live
    monkeypatch.setattr(live.streams, "now", clock)
    async with connect(gate) as socket:
        await socket.follow(1, "a")
        (stream,) = live.streams._open
        assert isinstance(stream, WebSocket)
        # Positions come in between.
        heard = asyncio.create_task(socket.until("reading"))
        for _ in range(5):
            clock.now += 25
            await until(lambda: stream._heard == clock.now)
        await gate.write("a", reading(1))
        assert (await heard)[-1]["value"] == 1


async def test_a_client_that_goes_leaves_nothing_behind(gate: Running) -> None:
    live = gate.gate.live
    for _ in range(50):
        async with await Raw.open(gate.port) as raw:
            await raw.ask(request("GET", "/v1/stream", token=gate.token(), headers=HANDSHAKE))
            command = b'{"type":"subscribe","id":1,"match":[">"]}'
            await raw.send(client_frame(1, command))
            await raw.reader.readexactly(10)
    await until(lambda: len(live.streams) == 0 and live.hub.filters == 0)
    await until(lambda: not gate.gate.server._streams)
    assert live.recoveries.running == 0


async def test_the_metrics_tell_what_streams_do(gate: Running, socket: Socket) -> None:
    await socket.follow(1, ">")
    await gate.write("a", reading(1), reading(2))
    assert values([await socket.hear(), await socket.hear()]) == [1, 2]
    text = (await gate.get("/metrics")).body.decode()
    for line in (
        'tidegate_stream_followers{transport="websocket"} 1.0',
        'tidegate_stream_followers{transport="sse"} 0.0',
        "tidegate_stream_delivered_total 2.0",
        'tidegate_stream_dropped_total{policy="conflate"} 0.0',
        "tidegate_stream_queue_bytes 0.0",
        "tidegate_delivery_duration_seconds_count 1.0",
    ):
        assert line in text, line


async def test_what_an_ended_stream_has_not_taken_yet_counts_as_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "GRACE", 2 * PATIENCE)
    monkeypatch.setattr(streams, "SWEEP", 0.1)
    async with run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate, connect(gate) as socket:
        live = gate.gate.live
        await socket.follow(1, "a")
        await stalled(socket)
        await until_flooded(gate, lambda: dropped(gate, "disconnect") == 1)
        await until(lambda: live.streams.queued > 100_000)
        await go_on(socket)
        assert (await everything(socket))[1].code == 4408
        await until(lambda: live.streams.queued == 0)


# -- MessagePack, and clients nobody here wrote ------------------------------------------------


async def test_the_subprotocol_makes_all_frames_messagepack(gate: Running) -> None:
    headers = {"Authorization": f"Bearer {gate.token()}"}
    protocols = ("other", "tidegate.msgpack")
    async with gate.session.ws_connect(gate.url + "/v1/stream", headers=headers, protocols=protocols) as ws:
        assert ws.protocol == "tidegate.msgpack"

        async def hear() -> Any:
            async with asyncio.timeout(PATIENCE):
                message = await ws.receive()
            assert message.type is WSMsgType.BINARY, message
            return msgspec.msgpack.decode(message.data)

        async def say(**command: Any) -> None:
            await ws.send_bytes(msgspec.msgpack.encode(command))

        await gate.write("a", reading(1), reading("u", "u"))
        await say(type="subscribe", id="s", match=["a"], since="earliest", latest=True)
        kinds = [(await hear())["type"] for _ in range(4)]
        assert kinds == ["subscribed", "readings", "readings", "live"]
        await say(type="write", id=2, readings=[{"device": "a", "metric": "t", "value": True, "ts": 1000}])
        live, ack = await hear(), await hear()
        assert live == {
            "type": "reading",
            "device": "a",
            "metric": "t",
            "ts": "1970-01-01T00:00:01Z",
            "value": True,
            "position": ack["position"],
        }
        assert (ack["type"], ack["accepted"]) == ("ack", 1)
        await ws.send_str("{}")
        assert (await hear())["code"] == "malformed"
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert ws.close_code == 4400


async def test_the_library_websockets_follows_and_writes(gate: Running) -> None:
    url = gate.url.replace("http", "ws") + "/v1/stream"
    headers = {"Authorization": f"Bearer {gate.token()}"}
    async with websockets.connect(url, additional_headers=headers, ssl=client_tls()) as ws:
        await ws.send(json.dumps({"type": "subscribe", "id": 1, "match": [">"]}))
        await ws.send(
            json.dumps({"type": "write", "id": 2, "readings": [{"device": "a", "metric": "t", "value": 1}]})
        )
        async with asyncio.timeout(PATIENCE):
            kinds = [json.loads(await ws.recv())["type"] for _ in range(4)]
            await (await ws.ping())
        assert kinds == ["subscribed", "live", "reading", "ack"]
        await ws.send("{")
        async with asyncio.timeout(PATIENCE):
            await ws.wait_closed()
        assert ws.close_code == 4400
        assert ws.close_reason


async def test_the_library_picows_follows(gate: Running) -> None:
    heard: list[Any] = []

    class Listener(picows.WSListener):
        def on_ws_connected(self, transport: Any) -> None:
            command = json.dumps({"type": "subscribe", "id": 1, "match": [">"]}).encode()
            transport.send(picows.WSMsgType.TEXT, command)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            heard.append(json.loads(frame.get_payload_as_bytes()))

    url = gate.url.replace("http", "ws") + "/v1/stream"
    headers = {"Authorization": f"Bearer {gate.token()}"}
    transport, _ = await picows.ws_connect(Listener, url, extra_headers=headers, ssl_context=client_tls())
    await until(lambda: len(heard) == 2)
    await gate.write("a", *(reading(n) for n in range(100)))
    await until(lambda: len(heard) == 102)
    assert values(heard) == list(range(100))
    transport.disconnect()
    await transport.wait_disconnected()


# -- compression -------------------------------------------------------------------------------


@pytest.fixture
async def deflating(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gate(tmp_path / "data", STREAM_DEFLATE="1") as gate:
        yield gate


@pytest.mark.parametrize("packed", [False, True], ids=["JSON", "MessagePack"])
async def test_who_offers_compression_gets_it_where_it_is_on(deflating: Running, packed: bool) -> None:
    gate = deflating
    url = gate.url.replace("http", "ws") + "/v1/stream?time=us"
    protocols = [websockets.Subprotocol("tidegate.msgpack")] if packed else None
    encode: Any = msgspec.msgpack.encode if packed else lambda content: json.dumps(content)
    decode: Any = msgspec.msgpack.decode if packed else json.loads
    headers = {"Authorization": f"Bearer {gate.token()}"}
    async with (
        websockets.connect(url, additional_headers=headers, subprotocols=protocols, ssl=client_tls()) as ws,
        websockets.connect(
            url, additional_headers=headers, subprotocols=protocols, ssl=client_tls(), compression=None
        ) as plain,
    ):
        assert [extension.name for extension in ws.protocol.extensions] == ["permessage-deflate"]
        assert plain.protocol.extensions == []
        texts = ["x" * 1000, "short", "y" * 1000]
        await gate.write("a", *(reading(text) for text in texts))
        for socket in (ws, plain):
            await socket.send(encode({"type": "subscribe", "id": 1, "match": [">"], "since": "earliest"}))
            heard: list[dict[str, Any]] = []
            async with asyncio.timeout(PATIENCE):
                while len(values(heard)) < 3:
                    heard.append(decode(await socket.recv()))
            assert values(heard) == texts
        await gate.write("a", *(reading(text) for text in texts))
        for socket in (ws, plain):
            heard = []
            async with asyncio.timeout(PATIENCE):
                while len(values(heard)) < 3:
                    heard.append(decode(await socket.recv()))
            assert values(heard) == texts


async def test_a_compressed_frame_is_one_for_all(deflating: Running) -> None:
    """The bytes are made once for all who follow in the same format, and they are fewer."""
    gate = deflating
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with await Raw.open(gate.port) as one, await Raw.open(gate.port) as two:
        heads = (*HANDSHAKE, *(f"{name}: {value}" for name, value in headers.items()))
        for raw in (one, two):
            answer = await raw.ask(request("GET", "/v1/stream", token=gate.token(), headers=heads))
            assert answer.headers["sec-websocket-extensions"].startswith("permessage-deflate; server_no")
            await raw.send(client_frame(1, b'{"type":"subscribe","id":1,"match":[">"]}'))
        await until(lambda: sum(len(g.followers) for g in gate.gate.live.hub._groups.values()) == 2)
        written: list[int] = []
        for group in gate.gate.live.hub._groups.values():
            for follower in group.followers:
                write = follower._sink.write
                follower._sink.write = lambda data, write=write: (written.append(id(data)), write(data))  # type: ignore
        await gate.write("a", reading("z" * 1000))
        assert len(written) == 2
        assert len(set(written)) == 1
        for raw in (one, two):
            while (frame := await _raw_frame(raw))[0] != 0xC1:
                pass
            assert len(frame[1]) < 300


async def _raw_frame(raw: Raw) -> tuple[int, bytes]:
    first, size = await raw.reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await raw.reader.readexactly(2))
    return first, await raw.reader.readexactly(size)


async def test_a_bomb_is_refused_and_nobody_is_harmed(deflating: Running) -> None:
    async with connect(deflating) as other:
        await other.follow(1, ">")
        headers = {"Authorization": f"Bearer {deflating.token()}"}
        url = deflating.url.replace("http", "ws") + "/v1/stream"
        async with websockets.connect(url, additional_headers=headers, ssl=client_tls()) as ws:
            await ws.send('{"type":"write","id":1,"readings":"' + "0" * 5_000_000 + '"}')
            async with asyncio.timeout(PATIENCE):
                await ws.wait_closed()
            assert ws.close_code == 1009
        await deflating.write("a", reading(1))
        assert (await other.hear())["value"] == 1
