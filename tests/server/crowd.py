"""A gate of several workers to test against, and clients that behave as HTTP says."""

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.raw import Answer, Raw, request
from tests.running import PATIENCE, GateProcess, run_logged, samples

# Seconds of silence that a connection has at the end of a gate. The gate's own number is not asked: a smaller
# one would go unnoticed.
LIVELY = 0.5
_SLOT = re.compile(r'"slot":([0-9]+)')


class Crowd:
    """A gate as a process, its workers, and what all of them log."""

    def __init__(self, gate: GateProcess, log: Path) -> None:
        self.gate = gate
        self.port = gate.port
        self._log = log

    def workers(self) -> dict[int, list[int]]:
        """The process ids of the workers by slot, the older one first."""
        found: dict[int, list[int]] = {}
        for pid in children(self.gate.process.pid):
            with suppress(OSError):
                slot = _SLOT.search(Path(f"/proc/{pid}/cmdline").read_text())
                if slot is not None:
                    found.setdefault(int(slot[1]), []).append(pid)
        return found

    def pids(self) -> list[int]:
        """Those of all workers."""
        return [pid for pids in self.workers().values() for pid in pids]

    def text(self) -> str:
        """Everything that was logged."""
        return self._log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What was logged, a line each."""
        return [json.loads(line) for line in self.text().splitlines()]

    async def logged(self, message: str, count: int = 1, within: float = PATIENCE) -> None:
        """Wait until this was logged so often."""
        await until(lambda: self.text().count(f'"message":"{message}"') >= count, within, message)

    async def replaced(self, killed: Sequence[int], count: int = 2) -> None:
        """Wait until all slots are served, and none by these."""

        def served() -> bool:
            return not set(killed) & set(self.pids()) and len(self.pids()) == count

        await until(served, 30, f"{killed} are replaced")
        await self.serving(count)

    async def serving(self, count: int) -> None:
        """Wait until so many workers serve, as the parent sees it."""
        async with asyncio.timeout(30):
            while (await self.figures())["tidegate_workers"] != count:
                await asyncio.sleep(0.05)

    async def figures(self, path: str = "/metrics") -> dict[str, float]:
        """The figures of /metrics, by name and labels as they stand there."""
        async with asyncio.timeout(PATIENCE):
            # A slot may be without its worker just then.
            while (reply := await self.gate.get(path)).status == 503:
                await asyncio.sleep(0.05)
        assert reply.status == 200, reply
        return samples(reply.body)


@asynccontextmanager
async def run_crowd(
    directory: Path, database: str, workers: int = 2, **environment: str
) -> AsyncIterator[Crowd]:
    """A gate of several workers on a free port; afterwards none of them is left."""
    log = directory / "log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    settings = {"DATABASE_URL": database, "WORKERS": str(workers), **environment}
    left: list[int] = []
    try:
        async with run_logged(directory / "data", descriptor, settings) as gate:
            crowd = Crowd(gate, log)
            yield crowd
            left = crowd.pids()
        # They notice that their parent was killed.
        await until(lambda: not any(map(alive, left)), PATIENCE, f"{left} have ended")
    finally:
        os.close(descriptor)


def children(pid: int) -> list[int]:
    """The processes that a process has started, the oldest first."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether a process runs, stopped ones included."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: Any, within: float = PATIENCE, what: object = "") -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}") from None


class Client:
    """A keep-alive connection that is opened anew when it has ended, one request at a time.

    As RFC 9112, 9.3.1 has it, a request is sent once more if the connection, which had served before, ends
    without a byte of an answer. `again`: how often that was; `last`: answers that said `Connection: close`.
    `late`: how often the connection had been silent, new or not, for so long that a gate which closes may
    end it; that is the fault of a machine that let the client stand still.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._raw: Raw | None = None
        # When the connection was opened or had its last request, and the seconds from then to the next one.
        self._since = self._silence = 0.0
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.again = self.last = self.late = 0

    async def ask(self, data: bytes) -> Answer | None:
        """The answer; None if there was none, which is kept among the failures."""
        try:
            while True:
                new = self._raw is None
                if self._raw is None:
                    self._since = time.monotonic()
                    self._raw = await Raw.open(self._port)
                answer = await self._once(self._raw, data)
                if answer is not None:
                    return answer
                if self._silence > LIVELY:
                    self.late += 1
                elif new:
                    raise ConnectionResetError("no answer on a new connection")
                else:
                    self.again += 1
        except (OSError, EOFError, TimeoutError) as error:
            self.failures.append(repr(error))
            self.leave()
            return None

    async def _once(self, raw: Raw, data: bytes) -> Answer | None:
        """The answer; None if the connection has ended without one."""
        since, self._since = self._since, time.monotonic()
        try:
            try:
                await raw.send(data)
            finally:
                self._silence = time.monotonic() - since
            answer = await raw.answer()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            self.leave()
            return None
        except ConnectionError:
            self.leave()
            return None
        self.statuses[answer.status] += 1
        if answer.closing:
            self.last += 1
            self.leave()
        return answer

    def leave(self) -> None:
        """Close the connection."""
        if self._raw is not None:
            self._raw.leave()
            self._raw = None


class Load:
    """Clients that ask on and on: half of them keep their connections, half write."""

    def __init__(self, crowd: Crowd, clients: int = 12, pause: float = 0.005) -> None:
        self.clients = [Client(crowd.port) for _ in range(clients)]
        self._token = crowd.gate.token()
        self._pause = pause
        self._stop = asyncio.Event()
        self.acked: set[tuple[str, int]] = set()

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._run(n, client)) for n, client in enumerate(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number: int, client: Client) -> None:
        device, ts = f"d{number}", 0
        while not self._stop.is_set():
            ts += 1
            writes, keeps = number % 2 == 0, number % 4 < 2
            path = f"/v1/devices/{device}/{'readings' if writes else 'latest'}"
            body = json.dumps({"metric": "m", "ts": ts, "value": ts}).encode() if writes else None
            answer = await client.ask(request("POST" if writes else "GET", path, body, token=self._token))
            if writes and answer is not None and answer.status == 200:
                self.acked.add((device, ts))
            if not keeps:
                client.leave()
            await asyncio.sleep(self._pause)
        client.leave()

    @property
    def failures(self) -> list[str]:
        """What went wrong."""
        return [failure for client in self.clients for failure in client.failures]

    @property
    def statuses(self) -> Counter[int]:
        """How all requests were answered."""
        return sum((client.statuses for client in self.clients), Counter())

    def count(self, name: str) -> int:
        """The sum of a figure of the clients."""
        return sum(getattr(client, name) for client in self.clients)
