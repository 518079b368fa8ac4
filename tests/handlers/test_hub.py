"""The hub against a model: whatever is committed, asked for, read slowly or lost, promises are kept."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from auth.grants import Grants
from auth.principal import Principal, Scope
from auth.tokens import TokenVerifier
from handlers.exchange import Head, Headers, Media, Preferences, Request
from handlers.hub import Hub
from handlers.live import follower, recovery, wires
from handlers.live.follower import Follower
from handlers.live.gap import Gap
from handlers.live.healer import Healer
from handlers.live.recovery import Recoveries
from handlers.live.streams import LiveStream, Streams
from handlers.live.wires import Wires
from handlers.sse import EventStreams
from handlers.websocket import WebSockets
from storage import log as logs
from storage.log import LogPage, LogState
from storage.models import Batch, Latest, Reading, Sample
from storage.patterns import Selection, parse_pattern
from tests.handlers.followers import EventFrames, Frames, Journal, Record, Wish, masked

# Bytes of batches that may come early: some ten readings.
EARLY = 3500
SERIES = [(device, metric) for device in ("a.b", "a.c", "b.c", "b.c.d") for metric in ("t", "u")]


class Sink:
    """A connection whose client reads when the test says so."""

    def __init__(self, got: Callable[[bytes], None]) -> None:
        self._got = got
        self._kept = b""
        self.stream: LiveStream | None = None
        self.stalled = False
        self.gone = False

    def write(self, data: bytes, /) -> None:
        if self.gone:
            return
        if self.stalled:
            self._kept += data
        else:
            self._got(data)

    def pending(self) -> int:
        return len(self._kept)

    def read(self, size: int) -> None:
        """The client reads so many bytes of what is kept for it."""
        data, self._kept = self._kept[:size], self._kept[size:]
        if data:
            self._got(data)
            if not self._kept and self.stream is not None:
                self.stream.drained()

    def hold(self) -> None: ...

    def release(self) -> None: ...

    def close(self) -> None:
        self.gone = not self._kept

    def abort(self) -> None:
        self.gone = True


class JournalLog:
    """Reading the journal as the engine reads the log: later, and a page at a time.

    `journal`: the log as it is; what this process knows of it is what it has learnt.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._known = LogState(journal.epoch, 0, 0)

    def state(self) -> LogState:
        return self._known

    def learn(self) -> None:
        """This process has committed, or was told by the database."""
        self._known = LogState(self.journal.epoch, self.journal.head, 0)

    async def refresh(self) -> LogState:
        await asyncio.sleep(0)
        self.learn()
        await asyncio.sleep(0)
        return self._known

    async def read_from(self, offset: int, until: int, limit: int, selection: Selection) -> LogPage:
        await asyncio.sleep(0)
        found: list[Reading] = []
        journal = self.journal
        until = min(until, journal.head)
        for reading in journal.readings[offset:until]:
            if selection.takes(reading.device, reading.metric):
                found.append(reading)
                if len(found) == limit:
                    break
        await asyncio.sleep(0)
        return LogPage(found, found[-1].offset if len(found) == limit else until, 0, journal.epoch)

    async def latest_page(self, selection: Selection, after: str, limit: int) -> list[Latest]:
        await asyncio.sleep(0)
        devices: dict[str, dict[str, Sample]] = {}
        for r in self.journal.readings:
            if selection.takes_device(r.device) and r.device > after:
                devices.setdefault(r.device, {})[r.metric] = Sample(r.ts, r.value, r.offset)
        return [Latest(device, 0, devices[device]) for device in sorted(devices)[:limit]]


class _Headers:
    def __contains__(self, name: object, /) -> bool:
        return name in self._values

    def __init__(self, **values: str) -> None:
        self._values = {name.replace("_", "-"): value for name, value in values.items()}

    def get(self, name: str, default: str, /) -> str:
        return self._values.get(name, default)

    def getall(self, name: str, default: list[str], /) -> list[str]:
        return [self._values[name]] if name in self._values else default


