"""Promises 4 and 5 under chaos: followers and gates die at random; nothing is lost, doubled or moved."""

import asyncio
import random
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from msgspec import Struct

from tests.reliability.following import WIRES, Follower, Place, Trace
from tests.reliability.gates import Gates
from tests.reliability.record import Row, Wish, differences, stored

SITES, PLANTS, MACHINES = 6, 4, 5
METRICS = ("t", "u", "v")
# The last reading, which everybody follows.
END_DEVICE, END_METRIC, END = "zz.end", "end", 0


class Chaos(Struct, frozen=True):
    """How much of it. `pause`: the longest a writer waits between two batches; `lives`: the longest that a
    connection lasts for a follower that is killed, `seconds`: for how long altogether.
    """

    followers: int
    writers: int
    restarts: int
    seconds: float
    pause: float
    lives: float


SHORT = Chaos(followers=120, writers=3, restarts=3, seconds=6, pause=0.04, lives=1.5)
LONG = Chaos(followers=500, writers=4, restarts=5, seconds=60, pause=0.1, lives=6)


def machine(chance: random.Random) -> tuple[int, int, int]:
    """Site, plant and number of any machine."""
    return chance.randrange(SITES), chance.randrange(PLANTS), chance.randrange(MACHINES)


def wish(chance: random.Random) -> Wish:
    """Something to follow: mostly little, sometimes everything; the end in any case."""
    forms: list[Callable[[int, int, int], str]] = [
        lambda site, plant, machine: f"s{site}.p{plant}.m{machine}",
        lambda site, plant, machine: f"s{site}.p{plant}.m{machine}",
        lambda site, plant, machine: f"s{site}.p{plant}.>",
        lambda site, plant, machine: f"s{site}.*.m{machine}",
        lambda site, plant, machine: f"*.p{plant}.m{machine}",
        lambda site, plant, machine: f"s{site}.>",
        lambda site, plant, machine: f"*.*.m{machine}",
        lambda site, plant, machine: ">",
    ]
    weights = (8, 8, 8, 8, 8, 4, 2, 1)
    match = [form(*machine(chance)) for form in chance.choices(forms, weights, k=chance.choice((1, 1, 2, 3)))]
    metrics = chance.sample(METRICS, chance.choice((0, 0, 1, 2)))
    return Wish([*match, END_DEVICE], [*metrics, END_METRIC] if metrics else [])


class Writer:
    """Writes one batch after the other, the same again until it is answered. Values are unique."""

    def __init__(self, chance: random.Random, values: "count[int]", pause: float) -> None:
        self.acked: set[int] = set()
        self._chance = chance
        self._values = values
        self._pause = pause

    async def run(self, gates: Gates, stop: asyncio.Event) -> None:
        """Write until told to stop; what is under way then is still answered."""
        chance = self._chance
        while not stop.is_set():
            values = [next(self._values) for _ in range(chance.choice((1, 1, 2, 5, 20)))]
            await gates.write([self._item(value) for value in values])
            self.acked.update(values)
            await asyncio.sleep(chance.uniform(0, self._pause))

    def _item(self, value: int) -> dict[str, object]:
        device = "s{}.p{}.m{}".format(*machine(self._chance))
        return {"device": device, "metric": self._chance.choice(METRICS), "ts": value, "value": value}


async def run_chaos(chaos: Chaos, data: Path, port: int, seed: int) -> tuple[list[Follower], list[Row]]:
    """Let all of them loose; the followers as they ended, and the log."""
    chance = random.Random(seed)
    place = Place(port)
    gates, stop, values = Gates(data, place), asyncio.Event(), count(1)
    writers = [Writer(random.Random(seed + n), values, chaos.pause) for n in range(chaos.writers)]
    followers = []
    for number in range(chaos.followers):
        trace = Trace(wish(chance), chance.choice(("", "", "earliest")), END)
        lives = chaos.lives if number % 2 else None
        own = random.Random(seed + 1000 + number)
        followers.append(Follower(WIRES[number % 3], trace, own, lives))

    async with asyncio.TaskGroup() as group:
        writing = [group.create_task(writer.run(gates, stop)) for writer in writers]
        for follower in followers:
            group.create_task(follower.run(place))
        # Each kind at least once, at random moments.
        deaths = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
        for death in deaths[: chaos.restarts]:
            async with gates.one() as gate:
                await asyncio.sleep(chance.uniform(0.5, 1.5) * chaos.seconds / (chaos.restarts + 1))
                gates.end(gate, death)
        async with gates.one() as gate:
            await asyncio.sleep(chaos.seconds / (chaos.restarts + 1))
            stop.set()
            await asyncio.gather(*writing)
            await gates.write([{"device": END_DEVICE, "metric": END_METRIC, "ts": END, "value": END}])
            async with asyncio.timeout(60):
                await asyncio.gather(*(follower.trace.ended.wait() for follower in followers))
            # Each connection is read to its end: nothing may come behind the last reading.
            place.over = True
            gates.end(gate, signal.SIGTERM)
    log = await asyncio.to_thread(stored, data)
    assert [row.offset for row in log] == list(range(1, len(log) + 1))
    acked = set().union(*(writer.acked for writer in writers))
    assert acked <= {row.value for row in log}
    return followers, log


