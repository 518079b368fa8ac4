"""`tidegate replay`: writes a CSV of real measurements to a running gate.

Nothing is doubled, however often it is sent: (device, metric, ts) is a reading's identity. How far the gate
has answered is kept beside the CSV (`FILE.csv.DEVICE.progress`), and the next run goes on from there. The
place counts only for the same gate, columns and contents, is put aside when the gate's log was replaced, and
is removed when all is answered for, so that a further run sends all again and finds duplicates.
"""

import asyncio
import io
import math
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from server.replay_csv import REJECTS_SHOWN, Batch, CsvReadings, Reject, ReplayError
from server.replay_place import Bookmark
from server.replay_report import Bar, Latencies, Summary
from server.replay_wire import (
    AGAIN,
    BACKOFF_MAX,
    Answer,
    Fault,
    backoff,
    read_problem,
    refusal,
    rejects_of,
    retry_after,
)
from storage.models import is_device, is_metric

T = TypeVar("T")

BATCH_MAX = 10_000
ANSWER_TIMEOUT = 30.0
SAVE_INTERVAL = 1.0
RESTARTS_MAX = 5


class Refused(ReplayError):
    """The gate will not take it, and sending it again would not help."""

    code = 3


class GaveUp(ReplayError):
    """No answer that helps within the time given."""

    code = 4


class LogReplaced(Exception):
    """The gate's log is another one than it was: what was stored may be gone."""


class Replay(Struct, frozen=True, kw_only=True):
    """What to replay, where and how.

    `ts_column` and `value_columns`: names from the header; by default the first column of times, and all
    others. `metric`: the name for a single value column, by default made from its header. `rate`: readings
    a second, 0 for as fast as the gate answers. `batch`: readings a request, at a given rate no more than a
    tenth of a second's. `tls`: whom to trust, by default whom everybody trusts. `timezone`: what times
    without an offset are in. `patience`: seconds without any progress before giving up. `progress`: where to
    keep the place, by default beside the file.
    """

    file: str
    device: str
    url: str = "http://127.0.0.1:8080"
    token: str = ""
    tls: ssl.SSLContext | bool = True
    metric: str = ""
    ts_column: str = ""
    value_columns: tuple[str, ...] = ()
    rate: float = 0.0
    batch: int = 500
    in_flight: int = 4
    timezone: str = "UTC"
    patience: float = 300.0
    progress: str = ""


async def replay(options: Replay, out: TextIO) -> Summary:
    """Send the file's readings to the gate, telling `out` about it, and return when all are answered for.

    Raises ReplayError (bad options or file, Refused, GaveUp) with what to tell the user; its `code` is an
    exit code. Then, and when cancelled, the summary so far and how to continue stand on `out` already.
    """
    check(options)
    disk = ThreadPoolExecutor(1, "replay")
    try:
        return await _Run(options, out, disk).run()
    finally:
        disk.shutdown(wait=False)


def check(options: Replay) -> None:
    """Raise ReplayError where the options cannot mean anything."""
    if not is_device(options.device):
        raise ReplayError(f'"{options.device}" is no device id: letters, digits, _ and -, joined by dots')
    if options.metric and not is_metric(options.metric):
        raise ReplayError(f'"{options.metric}" is no metric name: up to 64 letters, digits and _ . : / % -')
    if not options.url.startswith(("http://", "https://")):
        raise ReplayError(f'"{options.url}" is no address of a gate, such as http://127.0.0.1:8080')
    if not 1 <= options.batch <= BATCH_MAX:
        raise ReplayError(f"a batch holds 1 to {BATCH_MAX:,} readings")
    if not 0 <= options.rate < math.inf or options.in_flight < 1 or options.patience <= 0:
        raise ReplayError("the rate must be positive, or max")


