"""Promise 4 over several nodes: two gates on one database, followers that go from one to the other.

Nobody tells a node what the other has committed: it looks for itself. Nodes are killed in turn, one is always
there; whoever followed one that dies goes on at any other with the position that it was shown.
"""

import asyncio
import contextlib
import random
import signal
from itertools import count
from pathlib import Path

from tests.reliability.following import WIRES, Follower, Place, Trace, connect
from tests.reliability.gates import Gates
from tests.reliability.record import differences, stored_in
from tests.reliability.test_followers import END, END_DEVICE, END_METRIC, Writer, wish
from tests.running import PATIENCE
from tests.servers.programs import free_port

NODES = 2
FOLLOWERS, FOLLOWERS_LONG = 60, 300
DEATHS, DEATHS_LONG = 3, 20
# The longest that a connection lasts for a follower that breaks it off itself, and between two deaths.
LIVES, APART = 1.5, 2.5
PAUSE = 0.03


class Roamer(Follower):
    """Comes back to any node that is there."""

    async def roam(self, places: list[Place]) -> None:
        """Follow, lose the connection, come back elsewhere."""
        trace, chance = self.trace, self._chance
        while not places[0].over:
            there = [place for place in places if place.up.is_set()]
            if there:
                with contextlib.suppress(ConnectionError):
                    connection = await connect(chance.choice(there), self.wire, trace)
                    await self._last(connection)
            if trace.failure is not None:
                raise trace.failure
            if not places[0].over:
                await asyncio.sleep(chance.uniform(0, 0.1))


class Node:
    """Gates on one port, one after the other."""

    def __init__(self, data: Path, url: str) -> None:
        data.mkdir()
        self.place = Place(free_port())
        self.gates = Gates(data, self.place, DATABASE_URL=url, JWT_SECRET="s" * 40)
        self.dying = asyncio.Event()
        self.death = signal.SIGKILL

    async def run(self) -> None:
        """Start again whenever it has died."""
        while not self.place.over:
            async with self.gates.one() as gate:
                await self.dying.wait()
                self.dying.clear()
                self.gates.end(gate, self.death)
                await gate.ended()

    async def die(self, death: signal.Signals) -> None:
        """The gate goes; another one takes its place."""
        async with asyncio.timeout(PATIENCE):
            await self.place.up.wait()
            self.death = death
            self.dying.set()


async def test_every_record_is_the_log_though_followers_go_from_node_to_node_and_nodes_die(
    tmp_path: Path, postgres_url: str, long: bool
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chance, values, stop = random.Random(seed), count(1), asyncio.Event()
    nodes = [Node(tmp_path / f"node{number}", postgres_url) for number in range(NODES)]
    places = [node.place for node in nodes]
    writers = [Writer(random.Random(seed + n), values, PAUSE) for n in range(2 * NODES)]
    followers = []
    for number in range(FOLLOWERS_LONG if long else FOLLOWERS):
        trace = Trace(wish(chance), chance.choice(("", "earliest")), END)
        lives = LIVES if number % 2 else None
        followers.append(Roamer(WIRES[number % 3], trace, random.Random(seed + 1000 + number), lives))

    async with asyncio.TaskGroup() as group:
        living = [group.create_task(node.run()) for node in nodes]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(place.up.wait() for place in places))
        writing = [
            group.create_task(writer.run(nodes[n % NODES].gates, stop)) for n, writer in enumerate(writers)
        ]
        for follower in followers:
            group.create_task(follower.roam(places))
        for number in range(DEATHS_LONG if long else DEATHS):
            await asyncio.sleep(chance.uniform(0.3, 1) * APART)
            # The other one must have come back.
            await asyncio.gather(*(place.up.wait() for place in places))
            await nodes[number % NODES].die(chance.choice((signal.SIGKILL, signal.SIGTERM)))
        await asyncio.sleep(APART)
        stop.set()
        await asyncio.gather(*writing)
        end = {"device": END_DEVICE, "metric": END_METRIC, "ts": END, "value": END}
        await nodes[0].gates.write([end])
        async with asyncio.timeout(60):
            await asyncio.gather(*(follower.trace.ended.wait() for follower in followers))
        for node in nodes:
            node.place.over = True
        for node in nodes:
            await node.die(signal.SIGTERM)
        await asyncio.gather(*living)

    log = await asyncio.to_thread(stored_in, postgres_url)
    assert [row.offset for row in log] == list(range(1, len(log) + 1))
    assert set().union(*(writer.acked for writer in writers)) <= {row.value for row in log}
    for follower in followers:
        trace = follower.trace
        assert trace.start is not None
        assert differences(trace.record, log, trace.wish, trace.start) == [], (
            f"seed {seed}: {follower.wire} {trace.wish} from {trace.start}, {trace.connections} connections"
        )
    resumed = sum(follower.trace.resumed for follower in followers)
    assert resumed > len(followers)
    print(f"{len(log)} readings, {resumed} times resumed, {sum(len(f.trace.record) for f in followers)} got")
