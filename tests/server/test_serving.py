"""A gate as a process: how it starts, what it says, how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from server.serving import EXIT_WITHIN
from tests.raw import Answer, Raw, request, until
from tests.running import PATIENCE, ROOT, GateProcess, run_process
from tests.server.commands import environment, run, tidegate

PATH = "/v1/devices/d/readings"
CSV = ("Accept: text/csv",)


async def welcome(gate: GateProcess) -> str:
    """What it says behind its first line, up to the last curl command."""
    assert gate.process.stdout is not None
    text = ""
    async with asyncio.timeout(PATIENCE):
        while not text.endswith("latest\n"):
            text += (await gate.process.stdout.readline()).decode()
    return text


async def stopped(gate: GateProcess, number: signal.Signals = signal.SIGTERM) -> float:
    """Seconds that it takes to exit 0 after the signal."""
    begun = asyncio.get_running_loop().time()
    gate.signal(number)
    assert await gate.ended() == 0
    return asyncio.get_running_loop().time() - begun


# -- starting ----------------------------------------------------------------------------------


async def test_the_two_commands_that_it_prints_work_when_pasted(tmp_path: Path) -> None:
    async with run_process(tmp_path / "data") as gate:
        text = await welcome(gate)
        commands = [text[found.start() :] for found in re.finditer("^curl", text, re.MULTILINE)]
        assert len(commands) == 2
        write, read = commands[0].partition("\ncurl")[0], commands[1]
        wrote = await run("bash", "-c", write, env=environment())
        assert json.loads(wrote.out)["accepted"] == 1, wrote
        back = await run("bash", "-c", read, env=environment())
        assert json.loads(back.out)["metrics"]["temperature"]["value"] == 21.5, back
        link = re.search(r"^In a browser: (\S+)/#token=(\S+)$", text, re.MULTILINE)
        assert link is not None
        assert link[1] == gate.url
        assert (await gate.get("/v1/devices/demo.kitchen", token=link[2])).status == 200
        assert (await gate.get("/v1/latest", token=link[2])).json["items"] != []
        assert (await gate.write("demo.kitchen", {"metric": "t", "value": 1}, token=link[2])).status == 403
        whole = await run("bash", "-e", "-c", text, env=environment())
        assert whole.code != 0 or "accepted" in whole.out


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_no_token_is_printed_where_others_can_get_to_the_gate(tmp_path: Path, host: str) -> None:
    async with run_process(tmp_path / "data", HOST=host) as gate:
        assert gate.process.stdout is not None
        assert (await gate.get("/livez")).status == 200
        gate.signal(signal.SIGTERM)
        rest = (await gate.process.stdout.read()).decode()
        assert "curl" not in rest
        assert "eyJ" not in rest


async def test_a_second_gate_on_the_same_data_refuses_to_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with run_process(data) as gate:
        ran = await tidegate("serve", data=data, PORT="0")
        assert ran.code == 1
        assert ran.out == ""
        assert f"tidegate: another tidegate works with the data directory {data}" in ran.err
        assert (await gate.get("/livez")).status == 200
        # The place where the first one said it listens is left alone.
        assert (data / "url").read_text().strip() == gate.url


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for settings in ({"PORT": str(port)}, {"PORT": "0", "METRICS_PORT": str(port)}):
            ran = await tidegate("serve", data=tmp_path / "data", **settings)
            assert ran.code == 1
            assert ran.out == ""
            assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in ran.err
            assert "Traceback" not in ran.err


async def test_a_host_that_does_not_exist_is_named(tmp_path: Path) -> None:
    ran = await tidegate("serve", data=tmp_path / "data", HOST="999.1.1.1")
    assert ran.code == 1
    assert "cannot listen on 999.1.1.1" in ran.err


async def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = await tidegate("serve", data=tmp_path / "file" / "data", PORT="0")
    assert ran.code == 1
    assert "file/data" in ran.err
    assert "Traceback" not in ran.err


async def test_as_many_files_may_be_open_as_connections(tmp_path: Path) -> None:
    command = f"ulimit -S -n 256 && exec {sys.executable} -m server serve"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        cwd=ROOT,
        env=environment(tmp_path / "data", PORT="0", MAX_CONNECTIONS="1000"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int((await process.stdout.readline()).decode().partition(",")[0].rpartition(":")[2])
        connections = [await Raw.open(port) for _ in range(400)]
        assert (await connections[-1].ask(request("GET", "/livez"))).status == 200
        for connection in connections:
            connection.leave()
    finally:
        process.kill()
        await process.wait()


# -- ending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_gate_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    async with run_process(tmp_path / "data") as gate:
        assert (await gate.get("/livez")).status == 200
        async with await Raw.open(gate.port) as idle:
            assert await stopped(gate, number) < gate.settings.shutdown_timeout
            assert await idle.ended() == b""


async def test_requests_in_flight_are_finished_and_told_that_the_connection_ends(tmp_path: Path) -> None:
    """Promise 10. Half of each body comes after SIGTERM."""
    data = tmp_path / "data"
    body = b'{"metric": "m", "value": 1}'
    async with run_process(data) as gate:
        waiting = [await Raw.open(gate.port) for _ in range(50)]
        for number, connection in enumerate(waiting):
            path = f"/v1/devices/d{number}/readings"
            await connection.send(request("POST", path, body, token=gate.token())[:-10])
        await connections_of(gate, 50)
        begun = asyncio.get_running_loop().time()
        gate.signal(signal.SIGTERM)
        await refusing(gate.port)
        for connection in waiting:
            await connection.send(body[-10:])
        for connection in waiting:
            answer = await connection.answer()
            assert answer.status == 200
            assert answer.closing
            assert await connection.ended() == b""
            connection.leave()
        assert await gate.ended() == 0
        assert asyncio.get_running_loop().time() - begun < 10
    async with run_process(data) as gate:
        items = (await gate.get("/v1/readings?limit=1000")).json["items"]
        assert {item["device"] for item in items} == {f"d{number}" for number in range(50)}


async def test_a_body_that_never_ends_holds_the_end_up_for_no_longer_than_allowed(tmp_path: Path) -> None:
    gating = run_process(tmp_path / "data", SHUTDOWN_TIMEOUT="2s")
    async with gating as gate, await Raw.open(gate.port) as connection:
        lines = ("Content-Length: 100",)
        await connection.send(request("POST", PATH, token=gate.token(), headers=lines))
        await connections_of(gate, 1)
        # The default is 8 s.
        assert 1.5 < await stopped(gate) < 8
        await connection.ended()


async def test_an_export_in_progress_is_finished(tmp_path: Path) -> None:
    async with run_process(tmp_path / "data") as gate:
        for first in range(0, 20_000, 1000):
            items = [{"metric": "m", "ts": first + n, "value": "x" * 500} for n in range(1000)]
            assert (await gate.write("d", *items)).status == 200
        async with await Raw.open(gate.port, limit=4096) as connection:
            await connection.send(request("GET", PATH, token=gate.token(), headers=CSV))
            await connection.reader.readuntil(b"offset")
            begun = asyncio.get_running_loop().time()
            gate.signal(signal.SIGTERM)
            await refusing(gate.port)
            rest = await connection.ended()
            assert rest.endswith(b"\r\n0\r\n\r\n")
            assert rest.count(b"x" * 500) == 20_000
        assert await gate.ended() == 0
        assert asyncio.get_running_loop().time() - begun < 10


STUCK = """
import sys, time
from server import cli, serving
from server.app import Gate
serving.EXIT_WITHIN = 1.0
Gate.drain = lambda self: time.sleep(60)
sys.exit(cli.main(["serve"]))
"""
BROKEN = """
import sys
from server import cli
from storage.commit import GroupCommit
async def broken(*_):
    raise RuntimeError
