"""What was admitted is known again by all that the dispatch looks at, and by nothing else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import app
from server.heeded import HEEDED, Heeded, NotHeeded
from tests.handlers.wire import create_client, log_in
from tests.raw import request, until
from tests.running import Running, run_gate
from tests.server.lanes import Client, ask, both_lanes, clocked_gate, figure, same_answers, statuses
from tests.servers.programs import free_port

Gates = tuple[Running, Running]

DEVICE = "demo.a"
LATEST = f"/v1/devices/{DEVICE}/latest"
READINGS = f"/v1/devices/{DEVICE}/readings"
READING = b'{"metric": "t", "value": 1, "ts": 1000}'
HITS = 'tidegate_cache_hits_total{cache="admission"}'
EVICTIONS = 'tidegate_cache_evictions_total{cache="admission"}'
ENTRIES = 'tidegate_cache_entries{cache="admission"}'

_numbers = count()


@pytest.fixture
async def fast(tmp_path: Path) -> AsyncIterator[Running]:
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        yield gate


def get(token: str, *lines: str, target: str = LATEST) -> bytes:
    """A head that no other request has."""
    return request("GET", target, token=token, headers=(*lines, f"X-Trace: {next(_numbers)}"))


def post(token: str, body: bytes, *lines: str) -> bytes:
    return request("POST", READINGS, body, token=token, headers=(*lines, f"X-Trace: {next(_numbers)}"))


async def admitted(gate: Running, token: str, *lines: str) -> None:
    """Have the gate know requests for the latest values with these lines."""
    before = await figure(gate, HITS)
    assert await ask(gate, *(get(token, *lines) for _ in range(3))) == [200] * 3
    assert await figure(gate, HITS) == before + 1


# -- what is known -----------------------------------------------------------------------------


async def test_heads_that_differ_in_what_nobody_heeds_are_admitted_once(fast: Running) -> None:
    token = fast.token()
    heads = [get(token, f"X-Request-ID: r-{number}", f"User-Agent: {number}") for number in range(20)]
    client = Client(fast)
    await client.send(*heads)
    assert statuses(client) == [200] * 20
    assert await figure(fast, HITS) == 18
    assert await figure(fast, ENTRIES) == 1
    # Each has its own id all the same.
    ids = re.findall(rb"\r\nX-Request-ID: (\S+)", client.transport.written)
    assert ids == [b"r-%d" % number for number in range(20)]


async def test_writes_of_any_length_are_admitted_once_and_read_each(fast: Running) -> None:
    token = fast.token()
    bodies = [b'{"metric": "t", "value": %d, "ts": %d}' % (10**n, 5000 + n) for n in range(8)]
    assert await ask(fast, *(post(token, body) for body in bodies)) == [200] * 8
    assert await figure(fast, ENTRIES) == 1
    assert await figure(fast, HITS) == 6
    items = (await fast.get(READINGS + "?from=5000&to=6000&time=ms")).json["items"]
    assert {item["ts"]: item["value"] for item in items} == {5000 + n: 10**n for n in range(8)}


async def test_what_comes_once_never_enters(fast: Running) -> None:
    token = fast.token()
    await ask(fast, *(get(token, target=f"{LATEST}?n={number}") for number in range(50)))
    assert await figure(fast, ENTRIES) == 0


async def test_a_head_of_more_than_2_kib_is_not_remembered(fast: Running) -> None:
    token = fast.token()
    assert await ask(fast, *(get(token, "X-Pad: " + "x" * 2048) for _ in range(4))) == [200] * 4
    assert await figure(fast, ENTRIES) == 0


async def test_what_was_admitted_becomes_known_by_its_head_as_well(fast: Running) -> None:
    token = fast.token()
    await admitted(fast, token)
    head = get(token, "X-Request-ID: mine")
    client = Client(fast)
    await client.send(head, head, head)
    assert await figure(fast, 'tidegate_cache_hits_total{cache="head"}') == 1
    assert client.transport.written.count(b"X-Request-ID: mine\r\n") == 3


# -- by all that is heeded ---------------------------------------------------------------------

# Per heeded field values of which each is judged in another way.
VALUES = {
    "Accept": ("application/json", "application/msgpack", "image/png", "text/csv"),
    "Authorization": ("", "Bearer x", "Basic x"),
    "Content-Encoding": ("gzip", "identity", "x"),
    "Content-Type": ("application/json", "application/msgpack", "image/png"),
    "Expect": ("100-continue", "x"),
    "Idempotency-Key": ("one", "two", "\xe9"),
    "If-None-Match": ("*", 'W/"x"'),
    "Origin": ("https://a.example", "https://b.example"),
    "Prefer": ("handling=strict", "respond-async", "handling=lenient"),
    "Transfer-Encoding": ("chunked", "x"),
    "X-Forwarded-For": ("9.9.9.9", "8.8.8.8"),
}
READS = [b'{"metric": "t", "value": 1, "ts": 1000}', b'[{"metric": "t", "value": 2, "ts": 1000}, 7]']


def test_each_heeded_field_is_tried() -> None:
    assert VALUES.keys() == HEEDED


@pytest.fixture
async def gates(tmp_path: Path) -> AsyncIterator[Gates]:
    async with both_lanes(tmp_path, CORS_ORIGINS="https://a.example") as both:
        for gate in both:
            await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        yield both


@pytest.mark.parametrize("name", sorted(HEEDED))
async def test_a_heeded_field_that_differs_comes_or_goes_makes_another_request(
    gates: Gates, name: str
) -> None:
    token = gates[0].token()
    sent = [[], *([f"{name}: {value}"] for value in VALUES[name])]
    sent += [
        [f"{name}: {VALUES[name][0]}", f"{spelled}: {VALUES[name][1]}"] for spelled in (name, name.lower())
    ]
    for before in sent:
        for lines in sent:
            # A connection each: some of them end it.
            await same_answers(gates, [*([get(token, *before)] for _ in range(3)), [get(token, *lines)]])
            writes = [[post(token, READS[0], *given)] for given in (before, before, before, lines)]
            await same_answers(gates, writes)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "DELETE"])
async def test_another_method_makes_another_request(gates: Gates, method: str) -> None:
    token = gates[0].token()
    other = [request(method, LATEST, token=token, headers=(f"X-Trace: {next(_numbers)}",)) for _ in range(3)]
    await same_answers(gates, [[get(token)] for _ in range(3)] + [other] + [[get(token)]])


LINES = st.lists(
    st.sampled_from(
        [f"{name}: {value}" for name in VALUES if name != "Transfer-Encoding" for value in VALUES[name]]
    ),
    max_size=2,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_any_mixture_of_requests_gets_the_answers_of_the_common_lane(
    gates: Gates, data: st.DataObject
) -> None:
    tokens = [gates[0].token(), gates[0].token(("readings:read",)), gates[0].token(devices=("other.>",)), ""]
    kinds = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(("GET", "HEAD", "POST", "DELETE")),
                st.sampled_from(
                    (LATEST, READINGS, LATEST + "?time=us", "/v1/devices/demo.b/latest", "/livez")
                ),
                st.sampled_from(tokens),
                LINES,
                st.sampled_from([None, b"", *READS]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    order = data.draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=12))
    pieces = []
    for method, target, token, lines, body in order:
        trace = f"X-Trace: {next(_numbers)}"
        pieces.append([request(method, target, body, token=token, headers=(*lines, trace))])
    await same_answers(gates, pieces)


async def test_a_second_token_is_refused_where_one_was_admitted(fast: Running) -> None:
    token = fast.token()
    await admitted(fast, token)
    for name in ("Authorization", "authorization"):
        assert await ask(fast, get(token, f"{name}: Bearer {token}")) == [401]


async def test_a_body_is_bounded_and_must_be_announced_where_one_was_admitted(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", MAX_BODY="1024") as gate:
        token = gate.token()
        assert await ask(gate, *(post(token, READING) for _ in range(4))) == [200] * 4
        assert await figure(gate, HITS) == 2
        assert await ask(gate, post(token, READING + b" " * 1024)) == [413]
        bare = request("POST", READINGS, token=token, headers=("X-Trace: none",))
        assert b"Content-Length" not in bare
        assert await ask(gate, bare) == [411]
        assert await ask(gate, post(token, READING)) == [200]


async def test_a_handler_cannot_look_at_a_field_that_is_not_heeded() -> None:
    headers = Heeded({"Cookie": "x"})  # type: ignore[arg-type]
    with pytest.raises(NotHeeded):
        headers.get("Cookie", "")
    with pytest.raises(NotHeeded):
        headers.getall("Cookie", [])
    with pytest.raises(NotHeeded):
        assert "Cookie" in headers


# -- what is asked at every use ----------------------------------------------------------------


async def test_an_expired_token_is_refused_where_it_was_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clocked_gate(tmp_path, monkeypatch) as (gate, clock):
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        token = gate.token(ttl=100)
        await admitted(gate, token)
        clock.offset += 50
        assert await ask(gate, get(token)) == [200]
        clock.offset += 60
        assert await ask(gate, get(token), get(token), get(token)) == [401] * 3


async def test_the_token_of_a_removed_client_is_refused_where_it_was_admitted(fast: Running) -> None:
    client = await create_client(fast)
    token = (await log_in(fast, client)).json["access_token"]
    other = fast.token()
    await admitted(fast, token)
    await admitted(fast, other)
    await fast.call("DELETE", f"/v1/clients/{client['id']}")
    assert await ask(fast, *(get(token) for _ in range(3))) == [401] * 3
    # Others are looked at once more, and known again.
    hits = await figure(fast, HITS)
    assert await ask(fast, *(get(other) for _ in range(3))) == [200] * 3
    assert await figure(fast, HITS) == hits + 2


async def test_a_token_of_a_key_that_is_no_more_is_refused_where_it_was_admitted(fast: Running) -> None:
    token = fast.token()
    await admitted(fast, token)
    (fast.settings.data / "jwt.secret").unlink()
    fast.gate.reload.set()
    await until(lambda: "the keys were reloaded" in fast.logged())
    assert await ask(fast, get(token)) == [401]


async def test_limits_count_and_refuse_what_was_admitted_before(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", RATE_LIMIT="60") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        token = gate.token(subject="busy")
        client = Client(gate)
        await client.send(*(get(token) for _ in range(9)))
        assert statuses(client) == [200] * 6 + [429] * 3
        left = re.findall(rb'RateLimit: "requests";r=(\d+);', client.transport.written)
        assert left == [b"5", b"4", b"3", b"2", b"1", b"0", b"0", b"0", b"0"]
        assert await figure(gate, HITS) == 7
        # Time gives it back: nothing of the refusal was remembered.
        async with asyncio.timeout(5):
            while statuses(client)[-1] == 429:
                await asyncio.sleep(0.05)
                await client.send(get(token))


async def test_refusals_are_judged_anew_each_time(fast: Running) -> None:
    token = fast.token(("readings:read",))
    for lines in (("Accept: image/png",), ("Authorization: Bearer x",)):
        await ask(fast, *(get(token, *lines) for _ in range(4)))
    await ask(fast, *(post(token, READING) for _ in range(4)))
    await ask(fast, *(get(token, target="/v1/nowhere") for _ in range(4)))
    assert await figure(fast, ENTRIES) == 0
    assert await figure(fast, HITS) == 0


async def test_answers_are_made_anew_for_what_was_admitted(fast: Running) -> None:
    token = fast.token()
    await admitted(fast, token)
    for value in range(3):
        await fast.write(DEVICE, {"metric": "t", "value": value, "ts": 2000 + value})
        client = Client(fast)
        await client.send(get(token))
        answer = client.transport.written.rpartition(b"\r\n\r\n")[2]
        assert json.loads(answer)["metrics"]["t"]["value"] == value


async def test_the_access_log_has_the_address_and_id_of_each_request(tmp_path: Path) -> None:
    options = {"FAST_LANE": "1", "ACCESS_LOG": "1", "TRUSTED_PROXIES": "127.0.0.0/8"}
    async with run_gate(tmp_path / "data", **options) as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        token = gate.token()
        addresses = [f"9.9.9.{number % 2}" for number in range(8)]
        for number, address in enumerate(addresses):
            lines = (f"X-Forwarded-For: {address}", f"X-Request-ID: look-{number}")
            await ask(gate, get(token, *lines))
        assert await figure(gate, HITS) == 4
        await until(lambda: gate.logged().count('"look-') == 8)
        logged = [json.loads(line) for line in gate.logged().splitlines() if '"look-' in line]
    assert {line["request_id"]: line["address"] for line in logged} == {
        f"look-{number}": address for number, address in enumerate(addresses)
    }


# -- bounds ------------------------------------------------------------------------------------


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ADMISSIONS", 10)
    async with run_gate(tmp_path / "data", FAST_LANE="1") as gate:
        await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        token = gate.token()
        for number in range(50):
            target = f"{LATEST}?n={number}"
            assert await ask(gate, *(get(token, target=target) for _ in range(3))) == [200] * 3
            assert await figure(gate, ENTRIES) == min(number + 1, 10)
            assert len(gate.gate.admissions._seen) <= 10
        assert await figure(gate, EVICTIONS) == 40
        assert await figure(gate, HITS) == 50
        for number in range(1200):
            gate.gate.admissions._shape((b"Host", b"X-%d" % number))
            assert len(gate.gate.admissions._shapes) <= 1024


# -- the listener of operations ----------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 4])
async def test_what_only_the_port_of_operations_answers_is_not_known_to_the_other(
    tmp_path: Path, times: int
) -> None:
    async with run_gate(tmp_path / "data", FAST_LANE="1", METRICS_PORT=str(free_port())) as gate:
        head = request("GET", "/metrics")
        operations = Client(gate, operations=True)
        await operations.send(*[head] * times)
        assert statuses(operations) == [200] * times
        assert await ask(gate, head, head, head) == [404] * 3
