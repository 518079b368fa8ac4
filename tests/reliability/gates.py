"""Gates on the same data and port, one after the other, and what writes to whichever there is."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.reliability.following import Place
from tests.running import GateProcess, run_process


class Gates:
    """One gate after the other. `deaths`: the signals that ended them."""

    def __init__(self, data: Path, place: Place, **environment: str) -> None:
        self.place = place
        self.deaths: list[signal.Signals] = []
        self._data = data
        self._environment = environment
        self._gate: GateProcess | None = None

    @asynccontextmanager
    async def one(self) -> AsyncIterator[GateProcess]:
        """The next gate; it is told to go before the end, or it goes then."""
        async with run_process(self._data, PORT=str(self.place.port), **self._environment) as gate:
            self._gate = gate
            self.place.token = gate.token()
            self.place.up.set()
            yield gate
            if not self.place.up.is_set():
                await gate.ended()

    def end(self, gate: GateProcess, number: signal.Signals) -> None:
        """Have it go, or kill it."""
        self.deaths.append(number)
        self.place.up.clear()
        gate.signal(number)

    async def write(self, items: Sequence[dict[str, object]]) -> None:
        """Write to whichever gate there is, until it is answered."""
        while True:
            async with asyncio.timeout(60):
                await self.place.up.wait()
            assert self._gate is not None
            try:
                answer = await self._gate.post("/v1/readings", items)
            except (aiohttp.ClientError, ConnectionError, RuntimeError):
                # It is gone, or the session to it.
                await asyncio.sleep(0.02)
                continue
            if answer.status == 503:
                await asyncio.sleep(0.02)
                continue
            assert answer.status == 200, answer
            assert answer.json["accepted"] + answer.json["duplicates"] == len(items), answer
            return


def memory(gate: GateProcess, field: str = "VmRSS") -> int:
    """Bytes that the process has in memory (VmHWM: the most it ever had)."""
    for line in Path(f"/proc/{gate.process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"the process has no {field}")
