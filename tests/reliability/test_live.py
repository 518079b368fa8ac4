"""Followers under writing load, lost connections and restarts of the gate: each has exactly the log."""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from storage.patterns import parse_pattern
from tests.handlers.sockets import Ended, connect
from tests.handlers.test_sse import listen
from tests.running import GateProcess, run_process

SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
DEVICES = [f"site{site}.dev{dev}" for site in range(5) for dev in range(8)]
# Seconds for everybody to have everything, once nothing breaks any more.
SETTLE = 30.0
SECRET = "a secret that outlives every process of this test"

Identity = tuple[str, str, str]
LOST = (aiohttp.ClientError, ConnectionError, TimeoutError, Ended, EOFError, OSError)


class Site:
    """The gate, whichever process it is at the moment."""

    def __init__(self) -> None:
        self.gate: GateProcess | None = None
        self.up = asyncio.Event()
        # Nobody writes any more and nothing breaks; everybody has what there is.
        self.calm = asyncio.Event()
        self.done = asyncio.Event()


class Watcher:
    """A client that follows some devices, and comes back whenever it lost its stream."""

    def __init__(self, site: Site, chance: random.Random, number: int) -> None:
        self._site = site
        self._chance = chance
        kind = number % 4
        self.pattern = [f"site{number % 5}.>", f"*.dev{number % 8}", chance.choice(DEVICES), ">"][kind]
        self.metric = ["", "t", "u"][number % 3]
        self.sse = number % 2 == 1
        self.position = "earliest"
        self.got: list[Identity] = []
        self.lost = 0

    async def run(self) -> None:
        """Follow until the test is done."""
        while not self._site.done.is_set():
            await self._site.up.wait()
            gate = self._site.gate
            assert gate is not None
            try:
                # Half of the connections break by themselves.
                breaks = self._chance.random() < 0.5 and not self._site.calm.is_set()
                patience = self._chance.uniform(0.1, 4.0) if breaks else 1000.0
                async with asyncio.timeout(patience):
                    await (self._events(gate) if self.sse else self._socket(gate))
            except LOST:
                self.lost += 1
                await asyncio.sleep(self._chance.uniform(0.0, 0.2))

    async def _socket(self, gate: GateProcess) -> None:
        async with connect(gate) as socket:
            command: dict[str, Any] = {"match": [self.pattern], "since": self.position}
            await socket.say(type="subscribe", id=1, **command, **self._metrics())
            while True:
                message = await socket.hear(within=1000.0)
                assert message.get("recovered", True) is True, message
                for item in message.get("items", []):
                    self._take(item)
                if message["type"] == "reading":
                    self._take(message)
                self.position = message["position"]

    async def _events(self, gate: GateProcess) -> None:
        query = f"match={self.pattern}" + (f"&metric={self.metric}" if self.metric else "")
        async with listen(gate, query, headers={"Last-Event-ID": self.position}) as events:
            while True:
                event = await events.next(within=1000.0)
                if event.name == "recovery":
                    assert event.data["recovered"] is True
                elif event.name == "reading":
                    self._take(event.data)
                self.position = event.id or self.position

    def _metrics(self) -> dict[str, Any]:
        return {"metrics": [self.metric]} if self.metric else {}

    def _take(self, item: dict[str, Any]) -> None:
        self.got.append((item["device"], item["metric"], item["ts"]))
        self.position = item["position"]

    def expected(self, log: list[Identity]) -> list[Identity]:
        pattern = parse_pattern(self.pattern)
        return [
            entry
            for entry in log
            if pattern.matches(entry[0]) and (not self.metric or entry[1] == self.metric)
        ]


async def write(site: Site, chance: random.Random, writer: int) -> None:
    """Write without pause; what fails is written again, which stores nothing twice."""
    number = 0
    while not site.calm.is_set():
        ts = 1_000_000 * writer + number
        readings = [
            {"device": chance.choice(DEVICES), "metric": chance.choice("tuv"), "value": number, "ts": ts + i}
            for i in range(chance.choice([1, 1, 3, 20, 200]))
        ]
        number += len(readings)
        while not site.calm.is_set():
            await site.up.wait()
            assert site.gate is not None
            try:
                if (await site.gate.post("/v1/readings", readings)).status == 200:
                    break
            except LOST:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)


