import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from auth.rate_limit import LimitExceeded, Policy
from handlers.problems import CATALOGUE, Fault, Problem, problem_of
from storage import errors
from tests.handlers.wire import bearer, expired_token, held_commit, problem, raw
from tests.running import PATIENCE, Running, client_tls, run_gate

A = "/v1/devices/demo.a/readings"
READING = {"metric": "t", "value": 1, "ts": 1}
# The rest of a request whose body is a byte larger than the limit.
TOO_MUCH = b"Content-Length: %d\r\n\r\n" % ((8 << 20) + 1) + bytes((8 << 20) + 1)


async def test_problems_lists_all_codes_and_the_type_of_each_leads_to_it(gate: Running) -> None:
    reply = await gate.get("/problems", token="")
    assert reply.status == 200
    assert {entry["code"] for entry in reply.json["items"]} == set(CATALOGUE)
    for entry in reply.json["items"]:
        assert set(entry) == {"code", "type", "status", "title"}
        assert (await gate.get(entry["type"], token="")).json == entry
    problem(await gate.get("/problems/nonsense", token=""), 404, "not_found")


async def test_the_statuses_are_those_of_the_contract() -> None:
    known = {400, 401, 403, 404, 405, 406, 408, 409, 410, 411, 413, 414, 415, 417, 422, 426, 429, 431}
    assert {entry.status for entry in CATALOGUE.values()} == known | {500, 503, 505, 507}


@pytest.mark.parametrize(
    ("authorization", "code", "error"),
    [
        (None, "token_missing", ""),
        ("Bearer", "token_malformed", "invalid_request"),
        ("Bearer ", "token_malformed", "invalid_request"),
        ("Basic YTpi", "token_malformed", "invalid_request"),
        ("Bearer nonsense", "token_malformed", "invalid_token"),
        ("Bearer a.b.c", "token_malformed", "invalid_token"),
        ("Bearer " + "a" * 5000, "token_malformed", "invalid_token"),
        ("Bearer ä.b.c", "token_malformed", "invalid_token"),
    ],
)
async def test_no_or_a_bad_token_is_401_with_a_challenge(
    gate: Running, authorization: str | None, code: str, error: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    for method, path in (("GET", "/v1/latest"), ("DELETE", "/v1/devices/a"), ("POST", A)):
        reply = await gate.call(method, path, token="", headers=headers, data=b"")
        problem(reply, 401, code)
        assert reply.headers["WWW-Authenticate"].startswith('Bearer realm="tidegate"')
        assert (f'error="{error}"' in reply.headers["WWW-Authenticate"]) == bool(error)


async def test_a_bad_signature_and_a_past_expiry_are_told_apart(gate: Running) -> None:
    signature = gate.token(subject="other").rpartition(".")[2]
    forged = f"{gate.token().rpartition('.')[0]}.{signature}"
    problem(await gate.get("/v1/latest", token=forged), 401, "token_invalid")
    reply = await gate.get("/v1/latest", token=await expired_token(gate))
    problem(reply, 401, "token_expired")
    assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]


async def test_a_token_in_the_query_is_for_streams_only(gate: Running) -> None:
    reply = await gate.get(f"/v1/latest?access_token={gate.token()}", token="")
    problem(reply, 401, "token_missing")


async def test_each_route_asks_for_its_scope_and_names_it(gate: Running) -> None:
    await gate.write("demo.a", READING)
    routes: list[tuple[str, str, str, Any]] = [
        ("POST", A, "readings:write", READING),
        ("POST", "/v1/readings", "readings:write", {**READING, "device": "demo.a"}),
        ("GET", "/v1/devices/demo.a/latest", "readings:read", None),
        ("GET", "/v1/latest", "readings:read", None),
        ("GET", A, "readings:read", None),
        ("GET", "/v1/readings", "readings:read", None),
        ("GET", "/v1/devices", "devices:read", None),
        ("GET", "/v1/devices/demo.a", "devices:read", None),
        ("PUT", "/v1/devices/demo.a", "devices:write", {}),
        ("GET", "/v1/clients", "admin", None),
        ("POST", "/v1/clients", "admin", {"scopes": [], "devices": []}),
        ("DELETE", "/v1/devices/demo.a", "devices:write", None),
    ]
    scopes = {scope for _, _, scope, _ in routes}
    for method, path, scope, content in routes:
        token = gate.token(sorted(scopes - {scope}))
        reply = await gate.call(method, path, content, token=token)
        problem(reply, 403, "insufficient_scope")
        challenge = reply.headers["WWW-Authenticate"]
        assert 'error="insufficient_scope"' in challenge
        assert f'scope="{scope}"' in challenge
        assert (await gate.call(method, path, content, token=gate.token([scope]))).status < 300