GroupCommit._answer = broken
sys.exit(cli.main(["serve"]))
"""


@asynccontextmanager
async def started(
    data: Path, *command: str, log: int = asyncio.subprocess.PIPE, **settings: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A gate by this command of Python (serve, if none is given), and its port; `log`: where stderr goes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(command or ("-m", "server", "serve")),
        cwd=ROOT,
        env=environment(data, PORT="0", **settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield process, int(line.partition(",")[0].rpartition(":")[2])
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_loop_that_is_stuck_ends_all_the_same(tmp_path: Path) -> None:
    """The last resort of promise 10 is the kernel's timer."""
    assert EXIT_WITHIN < 10
    async with started(tmp_path / "data", "-c", STUCK, SHUTDOWN_TIMEOUT="1s") as (process, _):
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await process.communicate()
    assert process.returncode == -signal.SIGALRM


async def test_a_gate_whose_commits_are_broken_ends_and_says_so(tmp_path: Path) -> None:
    """Whoever watches over it must see that it failed, and start it again."""
    data = tmp_path / "data"
    async with started(data, "-c", BROKEN, SHUTDOWN_TIMEOUT="1s") as (process, port):
        ask = ("token", "--sub", "a", "--scope", "readings:write", "--devices", ">")
        token = (await tidegate(*ask, data=data)).out.strip()
        async with await Raw.open(port) as connection:
            await connection.send(request("POST", PATH, b'{"metric": "m", "value": 1}', token=token))
            answer = await connection.ended()
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"the write may be stored or not" in answer
        async with asyncio.timeout(PATIENCE):
            _, error = await process.communicate()
    assert process.returncode == 1
    assert b"the group commit broke" in error
    assert error.endswith(b"tidegate: a part of the gate ended; the log says why\n")