async def test_every_record_is_the_log_though_followers_and_gates_die_at_random(
    tmp_path: Path, long: bool, port: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chaos = LONG if long else SHORT
    followers, log = await run_chaos(chaos, tmp_path / "data", port, seed)
    for follower in followers:
        trace = follower.trace
        assert trace.start is not None
        assert differences(trace.record, log, trace.wish, trace.start) == [], (
            f"seed {seed}: {follower.wire} {trace.wish} from {trace.start}, {trace.connections} connections"
        )
    assert len(log) > 100 * chaos.writers
    killed = [follower for follower in followers if follower.killed]
    assert len(killed) > chaos.followers // 4
    assert all(follower.trace.resumed >= chaos.restarts // 2 for follower in followers)
    # What was received must be enough to tell: faults that are planted into it are found.
    chance = random.Random(seed)
    for follower in chance.sample(followers, 20):
        trace = follower.trace
        if len(trace.record) > 5:
            for name, broken in planted(trace.record, chance):
                assert differences(broken, log, trace.wish, trace.start or 0), f"{name} in {trace.wish}"
    print(
        f"{len(log)} readings, {sum(len(f.trace.record) for f in followers)} received over "
        f"{sum(f.trace.connections for f in followers)} connections, {len(killed)} of them broke some"
    )


# -- the checker itself ------------------------------------------------------------------------


def planted(record: list[Row], chance: random.Random) -> list[tuple[str, list[Row]]]:
    """The record with a fault each, somewhere."""
    at = chance.randrange(1, len(record) - 2)
    size = chance.randint(1, min(5, len(record) - 1 - at))
    batch, row = record[at : at + size], record[at]
    swapped = [*record[:at], record[at + 1], row, *record[at + 2 :]]
    return [
        ("a dropped batch", record[:at] + record[at + size :]),
        ("a doubled batch", record[: at + size] + batch + record[at + size :]),
        ("a batch again later", record + batch),
        ("a swapped pair", swapped),
        ("the first one lost", record[1:]),
        ("the last one lost", record[:-1]),
        ("another value", [*record[:at], row._replace(value=f"{row.value}"), *record[at + 1 :]]),
        ("another device", [*record[:at], row._replace(device="s0.p0.m9"), *record[at + 1 :]]),
        ("another time", [*record[:at], row._replace(ts=row.ts + 1), *record[at + 1 :]]),
        ("a wrong position", [*record[:at], row._replace(offset=row.offset - 1), *record[at + 1 :]]),
    ]


LOG = [Row(n, f"s{n % 3}.p{n % 2}.m", "tu"[n % 2], n * 1000, n) for n in range(1, 41)]
WISHES = [Wish([">"]), Wish(["s1.>"]), Wish(["*.p1.m"]), Wish(["s1.p0.m", "s2.*.m"]), Wish([">"], ["t"])]


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("wish", WISHES, ids=repr)
def test_the_checker_finds_nothing_in_what_is_exact_and_every_planted_fault(wish: Wish, start: int) -> None:
    due = [row for row in LOG if row.offset > start and wish.takes(row.device, row.metric)]
    assert 5 < len(due) <= 40 - start
    assert differences(due, LOG, wish, start) == []
    for seed in range(50):
        for name, broken in planted(due, random.Random(seed)):
            assert differences(broken, LOG, wish, start), f"{name}, seed {seed}"


def test_the_checker_says_what_is_wrong() -> None:
    wish = Wish(["s1.>"])
    due = wish.of(LOG)
    doubled, lost = differences([*due, due[0]], LOG, wish, 0), differences(due[1:], LOG, wish, 0)
    swapped = differences([due[1], due[0], *due[2:]], LOG, wish, 0)
    foreign = differences([LOG[1], *due], LOG, wish, 0)
    kinds = [found[0].split(", first")[0] for found in (doubled, lost, foreign)]
    assert kinds == ["1 came again", f"1 of {len(due)} were lost", "1 do not belong here"]
    assert swapped[0].startswith("out of order")


@pytest.mark.parametrize(
    ("match", "metrics", "device", "metric", "taken"),
    [
        (["a.>"], [], "a.b.c", "t", True),
        (["a.>"], [], "a", "t", False),
        (["a.*"], [], "a.b.c", "t", False),
        (["a.*.c"], [], "a.b.c", "t", True),
        (["*"], [], "a.b", "t", False),
        ([">"], ["u"], "a", "t", False),
        (["x", "a"], ["t", "u"], "a", "t", True),
        (["a-b"], [], "a-b", "t", True),
        (["a"], [], "ab", "t", False),
    ],
)  # fmt: skip
def test_the_checker_knows_the_patterns(
    match: list[str], metrics: list[str], device: str, metric: str, taken: bool
) -> None:
    assert Wish(match, metrics).takes(device, metric) is taken
