"""Promise 5: who does not read costs a bounded amount of memory, is told where to go on, and harms nobody."""

import asyncio
import signal
from pathlib import Path

from tests.raw import until
from tests.reliability.following import WIRES, Clients, Place, Trace
from tests.reliability.gates import Gates, memory
from tests.reliability.record import Wish, differences, stored
from tests.running import GateProcess, samples

FOLLOWERS, FOLLOWERS_LONG = 150, 1000
QUEUE, WINDOW = 256 << 10, 1 << 20
# What is written while some do not read: readings per batch and their size. Were all of it kept for each of
# them, that would be 120 MB.
BATCHES, BULK, TEXT = 40, 500, 1000
# Bytes of a batch on its way to a follower: two that are larger than the queue may wait beside it.
BATCH = BULK * (TEXT + 200)
# What the process may grow by besides: the page cache of SQLite has 32 MiB, requests and commits the rest.
SLACK = 56 << 20


def batch(number: int) -> list[dict[str, object]]:
    """Readings for those who follow everything, and behind them one for all."""
    first = number * (BULK + 1) + 1
    text = "x" * TEXT
    items: list[dict[str, object]] = [
        {"device": "bulk", "metric": "m", "ts": ts, "value": f"{ts} {text}"}
        for ts in range(first, first + BULK)
    ]
    return [*items, {"device": "small.a", "metric": "m", "ts": first + BULK, "value": number}]


async def figure(gate: GateProcess, name: str) -> float:
    """A figure of /metrics."""
    return samples((await gate.get("/metrics")).body)[name]


async def falls_to(gate: GateProcess, name: str, value: float) -> None:
    """Wait until a figure is down."""
    async with asyncio.timeout(20):
        while await figure(gate, name) > value:
            await asyncio.sleep(0.05)


async def test_who_stops_reading_is_told_so_and_resumes_exactly_while_all_others_get_everything(
    tmp_path: Path, long: bool, port: int
) -> None:
    """Two kinds of them: some read again in time to be told (4408), some long after they were cut off."""
    place = Place(port)
    gates = Gates(tmp_path / "data", place, STREAM_QUEUE=str(QUEUE), STREAM_WINDOW=str(WINDOW))
    slow, deaf, full = ([(wire, Trace(Wish([">"]))) for wire in WIRES] for _ in range(3))
    count = FOLLOWERS_LONG if long else FOLLOWERS
    good = [(WIRES[n % 3], Trace(Wish(["small.>"]))) for n in range(count)]
    everybody = slow + deaf + full + good
    async with gates.one() as gate, Clients(place) as clients:
        late = [await clients.connect(*one, buffer=65536) for one in slow]
        lost = [await clients.connect(*one, buffer=65536) for one in deaf]
        for one in full + good:
            await clients.connect(*one)
        await gates.write(batch(0))
        await until(lambda: all(trace.record and trace.record[-1].value == 0 for _, trace in everybody))
        before = most = memory(gate)
        for connection in late + lost:
            connection.pause()

        idle = len(slow + deaf)
        dropped, told, queued = 'tidegate_stream_dropped_total{policy="disconnect"}', False, 0.0
        for number in range(1, BATCHES):
            await gates.write(batch(number))
            # At the speed of those who read: the promise is for them.
            await until(lambda: all(trace.record[-1].value == number for _, trace in full))  # noqa: B023
            queued = max(queued, await figure(gate, "tidegate_stream_queue_bytes"))
            most = max(most, memory(gate))
            if not told and await figure(gate, dropped) == idle:
                # Those who read on in time are told; the others are cut off a while later.
                for connection in late:
                    connection.resume()
                await asyncio.gather(*(connection.closed for connection in late))
                told = True
        print(f"{(most - before) >> 20} MiB more, {int(queued) >> 10} KiB in queues")
        assert told
        assert await figure(gate, dropped) == idle
        assert queued <= idle * (QUEUE + 2 * BATCH)
        assert most - before <= idle * (QUEUE + 2 * BATCH) + WINDOW + SLACK

        # Nothing is kept for them any more.
        assert [trace.codes for wire, trace in slow if wire != "sse"] == [[4408], [4408]]
        for transport, wires in (("websocket", ("json", "msgpack")), ("sse", ("sse",))):
            there = sum(wire in wires for wire, _ in full + good)
            await falls_to(gate, f'tidegate_stream_followers{{transport="{transport}"}}', there)
        for connection in lost:
            connection.resume()
        await asyncio.gather(*(connection.closed for connection in lost))
        for _, trace in slow + deaf:
            assert 0 < len(trace.record) < BATCHES * BULK, "it has read everything: the test tells nothing"

        for one in slow + deaf:
            await clients.connect(*one)
        await gates.write(batch(BATCHES))
        await until(lambda: all(trace.record[-1].value == BATCHES for _, trace in everybody), within=40)
        gates.end(gate, signal.SIGTERM)
        await clients.closed()
    log = await asyncio.to_thread(stored, tmp_path / "data")
    assert len(log) == (BATCHES + 1) * (BULK + 1)
    for wire, trace in everybody:
        assert trace.start == 0
        assert differences(trace.record, log, trace.wish, 0) == [], wire
