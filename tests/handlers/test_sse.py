"""`GET /v1/events`: every sentence that API.md has on server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import jwt
import pytest
from httpx_sse import aconnect_sse

from handlers.live import streams
from tests.handlers.test_websocket import dropped, until_flooded
from tests.handlers.wire import create_client, log_in, problem, stopped_intervals
from tests.raw import Raw, request, until
from tests.running import PATIENCE, Caller, Running, client_tls, run_gate


class Event:
    """One event. `id`: the last event id behind it."""

    def __init__(self, fields: dict[str, str], id: str) -> None:
        self.name = fields.get("event", "message")
        self.own_id = fields.get("id")
        self.id = id
        self.data: Any = json.loads(fields["data"]) if "data" in fields else None
        self.retry = int(fields["retry"]) if "retry" in fields else None
        self.comment = fields.get("")


class Events:
    """A stream of events, read as the HTML standard says."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._id = ""

    async def next(self, within: float = PATIENCE) -> Event:
        """The next block, also a comment; EOFError at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(within):
            while line := (await self.response.content.readuntil(b"\n")).decode():
                line = line.rstrip("\n")
                if not line and fields:
                    self._id = fields.get("id", self._id)
                    return Event(fields, self._id)
                name, _, value = line.partition(":")
                if line:
                    fields[name] = value.removeprefix(" ")
        raise EOFError

    async def verdict(self) -> Event:
        """The events up to the first with data, which must be the verdict."""
        event = await self.next()
        assert event.retry is not None
        assert event.name == "recovery"
        assert event.data["position"] == event.own_id
        return event

    async def values(self, count: int) -> list[Any]:
        """The values of so many readings, nothing else between them."""
        found = []
        for _ in range(count):
            event = await self.next()
            assert event.name == "reading"
            assert event.data.get("position") == event.own_id
            found.append(event.data["value"])
        return found

    async def ended(self) -> list[Event]:
        """What comes until the clean end."""
        events = []
        try:
            while True:
                events.append(await self.next())
        except EOFError:
            return events


@asynccontextmanager
async def listen(
    gate: Caller, query: str = "match=>", token: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Events]:
    """A stream."""
    bearer = {"Authorization": f"Bearer {token or gate.token()}", "Accept": "text/event-stream"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with gate.session.get(
        f"{gate.url}/v1/events?{query}", headers=bearer | dict(headers or {}), timeout=timeout
    ) as response:
        assert response.status == 200, await response.text()
        yield Events(response)


def reading(value: Any, metric: str = "t", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, **more}


async def test_the_verdict_comes_first_then_readings_with_their_positions(gate: Running) -> None:
    here = (await gate.write("a.b", reading(0))).json["position"]
    async with listen(gate, "match=a.>&metric=t") as events:
        headers = events.response.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        verdict = await events.verdict()
        assert verdict.data == {"recovered": None, "position": here}
        reply = await gate.write("a.b", reading(1, ts=1000), reading(2, "u"))
        event = await events.next()
        epoch, _, offset = reply.json["position"].rpartition("-")
        position = f"{epoch}-{int(offset) - 1}"
        assert (event.name, event.own_id) == ("reading", position)
        assert event.data == {
            "device": "a.b",
            "metric": "t",
            "ts": "1970-01-01T00:00:01Z",
            "value": 1,
            "position": position,
        }


async def test_retry_is_two_seconds_with_jitter(gate: Running) -> None:
    times = []
    for _ in range(8):
        async with listen(gate) as events:
            times.append((await events.next()).retry)
    assert all(time is not None and 1500 <= time <= 2500 for time in times)
    assert len(set(times)) > 1


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_stream_resumes_where_the_client_was(gate: Running, by_header: bool) -> None:
    since = (await gate.write("a", reading(1))).json["position"]
    await gate.write("a", *(reading(n) for n in range(2, 900)))
    query = "match=a" if by_header else f"match=a&last_event_id={since}"
    async with listen(gate, query, headers={"Last-Event-ID": since} if by_header else {}) as events:
        verdict = await events.verdict()
        assert verdict.data == {"recovered": True, "position": since}
        await gate.write("a", reading(900))
        assert await events.values(899) == list(range(2, 901))


async def test_the_header_wins_and_earliest_is_a_place(gate: Running) -> None:
    last = (await gate.write("a", reading(1), reading(2))).json["position"]
    async with listen(gate, f"last_event_id={last}", headers={"Last-Event-ID": "earliest"}) as events:
        assert (await events.verdict()).data["recovered"] is True
        assert await events.values(2) == [1, 2]
    async with listen(gate, "last_event_id=earliest") as events:
        await events.verdict()
        assert await events.values(2) == [1, 2]


@pytest.mark.parametrize(
    ("id", "reason"),
    [("old-1", "unknown_epoch"), ("nonsense!", "unknown_epoch"), ("{epoch}-99", "ahead")],
)
async def test_what_cannot_be_recovered_is_said(gate: Running, id: str, reason: str) -> None:
    here = (await gate.write("a", reading(1))).json["position"]
    id = id.format(epoch=here.partition("-")[0])
    async with listen(gate, headers={"Last-Event-ID": id}) as events:
        verdict = await events.verdict()
        assert verdict.data == {"recovered": False, "reason": reason, "position": here}
        await gate.write("a", reading(2))
        assert await events.values(1) == [2]


async def test_latest_brings_the_newest_values_without_a_position(gate: Running) -> None:
    await gate.write("a", reading(1), reading(2))
    async with listen(gate, "match=a&latest=true") as events:
        verdict = await events.verdict()
        event = await events.next()
        assert (event.name, event.own_id, event.id) == ("reading", None, verdict.own_id)
        assert event.data["value"] == 2
        assert event.data["latest"] is True
        assert "position" not in event.data
        await gate.write("a", reading(3))
        assert await events.values(1) == [3]


async def test_min_interval_gives_the_newest_and_a_position_before_what_is_held(gate: Running) -> None:
    async with listen(gate, "match=a&min_interval=500ms") as events:
        await events.verdict()
        with stopped_intervals(gate):
            await gate.write("a", reading(1))
            for value in range(2, 6):
                before = await gate.write("a", reading(value))
            last = (await gate.write("a", reading("other", "u"))).json["position"]
            assert await events.values(1) == [1]
            other = await events.next()
        newest = await events.next()
        epoch, _, offset = before.json["position"].rpartition("-")
        assert last == f"{epoch}-{int(offset) + 1}"
        # The value 5 is held back; what it has replaced is not.
        assert (other.data["value"], other.own_id) == ("other", f"{epoch}-{int(offset) - 1}")
        assert (newest.data["value"], newest.own_id) == (5, f"{epoch}-{offset}")


async def test_a_conflating_follower_that_reconnects_gets_the_value_that_was_held_back(gate: Running) -> None:
    async with listen(gate, "match=a&min_interval=1h") as events:
        await events.verdict()
        await gate.write("a", reading(1))
        assert await events.values(1) == [1]
        await gate.write("a", reading(2))
        await gate.write("a", reading(0, "u"))
        event = await events.next()
        assert event.data["value"] == 0
    async with listen(gate, "match=a&metric=t&min_interval=1h", headers={"Last-Event-ID": event.id}) as again:
        await again.verdict()
        assert await again.values(1) == [2]


async def test_without_events_a_position_comes_or_a_comment(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "QUIET", 0.2)
    async with listen(gate, "match=rare") as events:
        await events.verdict()
        position = (await gate.write("a", reading(1))).json["position"]
        while (event := await events.next()).own_id != position:
            pass
        assert event.name == "position"
        assert event.data == {"position": position}
        assert (await events.next()).comment == "ping"


async def test_a_pattern_shows_only_what_is_granted_and_nothing_left_is_403(gate: Running) -> None:
    token = gate.token(devices=["a.b"])
    async with listen(gate, "", token) as events:
        await events.verdict()
        await gate.write("a.a", reading(1))
        await gate.write("a.b", reading(2))
        assert await events.values(1) == [2]
    problem(await gate.get("/v1/events?match=b.>", token=token), 403, "forbidden")
    problem(await gate.get("/v1/events", token=gate.token(devices=[])), 403, "forbidden")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("match=a..b", 400, "invalid_parameter"),
        ("metric=a%20b", 400, "invalid_parameter"),
        ("min_interval=5", 400, "invalid_parameter"),
        ("latest=maybe", 400, "invalid_parameter"),
        ("time=fast", 400, "invalid_parameter"),
        ("last_event_id=a&last_event_id=b", 400, "invalid_parameter"),
    ],
)
async def test_bad_parameters_are_refused(gate: Running, query: str, status: int, code: str) -> None:
    problem(await gate.get(f"/v1/events?{query}"), status, code)


async def test_a_token_may_stand_in_the_query_and_is_never_logged(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", ACCESS_LOG="1") as gate:
        token = gate.token()
        async with gate.session.get(f"{gate.url}/v1/events?match=>&access_token={token}") as response:
            assert response.status == 200
            await Events(response).verdict()
        problem(await gate.get("/v1/events", token=""), 401, "token_missing")
        problem(await gate.get("/v1/events?access_token=x.y.z", token=""), 401, "token_malformed")
        problem(await gate.get("/v1/events", token=gate.token(["readings:write"])), 403, "insufficient_scope")
        await until(lambda: gate.logged().count("/v1/events") == 4)
        assert token not in gate.logged()
        assert "access_token" not in gate.logged()


async def test_other_media_types_are_refused_and_head_has_the_head_alone(gate: Running) -> None:
    refused = await gate.get("/v1/events", headers={"Accept": "application/json"})
    problem(refused, 406, "not_acceptable")
    async with await Raw.open(gate.port) as raw:
        answer = await raw.ask(request("HEAD", "/v1/events", token=gate.token()), head=True)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        answer = await raw.ask(request("GET", "/livez"))
        assert answer.status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_ends_with_its_connection(gate: Running, version: str) -> None:
    async with await Raw.open(gate.port) as raw:
        await raw.send(request("GET", "/v1/events?match=a", token=gate.token(), version=version))
        head = (await raw.reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert "connection: close" in head
        assert "content-length" not in head
        assert "transfer-encoding" not in head
        await raw.reader.readuntil(b"event: recovery")
        # Nothing more is asked on this connection.
        await raw.send(request("GET", "/livez"))
        await gate.write("a", reading("still there"))
        await raw.reader.readuntil(b"still there")


async def test_an_expired_token_is_told_and_the_stream_ends(gate: Running) -> None:
    token = gate.token(ttl=6)
    async with listen(gate, token=token) as events:
        await events.verdict()
        position = (await gate.write("a", reading(1))).json["position"]
        last = (await events.ended())[-1]
        assert time.time() >= jwt.decode(token, options={"verify_signature": False})["exp"]
        assert (last.name, last.own_id) == ("expired", position)


async def test_a_revoked_token_ends_the_stream_within_five_seconds(gate: Running) -> None:
    client = await create_client(gate)
    token = (await log_in(gate, client)).json["access_token"]
    async with listen(gate, token=token) as events:
        await events.verdict()
        started = time.monotonic()
        await gate.call("DELETE", f"/v1/clients/{client['id']}")
        assert (await events.ended())[-1].name == "expired"
        assert time.monotonic() - started < 5


async def test_a_slow_reader_is_ended_and_can_resume(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", STREAM_QUEUE="256KiB") as gate:
        async with listen(gate, "match=a") as events:
            await events.verdict()
            transport: Any = events.response.connection.transport  # type: ignore[union-attr]
            transport.pause_reading()
            count = await until_flooded(gate, lambda: dropped(gate, "disconnect") == 1)
            transport.resume_reading()
            heard = await events.ended()
        assert [int(event.data["value"].split()[0]) for event in heard] == list(range(len(heard)))
        async with listen(gate, "match=a", headers={"Last-Event-ID": heard[-1].id}) as again:
            await again.verdict()
            values = await again.values(count - len(heard))
            assert [int(value.split()[0]) for value in values] == list(range(len(heard), count))


async def test_the_library_httpx_sse_follows_and_resumes(gate: Running) -> None:
    headers = {"Authorization": f"Bearer {gate.token()}"}
    url = gate.url + "/v1/events?match=a"

    async def hear(count: int, last: str = "") -> list[Any]:
        sent = headers | ({"Last-Event-ID": last} if last else {})
        found = []
        async with (
            httpx.AsyncClient(timeout=PATIENCE, verify=client_tls() or True) as client,
            aconnect_sse(client, "GET", url, headers=sent) as source,
        ):
            async for event in source.aiter_sse():
                found.append(event)
                if len(found) == 1 and not last:
                    await gate.write("a", *(reading(n) for n in range(5)))
                if len(found) == count:
                    return found
        raise AssertionError("the stream ended")

    first = await hear(4)
    assert [event.event for event in first] == ["recovery"] + ["reading"] * 3
    assert 1500 <= first[0].retry <= 2500
    rest = await hear(3, first[-1].id)
    assert rest[0].json()["recovered"] is True
    assert [event.json()["value"] for event in rest[1:]] == [3, 4]
