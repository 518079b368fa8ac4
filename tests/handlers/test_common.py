import re
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.wire import bearer, problem, raw
from tests.running import Running, run_gate

ORIGIN = "https://app.example.com"
READING = {"metric": "t", "value": 1, "ts": 1}
GETS = [
    "/livez",
    "/readyz",
    "/metrics",
    "/problems",
    "/problems/invalid",
    "/.well-known/jwks.json",
    "/v1/devices",
    "/v1/devices/a",
    "/v1/devices/a/latest",
    "/v1/devices/a/readings",
    "/v1/devices/a/readings?every=1m",
    "/v1/latest",
    "/v1/readings",
    "/v1/clients",
    "/v1/devices/none",
]


async def test_head_answers_like_get_without_a_body(gate: Running) -> None:
    await gate.write("a", READING)
    for path in GETS:
        get, head = await gate.get(path), await gate.call("HEAD", path)
        assert (head.status, head.body) == (get.status, b""), path
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        if path != "/metrics":
            assert abs(int(head.headers["Content-Length"]) - len(get.body)) <= 1


async def test_every_answer_has_date_request_id_and_nosniff(gate: Running) -> None:
    replies = [await gate.get(path) for path in [*GETS, "/nothing", "/v1/latest?limit=0"]]
    replies += [
        await gate.get("/v1/latest", token=""),
        await gate.write("a", READING),
        await gate.write("a", {}),
        await gate.call("DELETE", "/v1/devices/a"),
        await gate.call("OPTIONS", "/v1/latest"),
        await raw(gate, b"nonsense\r\n\r\n"),
        await raw(gate, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n"),
    ]
    ids = set()
    for reply in replies:
        assert parsedate_to_datetime(reply.headers["Date"]).tzinfo is not None
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        ids.add(reply.headers["X-Request-ID"])
    assert len(ids) == len(replies)


@pytest.mark.parametrize("given", ["abc", "a" * 128, "7f9c:1/2+3=4@x_-."])
async def test_a_sane_request_id_comes_back_and_is_the_instance_of_a_problem(
    gate: Running, given: str
) -> None:
    headers = {"X-Request-ID": given}
    assert (await gate.get("/livez", headers=headers)).headers["X-Request-ID"] == given
    document = problem(await gate.get("/v1/devices/none", headers=headers), 404, "not_found")
    assert document["instance"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "ä", '"x"', "<script>", "a,b"])
async def test_another_request_id_is_replaced_by_ours(gate: Running, given: str) -> None:
    id = (await gate.get("/livez", headers={"X-Request-ID": given})).headers["X-Request-ID"]
    assert id
    assert id != given


# -- OPTIONS and CORS ------------------------------------------------------------------------------

PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}


def cors(reply: Any) -> list[str]:
    return [name for name in reply.headers if name.lower().startswith("access-control-")]


