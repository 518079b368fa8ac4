import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from auth.grants import Grants
from handlers.exchange import Media
from handlers.ingest import Ingest, Intake
from handlers.problems import FAULTS_MAX, Fault, Problem
from storage.models import is_device, is_metric
from storage.patterns import parse_pattern
from tests.handlers.wire import FORM, JSON, MSGPACK, NDJSON, resolve
from tests.running import Running

ALL = Grants((parse_pattern(">"),))
SOME = Grants((parse_pattern("a.>"),))

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\0", "a.b", "t", "2024-01-01T00:00:00Z", "x" * 1025, 2**53, -(2**53) - 1])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
fields = st.sampled_from(["device", "metric", "value", "ts", "values", "extra", "~/", "\ud800"])
items = st.dictionaries(fields, anything | st.dictionaries(fields, scalars, max_size=3), max_size=5)
good = st.fixed_dictionaries({"device": st.just("a.b"), "metric": st.just("t"), "value": st.integers(0, 9)})
bodies = anything | items | st.lists(items | good | anything, max_size=5)


def taken(body: bytes, media: Media, grants: Grants = SOME) -> tuple[Intake | None, list[Fault]]:
    """What becomes of a body in both kinds of write; nothing but a Problem is raised."""
    ingest = Ingest()
    try:
        ingest.of_device("a.b", media, body)
    except Problem as problem:
        problem.response("id")
    try:
        intake = ingest.of_any(grants, media, body)
    except Problem as problem:
        problem.response("id")
        return None, problem.faults
    return intake, intake.faults


def check_readings(intake: Intake | None) -> None:
    for device, metric, ts, value in intake.readings if intake else ():
        assert is_device(device)
        assert SOME.allow(device)
        assert is_metric(metric)
        assert ts is None or ts >= 0
        msgspec.json.encode(value)
        assert msgspec.json.decode(msgspec.json.encode(value)) == value


def check_faults(content: Any, faults: list[Fault]) -> None:
    for fault in faults:
        if "?" not in fault.pointer:
            resolve(content, fault.pointer)
        assert fault.detail


@settings(deadline=None)
@given(bodies)
@example([{"device": "a.b", "values": {"\ud800": float("nan")}}])
@example([{"\ud800": 1, "value": float("nan")}])
@example([{"x` - at `$.metric": 1}])
def test_any_json_value_is_taken_or_blamed_at_a_place_that_exists(content: Any) -> None:
    intake, faults = taken(json.dumps(content).encode(), Media.JSON)
    check_readings(intake)
    check_faults(content, faults)


@settings(deadline=None)
@given(st.lists(items | good | anything, max_size=5))
def test_any_line_of_json_is_taken_or_blamed_by_its_number(content: list[Any]) -> None:
    lines = "\n".join(map(json.dumps, content))
    intake, faults = taken(lines.encode(), Media.NDJSON)
    check_readings(intake)
    check_faults(content, faults)


no_surrogates = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(0, 9) | st.binary(), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["device", "metric", "value", "values", "ts"]), inner, max_size=5)
    ),
)


@settings(deadline=None)
@given(no_surrogates)
def test_any_messagepack_value_is_taken_or_blamed_at_a_place_that_exists(content: Any) -> None:
    intake, faults = taken(msgspec.msgpack.encode(content), Media.MSGPACK)
    check_readings(intake)
    check_faults(content, faults)


@settings(deadline=None)
@given(st.binary(max_size=64), st.sampled_from([Media.JSON, Media.NDJSON, Media.MSGPACK]))
@example(b"[" * 100_000, Media.JSON)
@example(b"\x91" * 100_000, Media.MSGPACK)
@example(b"\x81" * 100_000, Media.MSGPACK)
@example(b"\xdd\xff\xff\xff\xff", Media.MSGPACK)
@example(b"\x81\x80\x01", Media.MSGPACK)
@example(b"\xd7\xff" + b"\xff" * 8, Media.MSGPACK)
def test_any_bytes_are_a_problem_at_worst(body: bytes, media: Media) -> None:
    taken(body, media)


