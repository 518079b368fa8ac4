"""The writer of the shared log: one message for each commit, which never leaves the lock held meanwhile."""

import asyncio
import itertools
import secrets
from typing import Any

import msgspec
from msgspec import Struct

from storage import errors
from storage.log import LogState
from storage.models import Appended, Batch, Draft, Outcome, Reading, Result, Write
from storage.postgres.names import Name, Names
from storage.postgres.partitions import Partitions
from storage.postgres.pool import Pool
from storage.postgres.values import check_text, encode_values, flags, numbers, texts

_APPEND = (
    "SELECT * FROM tidegate.append(%s, %s, %s, %s, %s, %s, "
    "%s::integer[], %s::bigint[], %s::double precision[], %s::smallint[], %s::text[], "
    "%s::integer[], %s::integer[], %s::integer[], %s::integer[], %s::bigint[], "
    "%s::text[], %s::text[], %s::text[], %s::bigint[], %s::integer[])"
)
_APPEND_EXACTLY = (
    "SELECT tidegate.append_exactly(%s, %s, %s, %s, %s, %s::text[], %s::text[], "
    "%s::integer[], %s::bigint[], %s::double precision[], %s::smallint[], %s::text[], "
    "%s::integer[], %s::bigint[], %s::boolean[], %s::text[], %s::text[], %s::text[])"
)
_SETTLE = "SELECT * FROM tidegate.settle(%s, %s, %s, %s, %s)"
_TIMES = "SELECT ts FROM tidegate.read_log(%s, %s, %s) ORDER BY log_offset"

# Seconds in which a commit is answered. Then its writers are told that nobody knows, and `settle` asks.
DEADLINE = 1.8
# How often a commit is tried anew because something changed meanwhile, before it is given up.
TRIES = 8


class _Answer(Struct):
    """What `append_exactly` tells; see migrations/0002_log.sql."""

    verdict: str
    epoch: str = ""
    head: int = 0
    floor: int = 0
    generation: int = 0
    ids: list[int | None] = []
    results: list[tuple[str, int, int, tuple[int, ...], int]] = []
    places: list[int] = []
    times: list[int] = []


_answers = msgspec.json.Decoder(_Answer)