async def test_options_tells_the_methods_without_a_token(gate: Running) -> None:
    reply = await gate.call("OPTIONS", "/v1/devices/a", token="")
    assert (reply.status, reply.body) == (204, b"")
    assert set(reply.headers["Allow"].split(", ")) == {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}
    problem(await gate.call("OPTIONS", "/nothing", token=""), 404, "not_found")
    assert (await raw(gate, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).status == 204


async def test_no_origin_is_allowed_by_default(gate: Running) -> None:
    for reply in (
        await gate.call("OPTIONS", "/v1/devices/a", token="", headers=PREFLIGHT),
        await gate.get("/v1/latest", headers={"Origin": ORIGIN}),
    ):
        assert reply.status < 300
        assert cors(reply) == []


async def test_the_origins_of_the_settings_are_allowed_and_no_others(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", CORS_ORIGINS=f"{ORIGIN},http://localhost:3000") as gate:
        reply = await gate.call("OPTIONS", "/v1/devices/a", token="", headers=PREFLIGHT)
        assert reply.status == 204
        assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "PUT" in reply.headers["Access-Control-Allow-Methods"]
        allowed = reply.headers["Access-Control-Allow-Headers"].lower()
        for name in ("authorization", "content-type", "prefer", "idempotency-key", "if-none-match"):
            assert name in allowed
        for path, status in (("/v1/latest", 200), ("/v1/devices/none", 404), ("/nothing", 404)):
            reply = await gate.get(path, headers={"Origin": ORIGIN})
            assert reply.status == status
            assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Link" in reply.headers["Access-Control-Expose-Headers"]
            assert "Origin" in reply.headers["Vary"]
        for origin in ("https://evil.example", ORIGIN + ".evil.example", "null"):
            for reply in (
                await gate.get("/v1/latest", headers={"Origin": origin}),
                await gate.call("OPTIONS", "/v1/latest", headers={**PREFLIGHT, "Origin": origin}),
            ):
                assert cors(reply) == []
                assert "Origin" in reply.headers["Vary"]


# -- limits ----------------------------------------------------------------------------------------

STATE = re.compile(r'"(\w+)";r=(\d+);t=(\d+)')


async def test_without_a_limit_there_are_no_ratelimit_headers(gate: Running) -> None:
    reply = await gate.get("/v1/latest")
    assert "RateLimit" not in reply.headers
    assert "RateLimit-Policy" not in reply.headers


async def test_requests_are_limited_per_principal_with_a_burst_of_a_tenth(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", RATE_LIMIT="60") as gate:
        left = []
        while (reply := await gate.get("/v1/latest")).status == 200:
            assert reply.headers["RateLimit-Policy"] == '"requests";q=60;w=60'
            state = STATE.fullmatch(reply.headers["RateLimit"])
            assert state is not None
            left.append(int(state[2]))
            assert len(left) < 20
        assert left[:6] == [5, 4, 3, 2, 1, 0]
        problem(reply, 429, "rate_limited")
        assert reply.headers["Retry-After"] == "1"
        assert (await gate.get("/v1/latest", token=gate.token(subject="other"))).status == 200
        # Another token of the same principal is under the same limit; who has none is not limited.
        problem(await gate.get("/v1/latest", token=gate.token(ttl=60)), 429, "rate_limited")
        for _ in range(20):
            assert (await gate.get("/livez", token="")).status == 200


async def test_readings_are_limited_and_a_large_batch_puts_the_bucket_in_debt(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", POINT_LIMIT="600") as gate:
        batch = [{"metric": "t", "value": n, "ts": n} for n in range(100)]
        reply = await gate.write("a", *batch)
        assert (reply.status, reply.json["accepted"]) == (200, 100)
        assert reply.headers["RateLimit-Policy"] == '"points";q=600;w=60'
        state = STATE.fullmatch(reply.headers["RateLimit"])
        assert state is not None
        assert (state[1], state[2]) == ("points", "0")
        assert 8 <= int(state[3]) <= 10
        for content in ([READING], batch):
            reply = await gate.write("b", *content)
            problem(reply, 429, "rate_limited")
            assert 1 <= int(reply.headers["Retry-After"]) <= 10
        problem(await gate.get("/v1/devices/b"), 404, "not_found")
        assert (await gate.write("c", READING, token=gate.token(subject="other"))).status == 200


async def test_a_batch_of_one_burst_after_another_is_limited(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", POINT_LIMIT="600") as gate:
        burst = [{"metric": "t", "value": n, "ts": n} for n in range(60)]
        assert (await gate.write("a", *burst)).status == 200
        problem(await gate.write("a", *burst), 429, "rate_limited")


async def test_both_limits_are_told_together(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", RATE_LIMIT="600", POINT_LIMIT="6000") as gate:
        reply = await gate.write("a", READING)
        assert reply.headers["RateLimit-Policy"] == '"requests";q=600;w=60, "points";q=6000;w=60'
        assert [m[1] for m in map(STATE.fullmatch, reply.headers["RateLimit"].split(", ")) if m] == [
            "requests",
            "points",
        ]


async def test_http_1_0_is_spoken_too(gate: Running) -> None:
    reply = await raw(gate, b"GET /v1/latest HTTP/1.0\r\n" + await bearer(gate) + b"\r\n")
    assert reply.status == 200
    assert reply.json["items"] == []