@settings(deadline=None)
@given(st.lists(good, min_size=1, max_size=20))
def test_good_readings_are_all_taken_in_order_whatever_the_form(content: list[dict[str, Any]]) -> None:
    expected = [("a.b", "t", None, item["value"]) for item in content]
    for body, media in (
        (json.dumps(content).encode(), Media.JSON),
        (msgspec.msgpack.encode(content), Media.MSGPACK),
        (msgspec.json.Encoder().encode_lines(content), Media.NDJSON),
    ):
        intake, faults = taken(body, media)
        assert intake is not None
        assert not faults
        assert intake.readings == expected
        assert [intake.pointer(n) for n in range(len(content))] == [f"/{n}" for n in range(len(content))]


def test_a_flood_of_bad_items_is_listed_up_to_a_bound() -> None:
    values = {f" {n}": 1 for n in range(500)}
    intake = Ingest().of_device("a", Media.JSON, json.dumps({"values": {**values, "ok": 1}}).encode())
    assert (intake.rejected, len(intake.faults)) == (500, FAULTS_MAX)


# -- over HTTP -------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/v1/readings"),
    ("POST", "/v1/devices/a.b/readings"),
    ("PUT", "/v1/devices/a.b"),
    ("POST", "/v1/clients"),
    ("POST", "/v1/token"),
    ("POST", "/v1/token/revoke"),
]
TYPES = [JSON, MSGPACK, NDJSON, FORM, "text/plain", "nonsense", ""]
CODINGS = ["", "gzip", "deflate", "zstd", "br", "identity"]
contents = (
    st.binary(max_size=64)
    | bodies.map(lambda content: json.dumps(content).encode())
    | no_surrogates.map(msgspec.msgpack.encode)
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(ROUTES),
    body=contents,
    content_type=st.sampled_from(TYPES),
    coding=st.sampled_from(CODINGS),
)
async def test_no_body_in_any_form_ever_gives_a_5xx(
    gate: Running, route: tuple[str, str], body: bytes, content_type: str, coding: str
) -> None:
    headers = {"Content-Type": content_type}
    if coding:
        headers["Content-Encoding"] = coding
    reply = await gate.call(*route, data=body, headers=headers)
    assert reply.status < 500, reply
    if reply.status >= 400:
        assert reply.json


names = st.sampled_from(
    [
        "match",
        "metric",
        "fn",
        "every",
        "from",
        "to",
        "order",
        "limit",
        "cursor",
        "since",
        "time",
        "readings",
        "extra",
    ]
)
values = st.text(max_size=8) | st.sampled_from(
    ["1", "-1", "9" * 18, "1m", "avg", "desc", ">", "earliest", "gg", "zwE", "kgEB", "ks__________zwE", "us"]
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(
        [
            "/v1/readings",
            "/v1/devices/a/readings",
            "/v1/latest",
            "/v1/devices",
            "/v1/devices/a/latest",
            "/v1/clients",
            "/v1/devices/a",
            "/problems",
        ]
    ),
    query=st.lists(st.tuples(names, values), max_size=4),
    accept=st.sampled_from([JSON, MSGPACK, NDJSON, "text/csv", "*/*"]),
)
@example("/v1/devices/a/readings", [("cursor", "ks__________zwE")], JSON)
async def test_no_query_ever_gives_a_5xx(
    gate: Running, path: str, query: list[tuple[str, str]], accept: str
) -> None:
    if not gate.gate.engine.state().head:
        await gate.write("a", {"metric": "t", "value": 1})
    async with gate.session.get(
        gate.url + path,
        params=query,
        headers={"Authorization": f"Bearer {gate.token()}", "Accept": accept},
    ) as response:
        body = await response.read()
        assert response.status < 500, (response.status, body)
        if response.status == 400:
            assert json.loads(body)["code"] == "invalid_parameter"
            assert any(json.loads(body)["detail"].startswith(name + ": ") for name, _ in query)


@pytest.mark.parametrize("pieces", [1, 3, 8])
async def test_a_body_in_chunks_is_a_body(gate: Running, pieces: int) -> None:
    body = json.dumps([{"metric": "t", "value": n, "ts": n} for n in range(8)]).encode()

    async def chunks() -> Any:
        step = len(body) // pieces + 1
        for start in range(0, len(body), step):
            yield body[start : start + step]

    async with gate.session.post(
        gate.url + "/v1/devices/a/readings",
        data=chunks(),
        headers={"Authorization": f"Bearer {gate.token()}", "Content-Type": JSON},
    ) as response:
        assert (await response.json())["accepted"] == 8