async def test_nothing_is_404_and_another_method_is_405_with_allow(gate: Running) -> None:
    for path in ("/v1/nothing", "/v2/readings", "/v1/readings/", "//v1/readings", "/V1/readings"):
        problem(await gate.get(path), 404, "not_found")
    for method, path, allow in (
        ("PATCH", "/v1/readings", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/livez", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/token", "OPTIONS, POST"),
        ("POST", "/v1/devices/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("PATCH", "/v1/clients/x", "DELETE, OPTIONS"),
    ):
        reply = await gate.call(method, path)
        problem(reply, 405, "method_not_allowed")
        assert ", ".join(sorted(reply.headers["Allow"].split(", "))) == allow


async def test_heads_that_cannot_be_served_are_refused_by_name(gate: Running) -> None:
    token = await bearer(gate)
    post = b"POST " + A.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + token
    get = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + token
    for request, status, code in (
        (post + b"Content-Type: application/json\r\n\r\n", 411, "length_required"),
        (post + TOO_MUCH, 413, "too_large"),
        (post + b"Content-Length: 2\r\nExpect: miracles\r\n\r\n{}", 417, "expectation_failed"),
        (get % b"/v1/latest" + b"\r\n", 200, ""),
        (get % b"/v1/latest?%ff" + b"\r\n", 400, "malformed"),
        (get % b"/v1/devices/%ff" + b"\r\n", 400, "malformed"),
        (get % b"/v1/devices/%zz" + b"\r\n", 400, "malformed"),
        (get % (b"/" + b"x" * 9000) + b"\r\n", 414, "uri_too_long"),
        (get % b"/livez" + b"X: " + b"y" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (get % b"/livez" + b"X: y\r\n" * 200 + b"\r\n", 431, "headers_too_large"),
        (b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", 505, "version_not_supported"),
        (b"nonsense\r\n\r\n", 400, "malformed"),
    ):
        reply = await raw(gate, request)
        if code:
            problem(reply, status, code)
        else:
            assert reply.status == status, reply


async def test_a_request_target_may_be_absolute(gate: Running) -> None:
    for target in (b"http://gate.example/v1/latest?limit=1", b"HTTP://x:80/v1/latest", b"/v1/latest"):
        reply = await raw(
            gate,
            b"GET "
            + target
            + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            + await bearer(gate)
            + b"\r\n",
        )
        assert reply.status == 200, (target, reply)


async def test_100_continue_comes_after_authentication_and_size_checks(gate: Running) -> None:
    body = b'{"metric": "t", "value": 1}'
    head = f"POST {A} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n".encode()
    length = b"Content-Length: %d\r\n" % len(body)
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, ssl=client_tls())
        writer.write(head + await bearer(gate) + length + b"\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
    for refused, status in (
        (head + length + b"\r\n" + body, 401),
        (head + await bearer(gate) + TOO_MUCH, 413),
    ):
        assert (await raw(gate, refused)).status == status


async def test_a_body_that_does_not_arrive_is_408(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", BODY_TIMEOUT="1s") as gate:
        head = b"POST " + A.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n" + await bearer(gate)
        reply = await raw(gate, head + b"\r\nhalf")
        problem(reply, 408, "request_timeout")
        assert reply.headers["Connection"] == "close"


async def test_when_too_much_waits_a_write_is_503_with_retry_after(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", QUEUE_READINGS="1") as gate, held_commit(gate) as held:
        first = asyncio.create_task(gate.post(A, READING))
        await held.arrived.wait()
        second = asyncio.create_task(gate.post(A, {**READING, "ts": 2}))
        while not gate.gate.commit.figures.queued_readings:
            await asyncio.sleep(0)
        reply = await gate.post(A, {**READING, "ts": 3})
        problem(reply, 503, "overloaded")
        assert int(reply.headers["Retry-After"]) >= 1
        assert (await gate.get("/livez")).status == 200
        held.go.set()
        assert [(await task).status for task in (first, second)] == [200, 200]


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (errors.NotFound("x"), 404, "not_found", None),
        (errors.Conflict("x"), 409, "conflict", None),
        (errors.KeyRunning("x"), 409, "idempotency_running", "1"),
        (errors.KeyReused("x"), 422, "idempotency_mismatch", None),
        (errors.Refused("x"), 422, "invalid", None),
        (errors.Full("x"), 507, "storage_full", "10"),
        (errors.Timeout("x"), 503, "timeout", "1"),
        (errors.Overloaded("x"), 503, "overloaded", "1"),
        (errors.Unavailable("x"), 503, "unavailable", "1"),
        (errors.StorageError("x"), 503, "unavailable", "1"),
        (LimitExceeded(Policy("requests", 60), 2.1, 9.0), 429, "rate_limited", "3"),
        (ZeroDivisionError("a secret"), 500, "internal", None),
    ],
)
def test_every_error_of_the_parts_has_its_problem(
    error: Exception, status: int, code: str, retry: str | None
) -> None:
    found = problem_of(error)
    assert (found.entry.status, found.entry.code) == (status, code)
    assert dict(found.headers).get("Retry-After") == retry
    assert b"secret" not in found.response("id").body


def test_a_problem_lists_at_most_100_faults() -> None:
    refusal = Problem("invalid", "x", [Fault(f"/{n}", "invalid", "y") for n in range(150)])
    assert problem_of(refusal) is refusal
    assert len(json.loads(refusal.response("id").body)["errors"]) == 100