class World:
    """A hub with everything around it but sockets and a database. `time`: its clock."""

    def __init__(self, *, window: int = 1300, bound: int = 3000) -> None:
        self.journals = {journal.epoch: journal for journal in (Journal(),)}
        self.journal = next(iter(self.journals.values()))
        self.time = 1000.0
        self.failure: Exception | None = None
        self.hub = Hub(
            0,
            epoch=self.journal.epoch,
            window=window,
            now=lambda: self.time,
            alarm=lambda _: None,
            observe=lambda _: None,
        )
        self.hub.gap = Gap(lambda: self.time, EARLY)
        self.hub.replaced = self._replaced
        self.log = JournalLog(self.journal)
        log = cast("logs.Log", self.log)
        self.healer = Healer(self.hub, log, told=lambda: True, found=lambda _: None, passed=lambda: None)
        self.recoveries = Recoveries(self.hub, log, self.healer)
        verifier = cast("TokenVerifier", type("Verifier", (), {"generation": 0}))
        self.streams = Streams(verifier, lambda: self.time, lambda: self.time)
        wires = self.wires = Wires(self.journal.epoch)
        self.sockets = WebSockets(
            self.hub,
            self.recoveries,
            self.streams,
            wires,
            self._no_write,
            None,
            (),
            bound,
            lambda: 0,
            deflate=True,
        )
        self.events = EventStreams(self.hub, self.recoveries, self.streams, wires, bound, lambda: 2000)
        grants = Grants((parse_pattern(">"),))
        self._principal = Principal("s", "i", "s", Scope.READINGS_READ, grants, "", 0.0, 1e12)

    def request(self, query: dict[str, list[str]], **headers: str) -> Request:
        head = Head(
            "GET",
            "/",
            "",
            {},
            query,
            cast("Headers", _Headers(**headers)),
            Media.JSON,
            Media.NONE,
            Preferences(),
            self._principal,
        )
        return Request(head, b"", "id", "127.0.0.1", 0)

    def commit(self, series: list[tuple[str, str]]) -> None:
        """This process commits."""
        batch = self.journal.append(series)
        self.log.learn()
        self.hub.keep_to(self.log.state())
        self.hub.publish(batch)

    def replace(self, keep: int) -> None:
        """Another log takes the place of this one, which has only its first readings."""
        self.journal = Journal(len(self.journals), self.journal.readings[:keep])
        self.journals[self.journal.epoch] = self.journal
        self.log.journal = self.journal

    def receive(self, batch: Batch) -> None:
        """Another process tells what it has committed."""
        if batch.epoch == self.hub.epoch:
            self.hub.publish(batch)

    def _replaced(self, epoch: str) -> None:
        self.streams.log_replaced()
        self.wires.renew(epoch)

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self.hub.ring()

    def _no_write(self, head: Head) -> Any:
        raise AssertionError


