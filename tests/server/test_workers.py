"""Several workers: how they start, are renewed, and end."""

import asyncio
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from server.serving import EXIT_WITHIN
from server.settings import load
from server.slots import END_WITHIN
from tests.handlers.sockets import connect
from tests.raw import Raw, request
from tests.running import client_tls
from tests.server.commands import tidegate
from tests.server.crowd import Crowd, Load, alive, children, run_crowd, until

RENEWED = "all workers were renewed"


async def ended(crowd: Crowd, number: signal.Signals = signal.SIGTERM) -> float:
    """Seconds that all processes take to end after the signal to the parent."""
    pids = crowd.pids()
    begun = asyncio.get_running_loop().time()
    crowd.gate.signal(number)
    assert await crowd.gate.ended() == 0
    assert not any(map(alive, pids))
    return asyncio.get_running_loop().time() - begun


async def renewed(crowd: Crowd, count: int = 1) -> None:
    """A rolling restart, from its signal to its end."""
    crowd.gate.signal(signal.SIGHUP)
    await crowd.logged(RENEWED, count, within=60)


# -- starting ----------------------------------------------------------------------------------


async def test_all_workers_answer_on_one_port_and_the_log_says_who(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, 2, ACCESS_LOG="1") as crowd:
        for _ in range(200):
            async with await Raw.open(crowd.port) as connection:
                assert (await connection.ask(request("GET", "/livez"))).status == 200
        pids = {slot: pid for slot, (pid,) in crowd.workers().items()}
        assert sorted(pids) == [0, 1]
        assert await ended(crowd) < crowd.gate.settings.shutdown_timeout
        lines = crowd.lines()
        served = Counter(line["worker"] for line in lines if line["logger"] == "tidegate.access")
        # The kernel spreads them by a hash: of 200 each gets at least 60 in all but one of a billion runs.
        assert served[0] + served[1] == 200
        assert min(served.values()) > 60, served
        for line in lines:
            assert line["pid"] == (pids[line["worker"]] if "worker" in line else crowd.gate.process.pid)
        assert not (tmp_path / "data" / "url").exists()