class _Given:
    """Times to give in one series: so far `count`, the last one at least `least`."""

    __slots__ = ("count", "least", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.count = 0
        self.least = 0


class Columns:
    """The readings of some writes, column by column, as if all were new, and what PostgreSQL is told of them.

    Of a generation of names: who has them sent later than another commit is told if it is over.
    """

    __slots__ = (
        "arguments",
        "devices",
        "drafts",
        "fresh",
        "generation",
        "given",
        "least",
        "series",
        "slots",
        "steps",
    )

    def __init__(self, writes: list[Write], names: Names) -> None:
        self.generation = names.generation
        self.drafts: list[Draft] = []
        self.series: list[int] = []
        # The wanted time, or the least that the gate may give.
        self.least: list[int] = []
        # Series that get times, and of each reading which of them (0: none) and how far from its newest.
        self.given: dict[int, _Given] = {}
        self.slots: list[int] = []
        self.steps: list[int] = []
        # Names not known yet, with the negative numbers that stand for their ids.
        self.fresh: dict[Name, int] = {}
        # device -> (received, place) of its newest write
        self.devices: dict[str, tuple[int, int]] = {}
        for write in writes:
            self._add(write, names.by_name)
        # Of `append`, from the series on.
        self.arguments = self._encoded()

    def _add(self, write: Write, known: dict[Name, int]) -> None:
        readings, received = write.readings, write.received
        series, least, slots, steps = self.series, self.least, self.slots, self.steps
        self.drafts += readings
        seen = received, len(self.drafts)
        last = ""
        for device, metric, wanted, _ in readings:
            id = known.get((device, metric)) or self._fresh(device, metric)
            series.append(id)
            if device != last:
                self.devices[device] = seen
                last = device
            if wanted is None:
                given = self.given.get(id) or self._give(id)
                given.count = step = given.count + 1
                given.least = ts = max(given.least + 1, received)
                least.append(ts)
                slots.append(given.slot)
                steps.append(step)
            else:
                least.append(wanted)
                slots.append(0)
                steps.append(0)

    def _fresh(self, device: str, metric: str) -> int:
        return self.fresh.setdefault((device, metric), -len(self.fresh) - 1)

    def _give(self, id: int) -> _Given:
        given = self.given[id] = _Given(len(self.given) + 1)
        return given

    def _encoded(self) -> tuple[Any, ...]:
        values = encode_values([draft[3] for draft in self.drafts])
        given, fresh = self.given, self.fresh
        return (
            numbers(self.series),
            numbers(self.least),
            *values,
            numbers(self.slots) if given else None,
            numbers(self.steps) if given else None,
            numbers(list(given)) if given else None,
            numbers([g.count for g in given.values()]) if given else None,
            numbers([g.least for g in given.values()]) if given else None,
            texts(device for device, _ in fresh) if fresh else None,
            texts(metric for _, metric in fresh) if fresh else None,
            texts(self.devices),
            numbers([received for received, _ in self.devices.values()]),
            numbers([place for _, place in self.devices.values()]),
        )

    def times(self, given: list[int] | None) -> list[int]:
        """The times of all readings; `given`: the newest of each series before."""
        if not given:
            return self.least
        columns = zip(self.least, self.slots, self.steps, strict=True)
        return [max(least, given[slot - 1] + step) if slot else least for least, slot, step in columns]


class Writer:
    """Appends to the log over one connection. Its calls must not overlap.

    `state`: as of the last answer of the database. Commits of a writer are numbered, so that it can ask
    later what became of one; `settle` does, and also makes the writer known at first.
    """

    def __init__(
        self, pool: Pool, names: Names, partitions: Partitions, state: LogState, *, synchronous: bool
    ) -> None:
        self._pool = pool
        self._names = names
        self._partitions = partitions
        self._synchronous = synchronous
        self._id = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        # The number of the last commit whose outcome is known, and the writes of the one whose is not.
        self._number = 0
        self._unsettled: list[Write] | None = []
        self.state = state

    @property
    def unsettled(self) -> bool:
        """Whether the outcome of a commit is not known: nothing is appended until `settle` has told."""
        return self._unsettled is not None

    def prepare(self, writes: list[Write]) -> Columns | None:
        """What can be made ready of a commit before its turn; None if they must go the long way."""
        if any(write.idempotency is not None for write in writes):
            return None
        try:
            return Columns(writes, self._names)
        except errors.Refused:
            # Whose fault it is shows when they are appended.
            return None

    async def append(self, writes: list[Write], columns: Columns | None) -> Appended:
        """Commit all writes, of which `prepare` made the columns, in one transaction.

        Whatever goes wrong is a result; where the database refuses a row only the culprit fails.
        """
        try:
            return await self._append(writes, columns)
        except errors.Refused:
            pass
        except errors.StorageError as error:
            return Appended([error] * len(writes))
        faults = [_fault(write) for write in writes]
        rest = [write for write, fault in zip(writes, faults, strict=True) if fault is None]
        if not rest:
            return Appended([fault for fault in faults if fault is not None])
        try:
            appended = await self._append(rest, None)
        except errors.StorageError as error:
            return Appended([error if fault is None else fault for fault in faults])
        told = iter(appended.results)
        return Appended([next(told) if fault is None else fault for fault in faults], appended.batch)

    async def settle(self, deadline: float | None = None) -> Appended | None:
        """Learn what became of the commit whose outcome is not known: None if it did not happen.

        Raises what kept the database from answering.
        """
        number = self._number + 1
        row = (await self._pool.fetch(_SETTLE, (*self._known(), self._id, number), deadline))[0]
        epoch, head, floor, generation, first, last, answer = row
        told = None
        if self._unsettled and first is not None:
            if answer is not None:
                told = self._told(self._unsettled, _answers.decode(answer), epoch)
            else:
                place = first - 1, last, last - first + 1
                times = [ts for (ts,) in await self._pool.fetch(_TIMES, place, deadline)]
                told = self._stored(self._unsettled, first - 1, times, epoch)
        self._number, self._unsettled = number, None
        self._names.follow(generation)
        self.state = LogState(epoch, head, floor)
        return told

    def _known(self) -> tuple[bool, str, int]:
        return self._synchronous, self.state.epoch, self.state.head

    async def _append(self, writes: list[Write], columns: Columns | None) -> Appended:
        """One transaction, tried anew as long as what is remembered turns out to be old. StorageError.

        Without columns the long way.
        """
        self._names.trim()
        end = self._loop.time() + DEADLINE
        for _ in range(TRIES):
            if self._unsettled is not None:
                raise errors.Unavailable("the end of the last commit is not known yet; nothing was stored")
            left = end - self._loop.time()
            try:
                if columns is None:
                    told = await self._append_exactly(writes, left)
                else:
                    told, taken = await self._append_new(writes, columns, left)
                    if told is None:
                        columns = None if taken else Columns(writes, self._names)
            except errors.Timeout:
                self._unsettled = writes
                left = end - self._loop.time()
                if left < DEADLINE / 4:
                    raise
                try:
                    told = await self.settle(left)
                except errors.StorageError as error:
                    reason = "the connection was lost at the commit; the write may be stored or not"
                    raise errors.Timeout(reason) from error
            if told is not None:
                return told
        raise errors.Unavailable("what is stored changes all the time; nothing of this was")

    async def _append_new(
        self, writes: list[Write], columns: Columns, deadline: float
    ) -> tuple[Appended | None, bool]:
        """The short way, for readings that are all new; None if it cannot be gone (True: at all)."""
        names = self._names
        known = *self._known(), columns.generation, self._id, self._number + 1
        row = await self._pool.fetch(_APPEND, (*known, *columns.arguments), deadline)
        verdict, epoch, head, floor, generation, ids, given = row[0]
        if verdict == "stale":
            names.follow(generation)
            return None, False
        if verdict == "fenced":
            await self._enter(deadline)
            return None, False
        if verdict == "taken":
            return None, True
        self._number += 1
        if ids and generation == names.generation:
            names.learn(zip(columns.fresh, ids, strict=True))
        self.state = LogState(epoch, head + len(columns.drafts), floor)
        return self._stored(writes, head, columns.times(given), epoch), False

    async def _append_exactly(self, writes: list[Write], deadline: float) -> Appended | None:
        """The long way, for anything; None if it must be gone again."""
        series, arguments = _exact_arguments(writes)
        row = await self._pool.fetch(
            _APPEND_EXACTLY, (*self._known(), self._id, self._number + 1, *arguments), deadline
        )
        answer = _answers.decode(row[0][0])
        if answer.verdict == "fenced":
            await self._enter(deadline)
            return None
        self._number += 1
        self._names.follow(answer.generation)
        self._names.learn((name, id) for name, id in zip(series, answer.ids, strict=True) if id is not None)
        told = self._told(writes, answer, answer.epoch)
        head = answer.head if told.batch is None else told.batch.last
        self.state = LogState(answer.epoch, head, answer.floor)
        return told

    async def _enter(self, deadline: float) -> None:
        """Make this writer known where it is not, or not any more."""
        self._unsettled = []
        await self.settle(deadline)

    def _stored(self, writes: list[Write], head: int, times: list[int], epoch: str) -> Appended:
        """All readings are stored, at these times, and follow `head` in the log that now has this epoch."""
        if len(times) != sum(len(write.readings) for write in writes):
            # Committed, and by now swept: there is nothing to publish.
            return Appended([errors.Timeout("the write was stored and removed") for _ in writes])
        results: list[Result] = []
        drafts: list[Draft] = []
        for write in writes:
            drafts += write.readings
            results.append(Outcome(len(write.readings), 0, (), head + len(drafts)))
        self._partitions.note(times)
        return Appended(results, _batch(head, drafts, times, epoch))

    def _told(self, writes: list[Write], answer: _Answer, epoch: str) -> Appended:
        """What an answer of `append_exactly` says of these writes, in the log that now has this epoch."""
        results: list[Result] = []
        for verdict, accepted, duplicates, conflicts, offset in answer.results:
            if verdict == "reused":
                results.append(errors.KeyReused("this Idempotency-Key was used with another body"))
            elif verdict == "wrong":
                results.append(errors.Refused("the database refuses a value"))
            else:
                results.append(Outcome(accepted, duplicates, conflicts, offset))
        if not answer.times:
            return Appended(results)
        self._partitions.note(answer.times)
        drafts = [draft for write in writes for draft in write.readings]
        stored = [drafts[place - 1] for place in answer.places]
        return Appended(results, _batch(answer.head, stored, answer.times, epoch))


def _exact_arguments(writes: list[Write]) -> tuple[list[Name], tuple[Any, ...]]:
    """Of `append_exactly`, from the names on; and the names."""
    places: dict[Name, int] = {}
    drafts = [draft for write in writes for draft in write.readings]
    named = [places.setdefault((draft[0], draft[1]), len(places) + 1) for draft in drafts]
    keys = [write.idempotency for write in writes]
    return list(places), (
        texts(device for device, _ in places),
        texts(metric for _, metric in places),
        numbers(named),
        numbers([draft[2] for draft in drafts]),
        *encode_values([draft[3] for draft in drafts]),
        numbers([len(write.readings) for write in writes]),
        numbers([write.received for write in writes]),
        flags(write.strict for write in writes),
        texts(None if key is None else key.principal for key in keys),
        texts(None if key is None else key.key for key in keys),
        texts(None if key is None else key.digest.hex() for key in keys),
    )


def _batch(head: int, drafts: list[Draft], times: list[int], epoch: str) -> Batch:
    """These readings at these times, following `head` in the log of this epoch."""
    columns = zip(itertools.count(head + 1), drafts, times, strict=False)
    readings = [
        Reading(offset, device, metric, ts, value) for offset, (device, metric, _, value), ts in columns
    ]
    return Batch(head + 1, head + len(readings), readings, epoch)


def _fault(write: Write) -> errors.Refused | None:
    """What in a write cannot be sent to the database at all."""
    try:
        encode_values([draft[3] for draft in write.readings])
        if write.idempotency is not None:
            check_text(write.idempotency.principal)
            check_text(write.idempotency.key)
    except errors.Refused as error:
        return error
    return None