async def connections_of(gate: GateProcess, count: int) -> None:
    """Wait until the gate has read what so many connections sent: it does so in the order of arrival."""
    for _ in range(3):
        figures = (await gate.get("/metrics")).body.decode()
        assert f"tidegate_connections_open {count + 1}.0" in figures or count == 0, figures[:3000]


async def refusing(port: int) -> None:
    """Wait until nobody listens any more."""

    async def refused() -> bool:
        try:
            (await Raw.open(port)).leave()
        except ConnectionRefusedError:
            return True
        return False

    async with asyncio.timeout(PATIENCE):
        while not await refused():
            await asyncio.sleep(0.01)


# -- keys, metrics, logs -----------------------------------------------------------------------


async def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with run_process(data) as gate:
        old = gate.token()
        assert (await gate.get("/v1/devices", token=old)).status == 200
        (data / "jwt.secret").unlink()
        new = (await tidegate("token", "--sub", "me", "--scope", "devices:read", data=data)).out.strip()
        assert (await gate.get("/v1/devices", token=new)).status == 401
        gate.signal(signal.SIGHUP)

        async def taken() -> bool:
            return (await gate.get("/v1/devices", token=new)).status == 200

        async with asyncio.timeout(PATIENCE):
            while not await taken():
                await asyncio.sleep(0.02)
        assert (await gate.get("/v1/devices", token=old)).status == 401