async def test_a_port_that_is_taken_is_named_though_it_could_be_shared(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        settings = {"DATABASE_URL": postgres_url, "WORKERS": "2", "PORT": str(crowd.port)}
        ran = await tidegate("serve", data=tmp_path / "other", **settings)
        assert ran.code == 1
        assert ran.out == ""
        assert f"cannot listen on 127.0.0.1 port {crowd.port}: Address already in use" in ran.err


async def test_what_is_wrong_at_the_start_is_said_once_and_nothing_is_left(
    tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a.pem").write_text("no key")
    settings = {"DATABASE_URL": postgres_url, "WORKERS": "3", "PORT": "0", "JWT_KEYS": str(tmp_path / "keys")}
    ran = await tidegate("serve", data=tmp_path / "data", **settings)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("a.pem: expected a public or an unencrypted private key") == 1
    assert "Traceback" not in ran.err


async def test_every_address_of_a_name_is_served_by_all(tmp_path: Path, postgres_url: str) -> None:
    settings = {"HOST": "localhost", "ACCESS_LOG": "1", "JWT_SECRET": "s" * 32}
    async with run_crowd(tmp_path, postgres_url, 2, **settings) as crowd:
        for address in {str(found[4][0]) for found in socket.getaddrinfo("localhost", None)}:
            for _ in range(40):
                connection = Raw(*await asyncio.open_connection(address, crowd.port, ssl=client_tls()))
                assert (await connection.ask(request("GET", "/livez"))).status == 200
                connection.leave()
        assert (tmp_path / "data" / "url").read_text().strip() == crowd.gate.url
        await ended(crowd)
        lines = [line for line in crowd.lines() if line["logger"] == "tidegate.access"]
        served = {(line["worker"], line["address"]) for line in lines}
        assert len(served) == 2 * len({address for _, address in served})


async def test_each_worker_has_a_cpu_of_its_own_if_that_is_wanted(tmp_path: Path, postgres_url: str) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    async with run_crowd(tmp_path, postgres_url, 2, CPU_PINNING="1") as crowd:
        for slot, (pid,) in crowd.workers().items():
            assert os.sched_getaffinity(pid) == {allowed[slot % len(allowed)]}
        assert os.sched_getaffinity(crowd.gate.process.pid) == set(allowed)


# -- rolling restarts --------------------------------------------------------------------------


async def test_rolling_restarts_under_load_fail_no_request(
    tmp_path: Path, postgres_url: str, long: bool
) -> None:
    """Clients do what HTTP says: on a connection that had served and was reset they ask once more."""
    rounds = 100 if long else 5
    async with run_crowd(tmp_path, postgres_url) as crowd:
        before = crowd.pids()
        async with Load(crowd) as clients:
            for number in range(1, rounds + 1):
                await renewed(crowd, number)
        assert clients.failures == []
        assert set(clients.statuses) <= {200, 404}, clients.statuses
        assert clients.statuses[200] > 100 * rounds
        assert not set(before) & set(crowd.pids())
        # Who is busy is told that the answer is the last one of the connection.
        assert clients.count("last") >= rounds
        # To be reset is for those who are idle; a client that asks all the time is hardly ever.
        assert clients.count("again") <= rounds, clients.count("again")
        assert '"level":"error"' not in crowd.text()
        counts = ", ".join(f"{clients.count(name)} {name}" for name in ("last", "again", "late"))
        print(f"{clients.statuses} answers; {counts}")


async def test_new_workers_have_the_keys_that_are_there_now(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        old = crowd.gate.token()
        (tmp_path / "data" / "jwt.secret").unlink()
        ask = ("token", "--sub", "me", "--scope", "devices:read")
        new = (await tidegate(*ask, data=tmp_path / "data")).out.strip()
        assert (await crowd.gate.get("/v1/devices", token=new)).status == 401
        await renewed(crowd)
        for _ in range(10):
            async with await Raw.open(crowd.port) as connection:
                assert (await connection.ask(request("GET", "/v1/devices", token=new))).status == 200
                assert (await connection.ask(request("GET", "/v1/devices", token=old))).status == 401


async def test_a_successor_that_does_not_start_leaves_the_worker_before_in_place(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        before, secret = crowd.workers(), tmp_path / "data" / "jwt.secret"
        good = secret.read_text()
        async with Load(crowd) as clients:
            secret.write_text("short")
            crowd.gate.signal(signal.SIGHUP)
            await crowd.logged("a successor did not start; the workers before serve on")
            assert crowd.workers() == before
            secret.write_text(good)
            await renewed(crowd)
            assert not set(crowd.pids()) & {pid for (pid,) in before.values()}
        assert clients.failures == []
        assert set(clients.statuses) <= {200, 404}, clients.statuses


async def test_streams_of_a_worker_that_is_renewed_end_with_a_position(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        async with connect(crowd.gate) as ws:
            await ws.follow(1, ">")
            crowd.gate.signal(signal.SIGHUP)
            end = await ws.end()
            assert end.code == 1001
            assert end.reason
        async with connect(crowd.gate) as ws:
            await ws.follow(1, ">", since=end.reason)
        await crowd.logged(RENEWED)


# -- ending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_workers_finish_what_they_have_accepted(
    tmp_path: Path, postgres_url: str, number: signal.Signals
) -> None:
    """Promise 10. Half of each body comes after the signal, and there are streams."""
    body = b'{"metric": "m", "value": 1}'
    async with run_crowd(tmp_path, postgres_url) as crowd:
        token, writes = crowd.gate.token(), []
        for device in range(20):
            writes.append(await Raw.open(crowd.port))
            await writes[-1].send(request("POST", f"/v1/devices/d{device}/readings", body, token=token)[:-10])
        events = [await Raw.open(crowd.port) for _ in range(10)]
        for stream in events:
            await stream.send(request("GET", "/v1/events?match=>", token=token))
            await stream.reader.readuntil(b"event: recovery")
        async with connect(crowd.gate) as first, connect(crowd.gate) as second:
            ending = asyncio.create_task(ended(crowd, number))
            for ws in (first, second):
                assert (await ws.end()).code == 1001
            for write in writes:
                await write.send(body[-10:])
                answer = await write.answer()
                assert (answer.status, answer.closing) == (200, True)
            for stream in events:
                assert b"event: position" in await stream.ended()
            assert await ending < 10
        for connection in (*writes, *events):
            connection.leave()


async def test_a_body_that_never_ends_holds_the_end_up_for_no_longer_than_allowed(
    tmp_path: Path, postgres_url: str
) -> None:
    assert load({}).shutdown_timeout < END_WITHIN < EXIT_WITHIN < 10
    async with (
        run_crowd(tmp_path, postgres_url, SHUTDOWN_TIMEOUT="4s") as crowd,
        await Raw.open(crowd.port) as connection,
    ):
        lines = ("Content-Length: 100",)
        path = "/v1/devices/d/readings"
        await connection.send(request("POST", path, token=crowd.gate.token(), headers=lines))
        assert 3.5 < await ended(crowd) < 10


async def test_the_end_comes_also_in_the_middle_of_a_rolling_restart(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        for extra in range(2):
            crowd.gate.signal(signal.SIGHUP)
            await until(lambda: len(crowd.pids()) > 2, what="a successor")
            if extra:
                break
            await crowd.logged(RENEWED)
        pids = children(crowd.gate.process.pid)
        assert await ended(crowd) < 10
        assert len(pids) == 3
        assert not any(map(alive, pids))
        assert "Traceback" not in crowd.text()


async def test_workers_end_when_their_parent_was_killed(tmp_path: Path, postgres_url: str) -> None:
    body = b'{"metric": "m", "value": 1}'
    async with run_crowd(tmp_path, postgres_url) as crowd, await Raw.open(crowd.port) as connection:
        pids = crowd.pids()
        data = request("POST", "/v1/devices/d/readings", body, token=crowd.gate.token())
        await connection.send(data[:-10])
        await asyncio.sleep(0.1)
        crowd.gate.signal(signal.SIGKILL)
        await crowd.logged("the parent has gone", 2)
        await connection.send(data[-10:])
        assert (await connection.answer()).status == 200
        await until(lambda: not any(map(alive, pids)), 10, "all workers have ended")
        # Another gate can have the port.
        with socket.create_server(("127.0.0.1", crowd.port)):
            pass