async def whole_log(gate: GateProcess) -> list[Identity]:
    log: list[Identity] = []
    since = "earliest"
    while True:
        page = (await gate.get(f"/v1/readings?since={since}&limit=1000")).json
        log += [(item["device"], item["metric"], item["ts"]) for item in page["items"]]
        since = page["next"]
        if page["end"]:
            return log


def fault(got: list[Identity], expected: list[Identity]) -> str:
    """What is wrong with the record of a follower; "" if nothing is."""
    for index, (one, other) in enumerate(zip(got, expected, strict=False)):
        if one != other:
            return f"place {index} has {one} instead of {other}"
    return "" if len(got) == len(expected) else f"{len(got)} readings instead of {len(expected)}"


async def test_every_follower_has_exactly_the_log(tmp_path: Path, long: bool) -> None:
    """Promises 3 and 4, with half of the followers reconnecting and the gate killed again and again."""
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    site = Site()
    watchers = [Watcher(site, random.Random(chance.random()), n) for n in range(500 if long else 40)]
    async with asyncio.TaskGroup() as group:
        for watcher in watchers:
            group.create_task(watcher.run())
        for number in range(2):
            group.create_task(write(site, random.Random(chance.random()), number))
        for turn in range(6 if long else 3):
            async with (
                run_process(
                    tmp_path / "data", JWT_SECRET=SECRET, STREAM_WINDOW="64KiB", STREAM_QUEUE="8MiB"
                ) as gate,
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as gate.session,
            ):
                site.gate = gate
                site.up.set()
                last = turn == (5 if long else 2)
                await asyncio.sleep(chance.uniform(1.0, 2.0) if not long else chance.uniform(8.0, 12.0))
                if not last:
                    site.up.clear()
                    gate.signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                    await gate.ended()
                    continue
                site.calm.set()
                log = await _settled(gate, watchers)
                site.done.set()
    faults = {
        f"{watcher.pattern} {watcher.metric} sse={watcher.sse}": found
        for watcher in watchers
        if (found := fault(watcher.got, watcher.expected(log)))
    }
    assert not faults, f"SEED={SEED}: {faults}"
    assert sum(watcher.lost for watcher in watchers) > len(watchers)
    assert len(log) > 100


async def _settled(gate: GateProcess, watchers: list[Watcher]) -> list[Identity]:
    """Wait until everybody has as much as there is; the log."""
    deadline = asyncio.get_running_loop().time() + SETTLE
    while True:
        log = await whole_log(gate)
        behind = [one for one in watchers if len(one.got) < len(one.expected(log))]
        if not behind or asyncio.get_running_loop().time() > deadline:
            return log
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("planted", ["dropped", "doubled", "swapped"])
def test_a_fault_in_a_record_is_found(planted: str) -> None:
    log = [(f"d{n % 3}", "t", str(n)) for n in range(20)]
    got = log.copy()
    if planted == "dropped":
        del got[7:9]
    elif planted == "doubled":
        got[7:7] = got[5:7]
    else:
        got[7], got[8] = got[8], got[7]
    assert fault(log, log) == ""
    assert fault(got, log)


async def test_an_idle_follower_costs_little_memory(tmp_path: Path) -> None:
    """25 KB is promised; what it takes is about a quarter of that."""
    async with run_process(tmp_path / "data") as gate:
        for _ in range(100):
            async with connect(gate) as socket:
                await socket.follow(1, "a")
        before = await asyncio.to_thread(_resident, gate.process.pid)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as gate.session:
            opened = [connect(gate) for _ in range(600)]
            sockets = [await one.__aenter__() for one in opened]
            for socket in sockets:
                await socket.follow(1, "a")
            after = await asyncio.to_thread(_resident, gate.process.pid)
            for one in opened:
                await one.__aexit__(None, None, None)
    assert (after - before) / 600 < 25.0, f"{(after - before) / 600} KB"


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