async def test_keys_that_cannot_be_read_leave_the_old_ones_in_place(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    with log.open("wb") as stderr:
        async with started(data, log=stderr.fileno()) as (process, port):
            token = (await tidegate("token", "--sub", "me", "--scope", "devices:read", data=data)).out.strip()
            (data / "jwt.secret").write_text("short")
            process.send_signal(signal.SIGHUP)
            await until(lambda: "the keys were not reloaded" in log.read_text())
            async with await Raw.open(port) as connection:
                assert (await connection.ask(request("GET", "/v1/devices", token=token))).status == 200


async def test_metrics_have_a_port_of_their_own_if_it_is_set(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with run_process(tmp_path / "data", METRICS_PORT=str(port)) as gate:
        assert (await gate.get("/metrics")).status == 404
        for path, status in (("/metrics", 200), ("/livez", 200), ("/readyz", 200), ("/v1/devices", 404)):
            async with gate.session.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == status, path
        assert await stopped(gate) < gate.settings.shutdown_timeout


async def test_metrics_ask_for_their_token_if_it_is_set(tmp_path: Path) -> None:
    async with run_process(tmp_path / "data", METRICS_TOKEN="a-good-token") as gate:
        for token, status in (("a-good-token", 200), ("a-bad-token", 401), ("", 401), (gate.token(), 401)):
            assert (await gate.get("/metrics", token=token)).status == status


async def test_the_access_log_has_a_line_per_request_and_the_audit_log_what_matters_never_a_secret(
    tmp_path: Path,
) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    async with AsyncExitStack() as stack:
        stderr = stack.enter_context(log.open("wb"))
        gate = started(data, log=stderr.fileno(), ACCESS_LOG="1", METRICS_TOKEN="metrics-token-1")
        process, port = await stack.enter_async_context(gate)
        token = (
            await tidegate("token", "--sub", "root", "--scope", "admin devices:read", data=data)
        ).out.strip()

        async def ask(method: str, path: str, body: str | None = None, *lines: str) -> Answer:
            async with await Raw.open(port) as connection:
                content = None if body is None else body.encode()
                return await connection.ask(request(method, path, content, headers=lines))

        bearer = f"Authorization: Bearer {token}"
        form = "grant_type=client_credentials&client_id=pump&client_secret="
        made = await ask("POST", "/v1/clients", '{"id":"pump","scopes":[],"devices":[]}', bearer)
        secret = made.json["secret"]
        issued = await ask("POST", "/v1/token", form + secret)
        await ask("POST", "/v1/token", form + "a-wrong-secret-of-pump")
        await ask("GET", f"/v1/devices?match=q&access_token={token}", None, bearer, "X-Request-ID: my-own-id")
        await ask("GET", "/metrics", None, "Authorization: Bearer metrics-token-1")
        await ask("DELETE", "/v1/clients/pump", None, bearer)
        await ask("GET", f"/nowhere/at/all?client_secret={secret}")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["logger"] == "tidegate.access"]
    assert [(line["method"], line["path"], line["status"]) for line in requests] == [
        ("POST", "/v1/clients", 201),
        ("POST", "/v1/token", 200),
        ("POST", "/v1/token", 401),
        ("GET", "/v1/devices", 200),
        ("GET", "/metrics", 200),
        ("DELETE", "/v1/clients/pump", 204),
        ("GET", "/nowhere/at/all", 404),
    ]
    assert requests[3]["request_id"] == "my-own-id"
    assert requests[3]["subject"] == "root"
    assert all(line["address"] == "127.0.0.1" for line in requests)
    events = [line["event"] for line in lines if line["logger"] == "tidegate.audit"]
    assert events == ["client_created", "token_issued", "login_failed", "client_removed"]
    for hidden in (token, secret, "a-wrong-secret-of-pump", "metrics-token-1", issued.json["access_token"]):
        assert hidden not in text
    assert "access_token=" not in text
    assert (data / "jwt.secret").read_text().strip() not in text


async def test_the_data_of_the_gate_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    async with run_process(tmp_path / "data"):
        for name in ("", "jwt.secret"):
            assert os.stat(tmp_path / "data" / name).st_mode & 0o077 == 0


async def test_a_gate_behind_proxies_takes_their_word_for_the_address(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with AsyncExitStack() as stack:
        stderr = stack.enter_context(log.open("wb"))
        networks = "127.0.0.0/8,10.0.0.0/8"
        gate = started(tmp_path / "data", log=stderr.fileno(), ACCESS_LOG="1", TRUSTED_PROXIES=networks)
        process, port = await stack.enter_async_context(gate)
        url = f"http://127.0.0.1:{port}/livez"
        forwarded = ["1.2.3.4", "6.6.6.6, 1.2.3.4, 10.0.0.1", "not-an-address", "10.0.0.9, 10.0.0.8", ""]
        async with aiohttp.ClientSession() as session:
            for given in forwarded:
                async with session.get(url, headers={"X-Forwarded-For": given}) as answer:
                    assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    addresses = [line["address"] for line in lines if line["logger"] == "tidegate.access"]
    assert addresses == ["1.2.3.4", "1.2.3.4", "127.0.0.1", "10.0.0.9", "127.0.0.1"]