class _Run:
    def __init__(self, options: Replay, out: TextIO, disk: ThreadPoolExecutor) -> None:
        self._options = options
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._bar = Bar(out, Path(options.file).name)
        self._target = f"{options.url.rstrip('/')}/v1/devices/{options.device}/readings"
        self._started = self._progressed = self._loop.time()
        self._latencies = Latencies()
        self._rejects: list[Reject] = []
        self._accepted = self._duplicates = self._resent = self._rejected = self._retries = self._skipped = 0
        self._trouble = ""
        self._bad: ReplayError | None = None

    async def run(self) -> Summary:
        """Replay the whole file, from its start again when the gate's log was replaced."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=ANSWER_TIMEOUT)
        headers = {"Content-Type": "application/json", "User-Agent": "tidegate-replay"}
        if self._options.token:
            headers["Authorization"] = f"Bearer {self._options.token}"
        connector = aiohttp.TCPConnector(limit=self._options.in_flight, ssl=self._options.tls)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            for _ in range(RESTARTS_MAX):
                try:
                    return await self._replay(session)
                except LogReplaced:
                    self._bar.say("The gate's log was replaced: starting again from the beginning.")
                    await self._on_disk(self._bookmark.drop)
        raise Refused("the gate's log is replaced again and again")

    async def _replay(self, session: aiohttp.ClientSession) -> Summary:
        await self._on_disk(self._open)
        try:
            await self._on_disk(self._resume)
            self._bar.say(f"{self._options.file}: {self._csv.layout()}")
            drawing = asyncio.create_task(self._draw())
            try:
                await self._send_all(session)
            finally:
                drawing.cancel()
            await self._on_disk(self._bookmark.drop)
            summary = self._summary(complete=True)
            self._bar.say(str(summary))
            return summary
        except (ReplayError, asyncio.CancelledError):
            await self._on_disk(self._bookmark.save)
            self._bar.say(f"{self._summary(complete=False)}\n{self._bookmark}")
            raise
        finally:
            await self._on_disk(self._csv.close)

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._disk, work)

    def _open(self) -> None:
        o = self._options
        self._csv = CsvReadings(Path(o.file), o.ts_column, o.value_columns, o.metric, o.timezone)
        path = Path(o.progress or f"{o.file}.{o.device}.progress")
        self._bookmark = Bookmark(path, (self._target, self._csv.layout(), o.timezone))

    def _resume(self) -> None:
        if self._bookmark.load():
            place = self._bookmark.place
            if not self._csv.skip(place.readings, place.digest):
                # The file is another one by now.
                self._csv.close()
                self._open()
        self._skipped = self._bookmark.place.readings

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        rate = self._options.rate
        limit = min(self._options.batch, max(1, int(rate / 10))) if rate else self._options.batch
        free = asyncio.Semaphore(self._options.in_flight)
        start, sent = self._loop.time(), 0
        self._bad = None
        try:
            async with asyncio.TaskGroup() as group:
                while batch := await self._next(limit):
                    # The schedule stands whatever the answers take: what is late is caught up with.
                    due = start + sent / rate if rate else 0.0
                    await asyncio.sleep(max(0.0, due - self._loop.time()))
                    await free.acquire()
                    task = group.create_task(self._deliver(session, batch, due or self._loop.time()))
                    task.add_done_callback(lambda _: free.release())
                    sent += len(batch.items)
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from None
        if self._bad:
            raise self._bad

    async def _next(self, limit: int) -> Batch | None:
        try:
            return await self._on_disk(lambda: self._csv.batch(limit))
        except ReplayError as error:
            # Kept for later: what stands before the bad line is on its way.
            self._bad = error
            return None

    async def _deliver(self, session: aiohttp.ClientSession, batch: Batch, due: float) -> None:
        """Send one batch until it is answered for."""
        began = self._loop.time()
        attempt = 0
        while True:
            status, body, trouble, wait = await self._post(session, batch)
            if not trouble:
                break
            attempt += 1
            self._retries += 1
            self._trouble = f"retrying: {trouble}"
            await self._wait(max(wait, backoff(attempt)), max(began, self._progressed), trouble)
        self._settle(batch, status, body, again=attempt > 0)
        self._progressed = self._loop.time()
        self._latencies.add(self._progressed - due)
        self._trouble = ""

    async def _post(self, session: aiohttp.ClientSession, batch: Batch) -> tuple[int, bytes, str, float]:
        """Send once: status and body, or why to try again and the seconds that the gate asks for."""
        try:
            # A stream: aiohttp warns of whole bodies above 1 MiB.
            data = io.BytesIO(batch.body)
            async with session.post(self._target, data=data, allow_redirects=False) as response:
                body = await response.read()
        except (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL) as error:
            raise Refused(f"{self._options.url}: {error}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, b"", f"{type(error).__name__}: {error}".rstrip(": "), 0.0
        if response.status not in AGAIN:
            return response.status, body, "", 0.0
        problem = read_problem(body)
        text = problem.detail or problem.title or response.reason or ""
        return response.status, body, f"{response.status} {text}", retry_after(response.headers)

    async def _wait(self, delay: float, since: float, trouble: str) -> None:
        waited = self._loop.time() - since
        if waited + delay > self._options.patience:
            asked = f" and asked to wait {delay:,.0f} s more" if delay > BACKOFF_MAX else ""
            raise GaveUp(f"no progress for {waited:,.0f} s{asked}: {trouble}")
        await asyncio.sleep(delay)

    def _settle(self, batch: Batch, status: int, body: bytes, *, again: bool) -> None:
        """Count what became of a batch; Refused where the answer is about more than its items."""
        if status == 200:
            try:
                answer = msgspec.json.decode(body, type=Answer)
            except msgspec.MsgspecError:
                raise Refused(f"{self._options.url} answers, but is no gate: {body[:80]!r}") from None
            if not self._bookmark.note_epoch(answer.epoch):
                raise LogReplaced
            self._accepted += answer.accepted
            self._duplicates += answer.duplicates
            self._resent += answer.duplicates if again else 0
            self._count_rejected(answer.rejected_count, answer.rejected, batch)
        else:
            problem = read_problem(body)
            if status not in (409, 422) or not problem.about_items(batch):
                raise Refused(refusal(status, problem, batch, self._options.device))
            self._count_rejected(len(batch.items), problem.errors, batch)
        self._bookmark.answered(batch)

    def _count_rejected(self, count: int, faults: list[Fault], batch: Batch) -> None:
        self._rejected += count
        self._rejects += rejects_of(faults, batch)[: REJECTS_SHOWN - len(self._rejects)]

    async def _draw(self) -> None:
        drawn = saved = self._loop.time()
        while True:
            await asyncio.sleep(min(self._bar.interval, SAVE_INTERVAL))
            now = self._loop.time()
            if now - drawn >= self._bar.interval:
                drawn = now
                share = self._bookmark.place.size / self._csv.total
                self._bar.draw(share, self._sent(), self._sent() / (now - self._started), self._trouble)
            if now - saved >= SAVE_INTERVAL:
                saved = now
                await self._on_disk(self._bookmark.save)

    def _sent(self) -> int:
        return self._accepted + self._duplicates + self._rejected

    def _summary(self, *, complete: bool) -> Summary:
        options, counts, clock = self._options, self._csv.counts, self._csv.clock
        quantile = self._latencies.quantile
        rejects = sorted([*self._csv.rejects, *self._rejects], key=lambda reject: reject.line)
        return Summary(
            file=options.file,
            device=options.device,
            url=options.url,
            layout=self._csv.layout(),
            timezone=options.timezone,
            rows=counts.rows,
            sent=self._sent(),
            accepted=self._accepted,
            duplicates=self._duplicates,
            resent=self._resent,
            rejected=self._rejected + counts.rejected,
            skipped=self._skipped,
            empty=counts.empty,
            repeated=counts.repeated,
            naive=clock.naive,
            ambiguous=clock.ambiguous,
            nonexistent=clock.nonexistent,
            retries=self._retries,
            seconds=self._loop.time() - self._started,
            latencies=(quantile(0.5), quantile(0.95), quantile(0.99), self._latencies.max),
            rejects=tuple(rejects[:REJECTS_SHOWN]),
            complete=complete,
        )
