"""JavaScript clients that nobody here wrote: npm's `ws` and `eventsource`, over a shutdown and a crash.

They are pinned by package-lock.json and installed by the test itself: `npm ci` fails where the lock is out of
step.
"""

import asyncio
import json
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.raw import until
from tests.reliability.following import Place, Trace
from tests.reliability.gates import Gates
from tests.reliability.record import Wish, differences, stored
from tests.running import PATIENCE

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
LOCK = ("package.json", "package-lock.json", ".npmrc")


@pytest.fixture
async def packages(tmp_path: Path) -> Path:
    """A folder with what the lock pins."""
    folder = tmp_path / "node"
    folder.mkdir()
    for name in LOCK:
        shutil.copy(HERE / name, folder)
    npm = shutil.which("npm")
    assert npm is not None, "these tests need npm (Debian: apt install nodejs npm)"
    process = await asyncio.create_subprocess_exec(
        npm, "ci", cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return folder


class Script:
    """A script that follows and prints what it hears; `counts`: how often which type of message."""

    def __init__(self, process: asyncio.subprocess.Process, trace: Trace) -> None:
        self.trace = trace
        self.counts: Counter[str] = Counter()
        self._process = process

    async def run(self) -> None:
        """Read what it prints, to its end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        self.counts[message["type"]] += 1
        match message["type"]:
            case "connected":
                assert not message.get("extensions"), "compression was agreed on"
                self.trace.connected()
            case "lost":
                assert not message["gone"], "it has given up"
            case "closed":
                self.trace.codes.append(message["code"])
                self.trace.position = message["position"]
            case "recovery":
                self.trace.take(message | {"type": "subscribed"})
            case _:
                assert message.get("id", message["position"]) in (message["position"], "a")
                self.trace.take(message)


@asynccontextmanager
async def script(packages: Path, name: str, trace: Trace, *arguments: str) -> AsyncIterator[Script]:
    """A running script; it ends with the context."""
    process = await asyncio.create_subprocess_exec(
        "node",
        *(str(HERE / name), *arguments),
        cwd=packages,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    found = Script(process, trace)
    reading = asyncio.create_task(found.run())
    try:
        yield found
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await reading
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_ws_and_eventsource_come_back_by_themselves_and_miss_nothing(
    tmp_path: Path, port: int, packages: Path
) -> None:
    place, values = Place(port), count(1)
    data = tmp_path / "data"
    gates = Gates(data, place)
    wish = Wish(["a.>"])
    socket, events = Trace(wish, "earliest"), Trace(wish, "earliest")

    async def write() -> int:
        """How many readings there are for them by now."""
        batch = [(device, next(values)) for device in ("a.b", "c", "a.b.c")]
        await gates.write([{"device": device, "metric": "m", "ts": n, "value": n} for device, n in batch])
        return 2 * batch[-1][1] // 3

    async def have(total: int) -> None:
        await until(lambda: all(len(trace.record) >= total for trace in (socket, events)))

    url = f"http://127.0.0.1:{port}"
    async with gates.one() as gate:
        await write()
        query = f"match=a.>&time=us&last_event_id=earliest&access_token={place.token}"
        async with (
            script(
                packages, "follow_socket.mjs", socket, f"{url}/v1/stream?time=us", place.token, "a.>"
            ) as ws,
            script(packages, "follow_events.mjs", events, f"{url}/v1/events?{query}") as source,
        ):
            await have(await write())
            await write()
            gates.end(gate, signal.SIGKILL)
            await gate.ended()
            for death in (signal.SIGTERM, signal.SIGKILL):
                async with gates.one() as following:
                    await have(await write())
                    await write()
                    gates.end(following, death)
            async with gates.one():
                # While they are away, and when they are back.
                await write()
                await have(await write())
                await have(await write())
    log = await asyncio.to_thread(stored, data)
    for trace in (socket, events):
        assert differences(trace.record, log, wish, 0) == []
        assert trace.resumed == 3
    assert socket.codes[:3] == [1006, 1001, 1006]
    assert ws.counts["live"] == source.counts["connected"] == 4