class Client:
    """One client on a connection that it may lose, and its wishes over all its connections."""

    def __init__(self, world: World, kind: str) -> None:
        self.world = world
        self.kind = kind
        self.connect()

    def connect(self) -> None:
        """A new connection, without a wish yet."""
        self.record = Record(self.world.journals[self.world.hub.epoch], self._begins)
        self._frames = EventFrames() if self.kind == "sse" else Frames(packed=self.kind == "msgpack")
        self.sink = Sink(self._got)
        self.stream: LiveStream | None = None
        if self.kind != "sse":
            headers = {
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec_WebSocket_Version": "13",
                "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            }
            if self.kind == "msgpack":
                headers["Sec_WebSocket_Protocol"] = "tidegate.msgpack"
            if self.kind == "deflated":
                headers["Sec_WebSocket_Extensions"] = "permessage-deflate"
            self._open(self.world.sockets.open(self.world.request({}, **headers)))

    def _open(self, stream: Any) -> None:
        self.stream = self.sink.stream = stream
        stream.opened(self.sink)

    @property
    def connected(self) -> bool:
        return self.stream is not None and not self.stream.ended

    def _got(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self.record.take(message)
        except Exception as error:
            # The hub would take it for the follower's own.
            if self.world.failure is None:
                error.add_note(f"{self.kind}: {self.record.messages}")
                self.world.failure = error

    def _begins(self, id: int, told: int) -> int:
        assert self.stream is not None
        subscription = self.stream.follower.subscriptions.get(id)
        # Who reads late may read of one that has ended since.
        return told if subscription is None else subscription.start

    def wish(self, wish: Wish, since: str | None, *, latest: bool) -> None:
        """Subscribe; over SSE that is the connection."""
        self.record.wishes[wish.id] = wish
        wish.since = since
        world, state = self.world, self.world.log.state()
        if self.kind == "sse":
            # Who asks makes the gate look at what it knows.
            self.record.journal = world.journals[state.epoch]
        if since is None:
            wish.start = world.hub.head if world.hub.epoch == state.epoch else state.head
        else:
            wish.start = 0 if since == "earliest" else int(since.rpartition("-")[2])
        if self.kind == "sse":
            query = {"match": list(wish.match), "metric": list(wish.metrics)}
            if wish.interval:
                query["min_interval"] = [wish.interval]
            if latest:
                query["latest"] = ["true"]
            headers = {} if since is None else {"Last_Event_ID": since}
            self._open(self.world.events.open(self.world.request(query, **headers)))
        else:
            assert self.stream is not None
            command = wish.command(since) | ({"latest": True} if latest else {})
            self.stream.received(masked(command, packed=self.kind == "msgpack"))

    def lose(self) -> tuple[list[Wish], str]:
        """The connection breaks: what was not read is gone. The wishes, and what to resume from."""
        self.sink.gone = True
        if self.stream is not None:
            self.stream.lost()
        self.record.resumable()
        wishes = [wish for wish in self.record.wishes.values() if wish.confirmed]
        return wishes, self.record.position


patterns = st.lists(st.sampled_from([">", "a.>", "*.c", "a.b", "b.>", "b.*.d"]), min_size=1, max_size=2)
metrics = st.sampled_from([[], [], ["t"], ["u", "t"]])


class HubMachine(RuleBasedStateMachine):
    """Commits, wishes, slow readers, lost connections and batches, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run(self._make())
        self.clients: list[Client] = []
        self.numbers = 0
        # Batches of other nodes that were not received yet.
        self.under_way: list[Batch] = []

    async def _make(self) -> None:
        self.world = World()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def do(self, work: Callable[[], object]) -> None:
        """On the loop, without giving the tasks a turn."""

        async def once() -> None:
            work()

        self.run(once())

    # -- the log -------------------------------------------------------------------------------

    @rule(series=st.lists(st.sampled_from(SERIES), min_size=1, max_size=6), times=st.integers(1, 3))
    def commit(self, series: list[tuple[str, str]], times: int) -> None:
        for _ in range(times):
            self.do(partial(self.world.commit, series))

    @rule(series=st.lists(st.sampled_from(SERIES), min_size=1, max_size=4))
    def another_node_commits(self, series: list[tuple[str, str]]) -> None:
        self.under_way.append(self.world.journal.append(series))

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data(), again=st.booleans())
    def a_batch_is_received(self, data: Any, again: bool) -> None:
        """In any order, and perhaps not for the last time."""
        index = data.draw(st.integers(0, len(self.under_way) - 1))
        batch = self.under_way[index] if again else self.under_way.pop(index)
        self.do(lambda: self.world.receive(batch))

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data())
    def a_batch_is_lost(self, data: Any) -> None:
        self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    @rule()
    def the_healer_looks(self) -> None:
        self.run(self.world.healer.look())

    @precondition(lambda self: len(self.world.journals) < 4)
    @rule(data=st.data(), noticed=st.booleans())
    def the_log_is_replaced(self, data: Any, noticed: bool) -> None:
        """By one that lacks what came last; this process may not know it for a while."""
        self.world.replace(data.draw(st.integers(0, self.world.journal.head)))
        if noticed:
            self.run(self.world.healer.look())

    # -- clients -------------------------------------------------------------------------------

    @precondition(lambda self: len(self.clients) < 5)
    @rule(kind=st.sampled_from(["json", "json", "msgpack", "deflated"]))
    def connect(self, kind: str) -> None:
        self.do(lambda: self.clients.append(Client(self.world, kind)))

    @precondition(lambda self: any(c.connected and c.kind != "sse" for c in self.clients))
    @rule(
        data=st.data(),
        match=patterns,
        metrics=metrics,
        overflow=st.sampled_from(["disconnect", "disconnect", "drop_oldest", "conflate"]),
        interval=st.sampled_from(["", "", "2s", "5s"]),
        latest=st.booleans(),
    )
    def subscribe(
        self, data: Any, match: list[str], metrics: list[str], overflow: str, interval: str, latest: bool
    ) -> None:
        client = self._client(data, lambda c: c.connected and c.kind != "sse")
        self.numbers += 1
        wish = Wish(self.numbers, match, metrics, overflow, interval)
        since = self._since(data)
        self.do(lambda: client.wish(wish, since, latest=latest))

    @precondition(lambda self: len(self.clients) < 5)
    @rule(
        data=st.data(),
        match=patterns,
        metrics=metrics,
        interval=st.sampled_from(["", "2s"]),
        latest=st.booleans(),
    )
    def follow_events(
        self, data: Any, match: list[str], metrics: list[str], interval: str, latest: bool
    ) -> None:
        since = self._since(data)

        def begin() -> None:
            client = Client(self.world, "sse")
            self.clients.append(client)
            client.wish(Wish(0, match, metrics, "disconnect", interval), since, latest=latest)

        self.do(begin)

    @precondition(lambda self: any(c.connected and c.record.wishes and c.kind != "sse" for c in self.clients))
    @rule(data=st.data())
    def unsubscribe(self, data: Any) -> None:
        client = self._client(data, lambda c: c.connected and c.record.wishes and c.kind != "sse")
        id = data.draw(st.sampled_from(sorted(client.record.wishes)))
        frame = masked({"type": "unsubscribe", "id": id}, packed=client.kind == "msgpack")
        # A client that does not read does not know yet which of its wishes have ended.
        self.do(lambda: client.sink.read(1 << 20))
        if client.connected and id in client.record.wishes:
            self.do(lambda: cast("LiveStream", client.stream).received(frame))

    @precondition(lambda self: bool(self.clients))
    @rule(data=st.data())
    def stop_reading(self, data: Any) -> None:
        self._client(data).sink.stalled = True

    @precondition(lambda self: bool(self.clients))
    @rule(data=st.data(), size=st.sampled_from([1, 100, 700, 5000]))
    def read_some(self, data: Any, size: int) -> None:
        client = self._client(data)
        self.do(lambda: client.sink.read(size))

    @precondition(lambda self: bool(self.clients))
    @rule(data=st.data())
    def read_on(self, data: Any) -> None:
        client = self._client(data)
        self.do(lambda: self._read_all(client))

    @precondition(lambda self: bool(self.clients))
    @rule(data=st.data())
    def lose_the_connection_and_resume(self, data: Any) -> None:
        client = self._client(data)

        def again() -> None:
            wishes, position = client.lose()
            client.connect()
            for wish in wishes:
                following = Wish(wish.id, wish.match, wish.metrics, wish.overflow, wish.interval)
                client.wish(following, position, latest=False)

        self.do(again)

    # -- time ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 16.0]))
    def time_passes(self, seconds: float) -> None:
        def tick() -> None:
            self.world.advance(seconds)
            for client in self.clients:
                if client.connected:
                    self._tick(client)

        self.do(tick)

    def _tick(self, client: Client) -> None:
        """Show the position, as after a quiet while."""
        stream = cast("LiveStream", client.stream)
        stream.quiet()

    @rule(turns=st.integers(1, 8))
    def the_loop_turns(self, turns: int) -> None:
        self.run(self._turns(turns))

    async def _turns(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def nothing_has_failed(self) -> None:
        if self.world.failure is not None:
            raise self.world.failure

    def teardown(self) -> None:
        """Everybody reads, all replays end, nothing is held back any more: now all must be there."""
        try:
            for _ in range(200):
                self.run(self.world.healer.look())
                self.run(self._turns(20))
                for client in self.clients:
                    self.do(partial(self._read_all, client))
                self.do(lambda: self.world.advance(1.0))
            self.nothing_has_failed()
            assert self.world.hub.head == self.world.journal.head
            assert self.world.recoveries.running == 0
            for client in self.clients:
                if client.connected:
                    client.record.complete()
                elif client.stream is not None:
                    client.record.resumable()
        finally:
            self.run(self.world.recoveries.close())
            self.run(self.world.healer.close())
            self.loop.close()

    def _read_all(self, client: Client) -> None:
        client.sink.stalled = False
        client.sink.read(1 << 20)

    def _client(self, data: Any, fits: Callable[[Client], Any] = bool) -> Client:
        index: int = data.draw(st.sampled_from([i for i, c in enumerate(self.clients) if fits(c)]))
        return self.clients[index]

    def _since(self, data: Any) -> str | None:
        kind = data.draw(st.sampled_from(["none", "earliest", "position"]))
        if kind == "position":
            # Also one that another node has shown, or of a log that is no more.
            journal = data.draw(st.sampled_from([self.world.journal, *self.world.journals.values()]))
            return f"{journal.epoch}-{data.draw(st.integers(0, journal.head))}"
        return None if kind == "none" else kind


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything so small that a few readings reach its end."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PAGE", 3)
    monkeypatch.setattr(recovery, "SLICE", 5)
    monkeypatch.setattr(recovery, "DEVICES", 2)
    monkeypatch.setattr(follower, "ROOM", 600)
    monkeypatch.setattr(wires, "PAGE_BYTES", 250)


def explore(examples: int, **options: Any) -> None:
    """Let hypothesis look for a way to break a promise."""
    run_state_machine_as_test(
        HubMachine,
        settings=settings(max_examples=examples, stateful_step_count=50, deadline=None, **options),
    )


def test_every_follower_gets_what_it_was_promised(long: bool) -> None:
    explore(3000 if long else 150)


Deliver = Callable[[Hub, Batch], None]


def drops(deliver: Deliver, hub: Hub, batch: Batch) -> None:
    """Every seventh batch is not delivered."""
    if batch.first % 7:
        deliver(hub, batch)


def doubles(deliver: Deliver, hub: Hub, batch: Batch) -> None:
    """Every seventh batch is delivered twice."""
    deliver(hub, batch)
    if not batch.first % 7:
        deliver(hub, batch)


def swaps(deliver: Deliver, hub: Hub, batch: Batch) -> None:
    """The first two readings of a batch change places."""
    first = batch.readings[:2]
    deliver(hub, Batch(batch.first, batch.last, [*reversed(first), *batch.readings[2:]]))


@pytest.mark.parametrize("fault", [drops, doubles, swaps])
def test_a_fault_of_the_hub_is_seen(fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Hub._deliver
    monkeypatch.setattr(Hub, "_deliver", lambda hub, batch: fault(deliver, hub, batch))
    with pytest.raises(AssertionError):
        explore(200, phases=[Phase.generate], database=None)


@pytest.mark.parametrize("silent", [(Streams, "log_replaced"), (Wires, "renew")], ids=["streams", "wires"])
def test_a_log_that_is_replaced_in_silence_is_seen(
    silent: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name = silent
    done = getattr(kind, name)

    def once(part: Any, *arguments: Any) -> None:
        # Wires begin with an epoch.
        if arguments and not hasattr(part, "events"):
            done(part, *arguments)

    monkeypatch.setattr(kind, name, once)
    monkeypatch.setattr(Hub, "break_off", lambda _: None)
    with pytest.raises(AssertionError):
        explore(300, phases=[Phase.generate], database=None)


def test_a_position_too_far_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Follower, "position", lambda self, until=None: self._hub.head if until is None else until
    )
    with pytest.raises(AssertionError):
        explore(200, phases=[Phase.generate], database=None)
