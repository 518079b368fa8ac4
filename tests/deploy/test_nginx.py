"""The shipped nginx configuration before a real gate: what clients get is what the gate said."""

import asyncio
import gzip
import json
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.nginx import PLAIN, Proxy, command, configure, run_nginx
from tests.deploy.upstream import OK, upstream
from tests.handlers.sockets import connect
from tests.raw import Raw, request, until
from tests.running import PATIENCE, Caller, Running, run_gate
from tests.servers.programs import free_port

pytestmark = pytest.mark.system

# Seconds in which a live reading comes; held back by a buffer, it comes with the next ping, after 15 s.
PROMPT = 10.0
READING = {"metric": "m", "ts": 1000, "value": 1}
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nginx_takes_the_configuration_without_a_warning(certified: Path, tls: bool) -> None:
    configuration = configure(certified, free_port(), [1, 2], tls=tls)
    run = subprocess.run(command(configuration, "-t"), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (0, 2), run.stderr
    assert "is successful" in run.stderr


async def test_answers_of_the_gate_pass_as_they_are(through: Caller) -> None:
    body = gzip.compress(json.dumps([READING]).encode())
    coded = {"Content-Encoding": "gzip", "Content-Type": "application/json", "X-Request-ID": "mine"}
    reply = await through.post("/v1/devices/a.b/readings", data=body, headers=coded)
    assert (reply.status, reply.json["accepted"]) == (200, 1), reply
    assert reply.headers["X-Request-ID"] == "mine"
    newest = await through.get("/v1/devices/a.b/latest")
    assert newest.json["metrics"]["m"]["value"] == 1
    again = await through.get("/v1/devices/a.b/latest", headers={"If-None-Match": newest.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert (await through.call("HEAD", "/v1/devices/a.b/latest")).status == 200
    refused = await through.get("/v1/devices/a.b/latest", token="x")
    assert (refused.status, refused.json["code"]) == (401, "token_malformed")
    assert "Bearer" in refused.headers["WWW-Authenticate"]
    export = await through.get("/v1/readings?match=a.b&since=earliest", headers={"Accept": "text/csv"})
    assert export.body.count(b"\n") == 2, export


async def test_connections_to_the_gate_are_kept(through: Caller, trusting: Running) -> None:
    before = trusting.gate.server.accepted
    for _ in range(50):
        await through.get("/v1/devices")
    # nginx has two workers here, and least_conn does not mind which.
    assert trusting.gate.server.accepted - before <= 2


async def test_a_websocket_follows_and_writes(through: Caller) -> None:
    async with connect(through) as socket:
        await socket.follow(1, "a.>")
        assert (await socket.write(2, {**READING, "device": "a.b"}))["accepted"] == 1
        for ts in range(100):
            await through.write("a.b", {**READING, "ts": 2000 + ts, "value": ts})
            assert (await socket.hear(PROMPT))["value"] == ts
    packed = through.session.ws_connect(
        through.url + "/v1/stream?access_token=" + through.token(), protocols=["tidegate.msgpack"]
    )
    async with packed as ws:
        assert ws.protocol == "tidegate.msgpack"


async def test_events_come_at_once_and_resume(through: Caller) -> None:
    await through.write("a.b", READING)
    bearer = {"Authorization": f"Bearer {through.token()}"}
    url = through.url + "/v1/events?match=a.>"
    async with through.session.get(url, headers=bearer) as events:
        assert await _event(events) == (b"recovery", None)
        for ts in range(20):
            await through.write("a.b", {**READING, "ts": 2000 + ts, "value": ts})
            async with asyncio.timeout(PROMPT):
                assert await _event(events) == (b"reading", ts)
    async with through.session.get(url, headers={**bearer, "Last-Event-ID": "earliest"}) as events:
        assert await _event(events) == (b"recovery", None)
        assert [(await _event(events))[1] for _ in range(21)] == [1, *range(20)]


async def _event(events: aiohttp.ClientResponse) -> tuple[bytes, object]:
    kind = b""
    while True:
        line = (await events.content.readline()).rstrip()
        if line.startswith(b"event: "):
            kind = line.removeprefix(b"event: ")
        elif line.startswith(b"data: "):
            return kind, json.loads(line.removeprefix(b"data: ")).get("value")


async def test_the_gate_sees_the_client_and_not_what_it_claims(
    proxy: Proxy, trusting: Running, through: Caller
) -> None:
    forged = ("X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6")
    for source, headers in (("127.0.0.2", ()), ("127.0.0.3", forged)):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=(source, 0))
        async with Raw(reader, writer) as client:
            asked = request("GET", "/v1/devices", token=through.token(), headers=headers)
            assert (await client.ask(asked)).status == 200
    await until(lambda: trusting.logged().count('"address":"127.0.0.') >= 2)
    assert '"address":"127.0.0.2"' in trusting.logged()
    assert '"address":"127.0.0.3"' in trusting.logged()
    assert "6.6.6.6" not in trusting.logged()


async def test_only_pages_of_our_own_open_websockets(through: Caller) -> None:
    async with connect(through, headers={"Origin": through.url}) as socket:
        await socket.follow(1, ">")
    async with connect(through, headers={"Origin": "http://evil.example"}) as socket:
        assert (await socket.end()).code == 4403


async def test_a_body_behind_an_upgrade_is_no_second_request(proxy: Proxy, through: Caller) -> None:
    """Promise: F16. One answer; what is smuggled is never carried out."""
    token = through.token()
    smuggled = request("DELETE", "/v1/devices/a.b?readings=true", token=token)
    await through.write("a.b", READING)
    upgrade = (*UPGRADE, KEY)
    async with await Raw.open(proxy.port) as client:
        # A body that is measured: refused, and the connection goes on behind it.
        answer = await client.ask(request("GET", "/v1/stream", smuggled, token=token, headers=upgrade))
        assert answer.status == 400
        assert (await client.ask(request("GET", "/v1/devices/a.b", token=token))).status == 200
    async with await Raw.open(proxy.port) as client:
        # Behind an upgrade that is refused nothing is left over for the next request.
        assert (await client.ask(request("GET", "/v1/stream", smuggled, headers=upgrade))).status == 401
        assert (await client.ask(request("GET", "/v1/devices/a.b", token=token))).status == 200
    async with await Raw.open(proxy.port) as client:
        # What follows an upgrade that is accepted are frames, and these are none.
        await client.send(request("GET", "/v1/stream", token=token, headers=upgrade) + smuggled)
        assert (await client.answer()).status == 101
        assert b"HTTP/1.1" not in await client.ended()
    assert (await through.get("/v1/devices/a.b/latest")).json["metrics"]["m"]["value"] == 1


async def test_only_websockets_are_upgraded_and_only_where_there_is_one(tmp_path: Path) -> None:
    async with upstream(lambda asked: OK) as gate, run_nginx(tmp_path / "nginx", [gate.port]) as proxy:
        for path, kind in (("/v1/devices", "websocket"), ("/v1/stream", "h2c"), ("/v1/events", "websocket")):
            async with await Raw.open(proxy.port) as client:
                headers = (
                    f"Upgrade: {kind}",
                    "Connection: Upgrade, HTTP2-Settings",
                    "HTTP2-Settings: AAMAAABk",
                )
                assert (await client.ask(request("GET", path, headers=headers))).status == 200
        assert [asked.path for asked in gate.asked] == ["/v1/devices", "/v1/stream", "/v1/events"]
        assert all("upgrade" not in asked.headers for asked in gate.asked)
        assert all(asked.headers.get("connection") is None for asked in gate.asked)


@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/%6detrics", "/x/../metrics", "/metrics/", "/./metrics?x=1"]
)
async def test_figures_are_not_for_clients(through: Caller, path: str) -> None:
    async with await Raw.open(through.port) as client:
        assert (await client.ask(request("GET", path, token="scrape"))).status == 404


async def test_what_nginx_refuses_is_a_problem_too(through: Caller) -> None:
    size = 8 * 1024 * 1024
    for more, status, code in ((1, 413, "too_large"), (0, 400, "malformed")):
        async with await Raw.open(through.port) as client:
            head, _, body = request(
                "POST", "/v1/readings", bytes(size + more), token=through.token()
            ).partition(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            # Before the body of what is refused by its length, after that of what the gate decides over.
            if not more:
                await client.send(body)
            answer = await client.answer()
            assert (answer.status, answer.json["code"]) == (status, code)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_without_a_gate_clients_are_told_to_come_back_and_no_log_has_their_token(
    tmp_path: Path,
) -> None:
    ports = [free_port(), free_port()]
    async with run_nginx(tmp_path / "nginx", ports) as proxy, aiohttp.ClientSession() as session:
        for path in ("/v1/devices", "/v1/events?access_token=hidden", "/v1/stream?access_token=hidden"):
            for _ in range(5):
                async with session.get(proxy.url + path) as response:
                    assert response.status == 503
                    assert response.headers["Retry-After"] == "1"
                    assert response.content_type == "application/problem+json"
                    assert (await response.json(content_type=None))["code"] == "unavailable"
        async with session.post(
            proxy.url + "/v1/readings", data=b"{}", headers={"Idempotency-Key": "k"}
        ) as response:
            assert (response.status, response.content_type) == (503, "application/problem+json")
        await until(lambda: proxy.logged().count('"path":"/v1/stream"') == 5)
        assert "hidden" not in proxy.logged()
        lines = [json.loads(line) for line in (proxy.folder / "access.log").read_text().splitlines()]
        assert {line["status"] for line in lines} == {503}


async def test_a_slow_client_costs_the_gate_nothing(tmp_path: Path) -> None:
    async with upstream(lambda asked: OK) as gate, run_nginx(tmp_path / "nginx", [gate.port]) as proxy:
        async with await Raw.open(proxy.port) as client:
            whole = request("POST", "/v1/readings", b"0123456789")
            await client.send(whole[:-5])
            # Meanwhile another one is served; the half request has not been passed on.
            async with await Raw.open(proxy.port) as other:
                assert (await other.ask(request("GET", "/v1/devices"))).status == 200
            assert [asked.method for asked in gate.asked] == ["GET"]
            assert (await client.ask(whole[-5:])).status == 200
        assert gate.asked[-1].body == b"0123456789"


async def test_a_large_export_is_not_copied_to_the_disk(tmp_path: Path) -> None:
    size = 64 * 1024 * 1024
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: %d\r\n\r\n" % size
    async with (
        upstream(lambda asked: head + bytes(size)) as gate,
        run_nginx(tmp_path / "nginx", [gate.port]) as proxy,
        await Raw.open(proxy.port) as client,
    ):
        await client.send(request("GET", "/v1/readings"))
        await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(1024)
        assert "temporary file" not in proxy.logged()
        written = sum(path.stat().st_size for path in (proxy.folder / "proxy").rglob("*") if path.is_file())
        assert written == 0
        rest = await client.reader.readexactly(size - 1024)
        assert len(rest) == size - 1024


async def test_tls_ends_at_nginx(tmp_path: Path, certified: Path, trusting: Running) -> None:
    trust = ssl.create_default_context(cafile=str(certified / "tls.crt"))
    async with run_nginx(certified, [trusting.port], tls=True) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        bearer = {"Authorization": f"Bearer {trusting.token()}"}
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector, headers=bearer) as session:
            async with session.post(url + "/v1/devices/a.b/readings", json=READING) as response:
                assert response.status == 200
                assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            async with session.ws_connect(url + "/v1/stream", headers={"Origin": url}) as ws:
                await ws.send_json({"type": "subscribe", "id": 1, "match": [">"], "since": "earliest"})
                assert (await ws.receive_json(timeout=PATIENCE))["type"] == "subscribed"


@pytest.mark.parametrize(
    ("method", "key", "times"),
    [("POST", "", 1), ("POST", "k", 3), ("GET", "", 3), ("PUT", "", 3), ("DELETE", "", 3)],
)
async def test_a_write_is_sent_once_and_what_is_safe_again(
    tmp_path: Path, method: str, key: str, times: int
) -> None:
    """Promise: a gate dies with a request in its hands: nothing is repeated that could be stored twice."""
    headers = {"Idempotency-Key": key} if key else {}
    async with (
        upstream(lambda asked: b"") as one,
        upstream(lambda asked: b"") as other,
        run_nginx(tmp_path / "nginx", [one.port, other.port]) as proxy,
        aiohttp.ClientSession() as session,
        session.request(method, proxy.url + "/v1/readings", data=b"{}", headers=headers) as response,
    ):
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        asked = one.asked + other.asked
        assert [(each.method, each.body) for each in asked] == [(method, b"{}")] * times


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_write_that_reached_no_gate_goes_to_the_other(tmp_path: Path, key: str) -> None:
    headers = (f"Idempotency-Key: {key}", "Expect: 100-continue") if key else ()
    async with upstream(lambda asked: OK) as gate:
        async with run_nginx(tmp_path / "nginx", [free_port(), gate.port]) as proxy:
            for _ in range(10):
                async with await Raw.open(proxy.port) as client:
                    answer = await client.ask(request("POST", "/v1/readings", b"{}", headers=headers))
                    if answer.status == 100:
                        answer = await client.answer()
                    assert answer.status == 200
        assert [asked.body for asked in gate.asked] == [b"{}"] * 10


async def test_a_busy_gate_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    """Promise: 503 with its Retry-After gets to the client; no storm on the other gate, no gate shut out."""
    busy = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    async with (
        upstream(lambda asked: busy) as one,
        upstream(lambda asked: busy) as other,
        run_nginx(tmp_path / "nginx", [one.port, other.port]) as proxy,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(20):
            async with session.get(proxy.url + "/v1/devices") as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "7")
        assert len(one.asked) + len(other.asked) == 20


async def test_nginx_lets_go_of_idle_connections_before_the_gate_does(tmp_path: Path) -> None:
    """Promise: F28. Writes at the very moment at which a connection is given up are all answered.

    With both timeouts shortened, the gate's less, for nginx may be starved, and the clients about as slow as
    nginx's. Of their proportion tells test_nginx_settings.py.
    """
    shorter = {"    keepalive_timeout 30s;": "    keepalive_timeout 1s;"}
    async with (
        run_gate(tmp_path / "data", KEEPALIVE_TIMEOUT="6s", **PLAIN) as gate,
        run_nginx(tmp_path / "nginx", [gate.port], changes=shorter) as proxy,
    ):
        caller = Caller(proxy.url, gate.settings, gate.session, gate._issuer)

        async def device(number: int, turn: int) -> None:
            reply = await caller.write(f"d{number}", {"metric": "m", "ts": turn, "value": turn})
            assert reply.status == 200, reply

        for turn in range(8):
            await asyncio.gather(*(device(number, turn) for number in range(40)))
            await asyncio.sleep(0.98 + turn * 0.005)
        assert gate.gate.server.accepted >= 8
