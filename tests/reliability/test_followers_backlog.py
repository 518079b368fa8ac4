"""Promise 4 for who comes very late: the whole log, once and in order, in bounded memory, in nobody's way."""

import asyncio
import random
import signal
from pathlib import Path

from tests.raw import until
from tests.reliability.following import WIRES, Clients, Connection, Place, Trace
from tests.reliability.gates import Gates, memory
from tests.reliability.record import Wish, differences, stored
from tests.reliability.writing import writer_process

READINGS, READINGS_LONG = 50_000, 1_000_000
BATCH = 5_000
WINDOW = 4 << 20
# What the gate may grow by, however long the log is: the window, the page cache of SQLite (32 MiB), pages and
# queues of the followers on their way.
GROWTH = WINDOW + (60 << 20)
# Seconds that a write may take meanwhile by the gate's fault: half of them, and the longest.
USUAL, LONGEST = 0.2, 2.0
# Readings that must come live before it is over.
WRITTEN = 200
END = -1


async def hesitate(connection: Connection, trace: Trace, chance: random.Random) -> None:
    """Read by fits and starts."""
    while not trace.ended.is_set():
        connection.pause()
        await asyncio.sleep(chance.uniform(0, 0.05))
        connection.resume()
        await asyncio.sleep(chance.uniform(0, 0.05))


async def test_the_whole_log_is_replayed_exactly_while_others_write_and_follow(
    tmp_path: Path, long: bool, port: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    (
        size,
        place,
    ) = READINGS_LONG if long else READINGS, Place(port)
    gates = Gates(tmp_path / "data", place, STREAM_WINDOW=str(WINDOW))
    chance = random.Random(seed)

    async with gates.one() as gate:
        for start in range(1, size, BATCH):
            await gates.write(
                [
                    {"device": f"d{value % 100}", "metric": "m", "ts": value, "value": value}
                    for value in range(start, start + BATCH)
                ]
            )
        gates.end(gate, signal.SIGTERM)

    late = [(wire, Trace(Wish([">"]), "earliest", END)) for wire in (*WIRES, "json")]
    some = [(wire, Trace(Wish(["d7", "end"]), "earliest", END)) for wire in WIRES]
    live = [(wire, Trace(Wish([">"]), "", END)) for wire in WIRES]
    everybody = late + some + live
    # A gate that has nothing in memory yet.
    async with gates.one() as gate, Clients(place) as clients:
        for one in live:
            await clients.connect(*one)
        await until(lambda: all(trace.start == size for _, trace in live))
        before = memory(gate)
        async with (
            writer_process(gate, 10_000_000) as first,
            writer_process(gate, 20_000_000) as second,
        ):
            connections = [await clients.connect(*one) for one in late + some]
            hesitating = asyncio.create_task(hesitate(connections[3], late[3][1], chance))
            await until(
                lambda: all(len(trace.record) > size + WRITTEN for _, trace in late),
                within=150 if long else 90,
            )
        grown = memory(gate, "VmHWM") - before
        await gates.write([{"device": "end", "metric": "m", "ts": 0, "value": END}])
        await until(lambda: all(trace.ended.is_set() for _, trace in everybody))
        await hesitating
        gates.end(gate, signal.SIGTERM)
        await clients.closed()
    log = await asyncio.to_thread(stored, tmp_path / "data")
    for wire, trace in everybody:
        assert trace.start is not None
        assert trace.connections == 1
        assert differences(trace.record, log, trace.wish, trace.start) == [], f"seed {seed}: {wire}"
    assert len(log) > size
    took = sorted(first.took + second.took)
    print(
        f"{len(log)} readings; {grown >> 20} MiB more; {len(took)} writes in "
        f"{1000 * took[len(took) // 2]:.0f} ms, at most {1000 * took[-1]:.0f} ms"
    )
    assert grown <= GROWTH
    assert len(took) > 10
    assert took[len(took) // 2] < USUAL
    assert took[-1] < LONGEST
