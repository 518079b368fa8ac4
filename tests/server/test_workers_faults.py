"""Workers that die, hang, or do not start; and what their parent makes of it."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.raw import Raw, request
from tests.running import PATIENCE, samples
from tests.server.crowd import Crowd, Load, run_crowd, until
from tests.server.test_workers import RENEWED, renewed
from tests.servers.programs import free_port

LIVEZ = request("GET", "/livez")


async def answers(crowd: Crowd, count: int) -> list[int]:
    """The statuses that so many new connections get, all within 10 s."""
    connections = [await Raw.open(crowd.port) for _ in range(count)]
    statuses = []
    async with asyncio.timeout(10):
        for connection in connections:
            await connection.send(LIVEZ)
        for connection in connections:
            answer = await connection.answer()
            statuses.append(answer.status)
            if answer.status == 503:
                assert answer.headers["retry-after"] == "1"
                assert answer.closing
                assert answer.code == "overloaded"
                assert await connection.ended() == b""
            connection.leave()
    return statuses


@contextmanager
def broken_keys(directory: Path) -> Iterator[None]:
    """No process can start as long as this lasts."""
    secret = directory / "data" / "jwt.secret"
    good = secret.read_text()
    secret.write_text("short")
    try:
        yield
    finally:
        secret.write_text(good)


async def test_the_queue_of_a_worker_that_is_killed_is_served_by_its_successor(
    tmp_path: Path, postgres_url: str
) -> None:
    """F2: with a socket for each worker alone all of them would be reset."""
    async with run_crowd(tmp_path, postgres_url) as crowd:
        killed = crowd.pids()
        for pid in killed:
            os.kill(pid, signal.SIGSTOP)
        waiting = [await Raw.open(crowd.port) for _ in range(40)]
        for connection in waiting:
            await connection.send(LIVEZ)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        # On a slow machine the successors are not there in time for all of them.
        statuses = [(await connection.answer()).status for connection in waiting]
        assert set(statuses) <= {200, 503}
        for connection in waiting:
            connection.leave()


async def test_workers_are_killed_under_load_and_only_requests_in_flight_fail(
    tmp_path: Path, postgres_url: str, long: bool
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chance, kills = random.Random(seed), 50 if long else 4
    async with run_crowd(tmp_path, postgres_url) as crowd, Load(crowd) as load:
        failed = 0
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            assert len(load.failures) == failed
            pid = chance.choice(crowd.pids())
            os.kill(pid, signal.SIGKILL)
            await crowd.replaced([pid])
            # At most one each, and none later than the death of its worker.
            failed, before = len(load.failures), failed
            assert failed - before <= len(load.clients), load.failures
        assert set(load.statuses) <= {200, 404, 503}
        assert load.statuses[200] > 20 * kills
        print(f"{kills} kills: {load.statuses}, failed in flight {failed}")


async def test_a_slot_without_a_worker_says_so_and_the_others_serve_on(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        workers = crowd.workers()
        with broken_keys(tmp_path):
            os.kill(workers[0][0], signal.SIGKILL)
            statuses = await answers(crowd, 40)
            assert {200, 503} == set(statuses)
            # 503 of the one, 200 of the other, and nothing in between; a body does not hold the answer up.
            path = "/v1/devices/d/readings"
            posts = [await Raw.open(crowd.port) for _ in range(20)]
            for connection in posts:
                await connection.send(request("POST", path, b"[" * 300_000))
            found = {(await connection.answer()).status for connection in posts}
            assert found == {401, 503}
            for connection in posts:
                connection.leave()
            begun = (await crowd.figures())["tidegate_worker_starts_total"]
            await asyncio.sleep(3)
            figures = await crowd.figures()
            # It is tried again and again, ever more slowly: 0.1, 0.2, 0.4 ... seconds and its own time.
            assert figures["tidegate_worker_starts_total"] - begun <= 6
            await crowd.logged("a worker did not start", 3)
            assert figures["tidegate_workers"] == 1
            assert figures["tidegate_worker_refusals_total"] > 0
            assert crowd.workers()[1] == workers[1]
        await crowd.serving(2)
        assert set(await answers(crowd, 40)) == {200}


async def test_a_worker_that_is_stuck_is_replaced(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, WORKER_TIMEOUT="4s") as crowd:
        stuck, other = crowd.workers()[1][0], crowd.workers()[0][0]
        os.kill(stuck, signal.SIGSTOP)
        await crowd.logged("a worker is stuck")
        await crowd.replaced([stuck])
        assert crowd.workers()[0] == [other]
        assert set(await answers(crowd, 20)) == {200}


async def test_a_parent_that_stood_still_kills_nobody_for_it(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, WORKER_TIMEOUT="4s") as crowd:
        before = crowd.workers()
        crowd.gate.signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        assert set(await answers(crowd, 20)) == {200}
        crowd.gate.signal(signal.SIGCONT)
        # It still watches.
        os.kill(before[1][0], signal.SIGSTOP)
        await crowd.replaced(before[1])
        assert crowd.workers()[0] == before[0]
        assert crowd.text().count("a worker is stuck") == 1


async def test_a_worker_that_dies_while_its_successor_starts_leaves_one(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        before = crowd.workers()
        crowd.gate.signal(signal.SIGHUP)
        await until(lambda: len(crowd.pids()) == 3, what="a successor")
        os.kill(before[0][0], signal.SIGKILL)
        await crowd.logged(RENEWED)
        await crowd.serving(2)
        await until(lambda: len(crowd.pids()) == 2, what="two workers")


async def test_a_successor_that_is_killed_while_it_starts_changes_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        before = crowd.workers()
        crowd.gate.signal(signal.SIGHUP)
        await until(lambda: len(crowd.pids()) == 3, what="a successor")
        os.kill((set(crowd.pids()) - {pid for (pid,) in before.values()}).pop(), signal.SIGKILL)
        await crowd.logged("a successor did not start; the workers before serve on")
        assert crowd.workers() == before
        await renewed(crowd)


# -- figures -----------------------------------------------------------------------------------

ANSWERED = 'tidegate_requests_total{method="GET",route="/livez",status="200"}'
METRICS = request("GET", "/metrics")


async def figures(port: int) -> dict[str, float]:
    """Those of /metrics on a new connection; none while it is refused, as where the parent is late."""
    async with await Raw.open(port) as connection:
        answer = await connection.ask(METRICS)
    assert answer.status in (200, 503)
    return samples(answer.body) if answer.status == 200 else {}


async def counted(port: int, total: int, known: int) -> None:
    """Wait until somebody says that so many were answered: of who is late counts what was `known` of him.

    It is never more than that, and never less than before.
    """
    async with asyncio.timeout(PATIENCE):
        while known != total:
            if found := await figures(port):
                known, before = int(found.get(ANSWERED, 0)), known
                assert before <= known <= total


async def test_figures_are_those_of_all_workers_whoever_answers(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, 3) as crowd:
        for total in range(30, 151, 30):
            assert set(await answers(crowd, 30)) == {200}
            await counted(crowd.port, total, total - 30)
            for _ in range(3):
                # Each on a connection of its own, so that different workers answer.
                found = await figures(crowd.port)
                assert not found or found[ANSWERED] == total
        found = await crowd.figures()
        for worker in ("0", "1", "2", "parent"):
            assert found[f'process_resident_memory_bytes{{worker="{worker}"}}'] > 1e6
        assert found["tidegate_workers"] == 3
        # Not three times what each of them says.
        assert sum(value for name, value in found.items() if name.startswith("python_info")) == 1
        assert found["tidegate_connections_open"] >= 1


async def test_counters_never_go_backwards_though_workers_end(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, WORKER_TIMEOUT="5m") as crowd:
        asked = 0
        for _ in range(2):
            assert set(await answers(crowd, 20)) == {200}
            asked += 20
            await renewed(crowd, asked // 20)
            # Nobody has asked before they ended: they have said it themselves.
            assert (await crowd.figures())[ANSWERED] == asked
        killed = crowd.pids()[0]
        os.kill(killed, signal.SIGKILL)
        await crowd.replaced([killed])
        assert (await crowd.figures())[ANSWERED] == asked
        stopped = crowd.pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        # Who does not answer counts with what is known of him. The kernel gives him some of the connections.
        asking = [asyncio.create_task(figures(crowd.port)) for _ in range(20)]
        said: list[float] = []
        async with asyncio.timeout(PATIENCE):
            for answer in asyncio.as_completed(asking):
                if found := await answer:
                    said.append(found[ANSWERED])
                    break
        assert said == [asked]
        os.kill(stopped, signal.SIGCONT)
        await asyncio.gather(*asking)


async def test_metrics_on_a_port_of_their_own_are_those_of_all(tmp_path: Path, postgres_url: str) -> None:
    async with run_crowd(tmp_path, postgres_url, METRICS_PORT=str(free_port())) as crowd:
        port = crowd.gate.settings.metrics_port
        assert set(await answers(crowd, 20)) == {200}
        await counted(port, 20, 0)
        async with Load(crowd, 2):
            crowd.gate.signal(signal.SIGHUP)
            # It is there all the time.
            said = 0
            while not said or f'"message":"{RENEWED}"' not in crowd.text():
                if found := await figures(port):
                    assert found[ANSWERED] == 20
                    said += 1
        assert (await crowd.gate.get("/metrics")).status == 404
