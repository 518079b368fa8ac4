"""The console when the network or the gate comes and goes: nothing is missing, and it is told."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.browser import Browser
from tests.handlers.console import READINGS, charted, charts_all, link, live, now, stored, value
from tests.running import GateProcess, run_process

pytestmark = pytest.mark.system

SECRET = "a secret that several gates share, long enough for HS256"


@asynccontextmanager
async def writing(gate: GateProcess, begin: int, count: int) -> AsyncIterator[None]:
    """Writes readings one after the other meanwhile, until the gate does not take them any more."""

    async def write() -> None:
        for n in range(count):
            try:
                await gate.write("d", {"metric": "m", "value": n, "ts": begin + n})
            except aiohttp.ClientError:
                return

    task = asyncio.create_task(write())
    yield
    await task


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_of_the_gate_is_survived_and_no_reading_is_missing(
    tmp_path: Path, browser: Browser, end: signal.Signals
) -> None:
    port, begin = "0", now() - 60_000
    for attempt in range(3):
        async with run_process(tmp_path / "data", PORT=port) as gate:
            if attempt == 0:
                port = str(gate.port)
                await browser.open(link(gate, "d", "m"))
                await live(browser)
            # Before the page is back: what it has missed must come from the log.
            await gate.write("d", *({"metric": "m", "value": n, "ts": begin - n - 1} for n in range(50)))
            begin -= 50
            async with writing(gate, begin + 10_000 * (attempt + 1), 400):
                await live(browser)
                await browser.until(f"return {READINGS}.length > arguments[0]", 20)
            await charts_all(browser, gate, "d", "m")
            async with writing(gate, begin + 10_000 * (attempt + 1) + 5_000, 10_000):
                await browser.until(
                    f"return {READINGS}.length > arguments[0]",
                    len(await charted(browser)) + 20,
                )
                gate.signal(end)
                await gate.ended()
            await browser.until("return document.querySelector('#state').dataset.kind !== 'live'")
    verdicts = await browser.run(
        "return [...document.querySelectorAll('#journal li')]"
        ".map((one) => [one.dataset.stream, one.dataset.verdict])"
    )
    assert sorted(map(tuple, verdicts)) == [
        ("Chart", "live"),
        ("Chart", "recovered"),
        ("Chart", "recovered"),
        ("Devices", "live"),
        ("Devices", "recovered"),
        ("Devices", "recovered"),
    ]


async def test_a_log_that_was_replaced_is_told_and_loaded_anew(tmp_path: Path, browser: Browser) -> None:
    async with run_process(tmp_path / "one", JWT_SECRET=SECRET) as gate:
        port = str(gate.port)
        await gate.write("d", {"metric": "m", "value": 1})
        await browser.open(link(gate, "d", "m"))
        await live(browser)
        await charts_all(browser, gate, "d", "m")
        gate.signal(signal.SIGTERM)
        await gate.ended()
    async with run_process(tmp_path / "two", JWT_SECRET=SECRET, PORT=port) as gate:
        await gate.write("d", {"metric": "m", "value": 2})
        await browser.shows("#journal li[data-verdict='not recovered']", "unknown_epoch")
        await browser.shows("#journal li[data-verdict='not recovered']", "the log of the gate was replaced")
        await value(browser, "d", "m", "2")
        there = await stored(gate, "d", "m")
        await browser.until(f"return {READINGS}.some((one) => one.t === arguments[0])", *there)


class Wire:
    """What lies between browser and gate; it can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, inner_writer))
                    group.create_task(self._pass(inner_reader, writer))
            finally:
                inner_writer.transport.abort()
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_what_was_written_while_the_network_was_away_is_made_up_for(
    browser: Browser, process: GateProcess
) -> None:
    wire = Wire(process.port)
    await wire.mend()
    try:
        begin = now() - 100_000
        await browser.open(link(process, "d", "m").replace(process.url, f"http://127.0.0.1:{wire.port}"))
        await live(browser)
        await process.write("d", {"metric": "m", "value": 1, "ts": begin})
        await charts_all(browser, process, "d", "m")
        await wire.cut()
        await browser.shows("#state", "Away, again in")
        await process.write("d", *({"metric": "m", "value": n, "ts": begin + n} for n in range(1, 3000)))
        await wire.mend()
        await charts_all(browser, process, "d", "m")
        for stream in ("Chart", "Devices"):
            await browser.shows(
                f"#journal [data-stream={stream}][data-verdict=recovered]", "Nothing was missed."
            )
        await value(browser, "d", "m", "2999")
    finally:
        await wire.cut()


async def recoveries(browser: Browser, count: int) -> None:
    """Wait until the chart was told so often that nothing is missing."""
    told = "return document.querySelectorAll('#journal [data-stream=Chart][data-verdict=recovered]').length"
    await browser.until(f"{told} >= arguments[0]", count)


async def test_a_connection_that_says_nothing_any_more_is_given_up(
    browser: Browser, process: GateProcess
) -> None:
    await browser.hasten()
    await browser.open(link(process, "d", "m"))
    await live(browser)
    await process.write("d", {"metric": "m", "value": 1})
    await charts_all(browser, process, "d", "m")
    await browser.run("window.hastened = true")
    # From this one on it waits for the next for an instant only.
    await process.write("d", {"metric": "m", "value": 2})
    await recoveries(browser, 1)
    await browser.run("window.hastened = false")
    await process.write("d", {"metric": "m", "value": 3})
    await charts_all(browser, process, "d", "m")


async def test_a_tab_that_nobody_looks_at_lets_go_and_resumes_when_it_is_looked_at(
    browser: Browser, process: GateProcess
) -> None:
    await browser.hasten()
    await browser.open(link(process, "d", "m"))
    await live(browser)
    await process.write("d", {"metric": "m", "value": 1})
    await charts_all(browser, process, "d", "m")
    look = (
        "window.hastened = arguments[0];"
        "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    await browser.run(look, True)
    await browser.shows("#state", "Paused")
    await process.write("d", *({"metric": "m", "value": n, "ts": now() - n} for n in range(2, 200)))
    await browser.run(look, False)
    await recoveries(browser, 1)
    await charts_all(browser, process, "d", "m")
    await browser.shows("#state", "Live")
