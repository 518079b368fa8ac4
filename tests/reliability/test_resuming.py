"""Promise 4 at its edges: crashes right behind a commit, long silence, values that are held back."""

import asyncio
import random
import signal
from itertools import count
from pathlib import Path

import pytest

from handlers.live import streams
from tests.raw import until
from tests.reliability.following import WIRES, Clients, Place, Trace, offset
from tests.reliability.gates import Gates
from tests.reliability.record import Wish, differences, stored
from tests.running import run_gate

CRASHES, CRASHES_LONG = 4, 40


def item(device: str, value: int | str, ts: int | None = None) -> dict[str, object]:
    return {"device": device, "metric": "m", "ts": value if ts is None else ts, "value": value}


# -- the last batch before a crash -------------------------------------------------------------


async def test_the_last_batch_before_kill_9_reaches_those_who_had_it_and_those_who_had_not(
    tmp_path: Path, long: bool, port: int
) -> None:
    """Half of the followers read nothing from before the last batch on: they must get it from the next gate.

    Killed in turn when the batch is answered, and when the first follower has it, which may be before that.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chance, values, place = random.Random(seed), count(1), Place(port)
    gates = Gates(tmp_path / "data", place)
    readers, deaf = ([(wire, Trace(Wish(["a.>"]), "earliest")) for wire in WIRES] for _ in range(2))
    everybody = readers + deaf
    written = 0
    for number in range(CRASHES_LONG if long else CRASHES):
        async with gates.one() as gate, Clients(place) as clients:
            for one in readers:
                await clients.connect(*one)
            closing = [await clients.connect(*one) for one in deaf]
            await until(lambda: all(len(trace.record) == written for _, trace in everybody))  # noqa: B023
            # The batch is to come live.
            await until(lambda: all(trace.live for wire, trace in everybody if wire != "sse"))
            for connection in closing:
                connection.pause()
            size = chance.choice((1, 5, 50))
            batch = [item("a.b", next(values)) for _ in range(size)]
            writing = asyncio.create_task(gate.post("/v1/readings", batch))
            if number % 2:
                await until(lambda: any(len(trace.record) > written for _, trace in readers))  # noqa: B023
            else:
                assert (await writing).status == 200
            gates.end(gate, signal.SIGKILL)
            await gate.ended()
            await asyncio.gather(writing, return_exceptions=True)
            for connection in closing:
                connection.lose()
            await clients.closed()
        assert all(len(trace.record) == written for _, trace in deaf)
        written += size
    async with gates.one(), Clients(place) as clients:
        for one in everybody:
            await clients.connect(*one)
        await until(lambda: all(len(trace.record) >= written for _, trace in everybody))
    log = await asyncio.to_thread(stored, tmp_path / "data")
    assert len(log) == written
    for _, trace in everybody:
        assert differences(trace.record, log, trace.wish, 0) == [], f"seed {seed}"


# -- rare matches ------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES)
async def test_who_has_rare_matches_resumes_from_a_recent_position(
    tmp_path: Path, wire: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not long:
        monkeypatch.setattr(streams, "QUIET", 0.2)
        monkeypatch.setattr(streams, "SWEEP", 0.05)
        monkeypatch.setattr(streams, "TICK", 0.05)
    # So small that what is resumed from the old position comes from the database.
    async with run_gate(tmp_path / "data", STREAM_WINDOW="64KiB") as gate:
        trace = Trace(Wish(["rare.>"]), "earliest")
        async with Clients(Place(gate.port, gate.token())) as clients:
            await clients.connect(wire, trace)
            await gate.post("/v1/readings", [item("rare.a", 1)])
            await until(lambda: trace.record)
            for first in range(0, 5000, 1000):
                await gate.post("/v1/readings", [item("common", first + n) for n in range(1000)])
            # It is told of what passes though nothing of it is for it.
            await until(lambda: offset(trace.position) == 5001, within=40)
            await clients.lose()
            await gate.post("/v1/readings", [item("common", 10_000), item("rare.b", 2)])
            counts = gate.gate.live.recoveries.counts
            before = dict(counts)
            await clients.connect(wire, trace)
            await until(lambda: len(trace.record) == 2)
            assert [(row.device, row.offset) for row in trace.record] == [("rare.a", 1), ("rare.b", 5003)]
            assert counts["recovered", "memory"] == before["recovered", "memory"] + 1
            assert counts["recovered", "database"] == before["recovered", "database"]


# -- values that are held back -----------------------------------------------------------------


@pytest.mark.parametrize("death", [None, signal.SIGTERM, signal.SIGKILL], ids=str)
async def test_who_conflates_and_comes_back_gets_the_value_that_was_held_back(
    tmp_path: Path, port: int, death: signal.Signals | None
) -> None:
    place = Place(port)
    gates = Gates(tmp_path / "data", place)
    traces = [(wire, Trace(Wish(["a.>"]), "earliest")) for wire in WIRES]
    exact = Trace(Wish(["a.>"]), "earliest")
    async with gates.one() as gate, Clients(place) as clients:
        for wire, trace in traces:
            await clients.connect(wire, trace, min_interval="1h")
        await clients.connect("json", exact)
        await gates.write([item("a.x", 1)])
        await until(lambda: all(trace.record for _, trace in traces))
        # Two that come too soon: the second replaces the first.
        await gates.write([item("a.x", 2)])
        await gates.write([item("a.x", 3)])
        # Another series passes by, with a position before what is held back.
        await gates.write([item("a.y", 4)])
        await until(lambda: all(len(trace.record) == 2 for _, trace in traces))
        await until(lambda: len(exact.record) == 4)
        for wire, trace in traces:
            assert [row.value for row in trace.record] == [1, 4], wire
            assert offset(trace.position) < 3, wire
        if death is None:
            await clients.lose()
            await _come_back(clients, traces)
        else:
            gates.end(gate, death)
            await clients.closed()
            # Neither does the word that is said at the end go beyond it.
            assert all(offset(trace.position) < 3 for _, trace in traces)
    if death is not None:
        async with gates.one(), Clients(place) as clients:
            await _come_back(clients, traces)


async def _come_back(clients: Clients, traces: list[tuple[str, Trace]]) -> None:
    for wire, trace in traces:
        await clients.connect(wire, trace, min_interval="1h")
    for wire, trace in traces:
        await until(lambda trace=trace: trace.record[-1].value == 4 and len(trace.record) > 2)
        newest = {row.device: row.value for row in sorted(trace.record, key=lambda row: row.ts)}
        assert newest == {"a.x": 3, "a.y": 4}, wire


@pytest.mark.parametrize(("wire", "death"), [("json", None), ("msgpack", signal.SIGTERM)], ids=str)
async def test_who_reads_too_slowly_and_conflates_gets_the_newest_of_each_series_after_coming_back(
    tmp_path: Path, port: int, wire: str, death: signal.Signals | None
) -> None:
    """The connection ends while much is kept back; the last position shown is safe to resume from."""
    place = Place(port)
    gates = Gates(tmp_path / "data", place, STREAM_QUEUE="256KiB")
    trace = Trace(Wish(["a.>"]), "earliest")
    written, text = 8_000, "x" * 1000
    async with gates.one() as gate, Clients(place) as clients:
        connection = await clients.connect(wire, trace, buffer=65536, overflow="conflate")
        await until(lambda: trace.live)
        connection.pause()
        for first in range(0, written, 500):
            await gates.write([item(f"a.d{ts % 20}", f"{ts} {text}", ts) for ts in range(first, first + 500)])
        if death is not None:
            # All streams are ended in one turn.
            witness = await clients.connect("json", Trace(Wish(["nothing"])))
            gates.end(gate, death)
            await witness.closed
        # It reads what the kernel has kept, or a part of it.
        connection.resume()
        await until(lambda: len(trace.record) > 100)
        if death is None:
            connection.lose()
        await clients.closed()
    log = await asyncio.to_thread(stored, tmp_path / "data")
    newest = {row.device: row for row in log}
    seen = len(trace.record)
    missing = [row for row in newest.values() if row not in trace.record]
    assert len(log) == written
    assert missing, "nothing was kept back: the test tells nothing"
    assert all(row.offset > offset(trace.position) for row in missing)
    assert trace.codes == ([] if death is None else [1001])
    place.up.clear()
    async with gates.one(), Clients(place) as clients:
        await clients.connect(wire, trace, overflow="conflate")
        await until(lambda: trace.live and offset(trace.position) == written)
    assert {row.device: row for row in trace.record} == newest
    assert len(trace.record) > seen
    assert len(set(trace.record)) == len(trace.record)
