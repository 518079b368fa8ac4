"""Promise 1 against kill -9: what was answered with 200 is there after a restart, once."""

import asyncio
import json
import random
from itertools import count
from pathlib import Path

import aiohttp
import apsw
import pytest

from storage.log import parse_position
from tests.reliability.history import Batch, Stored, faults
from tests.running import GateProcess, run_process

ROUNDS, ROUNDS_LONG = 20, 200
WRITERS = 6
# The longest time that a gate gets to work before it is killed, in seconds.
LIFE = 0.3


class Writer:
    """Sends one batch after the other to its own device; sends again what was not answered."""

    def __init__(self, device: str, seed: int, values: "count[int]") -> None:
        self.device = device
        self.batches: list[Batch] = []
        self._random = random.Random(seed)
        self._times = count(1)
        self._values = values

    async def run(self, gate: GateProcess) -> None:
        """Write until the gate is gone."""
        while True:
            if not self.batches or self.batches[-1].acked:
                size = self._random.choice((1, 1, 5, 20))
                values = {next(self._times): next(self._values) for _ in range(size)}
                self.batches.append(Batch(self.device, values))
            batch = self.batches[-1]
            items = [{"metric": "m", "ts": ts, "value": value} for ts, value in batch.values.items()]
            try:
                answer = await gate.write(self.device, *items)
            except (aiohttp.ClientError, ConnectionError):
                return
            assert answer.status == 200, answer
            assert answer.json["accepted"] + answer.json["duplicates"] == len(items), answer
            assert answer.json["accepted"] in (0, len(items)), answer
            batch.acked = True


async def whole_log(gate: GateProcess) -> list[Stored]:
    answer = await gate.get("/v1/readings?since=earliest&time=ms", headers={"Accept": "application/x-ndjson"})
    assert answer.status == 200
    return [Stored(**json.loads(line)) for line in answer.body.splitlines()]


def integrity(data: Path) -> list[str]:
    connection = apsw.Connection(str(data / "tidegate.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [row[0] for row in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()


async def test_what_was_answered_survives_kill_9_at_any_moment_once_and_in_order(
    tmp_path: Path, long: bool
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    moments = random.Random(seed)
    data = tmp_path / "data"
    values = count(1)
    writers = [Writer(f"d{number}", seed + number, values) for number in range(WRITERS)]
    epochs = set()
    rounds = ROUNDS_LONG if long else ROUNDS
    for number in range(rounds + 1):
        async with run_process(data) as gate:
            log = await whole_log(gate)
            assert faults((batch for writer in writers for batch in writer.batches), log) == [], (
                f"seed {seed}"
            )
            assert await asyncio.to_thread(integrity, data) == ["ok"]
            position = (await gate.get("/v1/readings?since=earliest&limit=1")).json["next"]
            epochs.add(parse_position(position).epoch)
            assert len(epochs) == 1, f"round {number}"
            if number == rounds:
                break
            writing = [asyncio.create_task(writer.run(gate)) for writer in writers]
            await asyncio.sleep(moments.uniform(0, LIFE))
            gate.process.kill()
            await gate.ended()
            await asyncio.gather(*writing)
    acked = sum(batch.acked for writer in writers for batch in writer.batches)
    assert acked > rounds, "the gate was killed before it did anything"


# -- the checker itself ------------------------------------------------------------------------

BATCHES = [Batch("a", {1: 11, 2: 12}, True), Batch("a", {3: 13}, True), Batch("b", {1: 21, 2: 22}, False)]
SOUND = [Stored(offset, "a", "m", ts, 10 + ts) for offset, ts in ((1, 1), (2, 2), (3, 3))]
UNANSWERED = [Stored(4, "b", "m", 1, 21), Stored(5, "b", "m", 2, 22)]


def changed(log: list[Stored], index: int, **fields: int) -> list[Stored]:
    reading = log[index]
    whole = {name: getattr(reading, name) for name in reading.__struct_fields__} | fields
    return [*log[:index], Stored(**whole), *log[index + 1 :]]


@pytest.mark.parametrize("log", [SOUND, SOUND + UNANSWERED])
def test_the_checker_finds_nothing_where_nothing_is_wrong(log: list[Stored]) -> None:
    assert faults(BATCHES, log) == []


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        ([], "2 of 2 are missing"),
        (SOUND[:2], "1 of 1 are missing"),
        (SOUND + UNANSWERED[:1], "1 of 2 are missing"),
        ([*SOUND[:1], SOUND[2]], "not contiguous"),
        ([*SOUND, Stored(4, "a", "m", 3, 14)], "a 3 is stored 2 times"),
        ([*SOUND, Stored(4, "a", "m", 4, 13)], "the value 13 is stored 2 times"),
        ([*SOUND, Stored(4, "a", "m", 9, 19)], "never sent"),
        (changed(SOUND, 0, value=99), "should have the value 11"),
        (changed(changed(SOUND, 0, value=12), 1, value=11), "should have the value 11"),
        (changed(changed(SOUND, 0, ts=2, value=12), 1, ts=1, value=11), "stands before"),
        (changed(SOUND, 2, offset=5), "not contiguous"),
        (SOUND[::-1], "not contiguous"),
    ],
    ids=[
        "all lost", "one lost", "half a batch", "a hole", "a time doubled", "a value doubled", "invented",
        "another value", "values swapped", "order swapped", "a gap", "reversed",
    ],
)  # fmt: skip
def test_the_checker_finds_what_is_planted(log: list[Stored], fault: str) -> None:
    assert any(fault in found for found in faults(BATCHES, log)), faults(BATCHES, log)
