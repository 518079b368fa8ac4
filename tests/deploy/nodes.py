"""Two gates behind nginx, killed and started again on their ports while clients write."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from tests.deploy.nginx import PLAIN, Proxy, run_nginx
from tests.reliability.record import Row
from tests.running import PATIENCE, GateProcess, Reply, run_process
from tests.servers.programs import free_port

SECRET = "0123456789abcdef" * 2
# What a client does about an answer that leaves it in the dark: it sends the same again.
AGAIN = (409, 503)


class Node:
    """A gate that keeps its port over its lives."""

    def __init__(self, data: Path, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.data = data
        self.gate: GateProcess | None = None
        self._environment = environment
        self._stack = AsyncExitStack()

    async def start(self) -> GateProcess:
        """A gate on the port."""
        self.data.mkdir(exist_ok=True)
        running = run_process(self.data, PORT=str(self.port), **self._environment)
        self.gate = await self._stack.enter_async_context(running)
        return self.gate

    async def end(self, number: signal.Signals) -> None:
        """Send the signal and wait until it is gone."""
        assert self.gate is not None
        self.gate.signal(number)
        await self.gate.ended()
        await self._stack.aclose()
        self.gate = None

    async def close(self) -> None:
        """End whatever still runs."""
        await self._stack.aclose()


class Nodes:
    """The gates and nginx before them."""

    def __init__(self, nodes: list[Node], proxy: Proxy) -> None:
        self.nodes = nodes
        self.proxy = proxy

    def token(self) -> str:
        """One for everything."""
        return next(node.gate for node in self.nodes if node.gate is not None).token()

    async def take_out(self, node: Node) -> None:
        """As docs/operations.md has it: `down` behind its name, a reload, and no old worker is left."""
        await self._edit(f"127.0.0.1:{node.port} ", f"127.0.0.1:{node.port} down ")

    async def put_back(self, node: Node) -> None:
        """Undo it."""
        await self._edit(f"127.0.0.1:{node.port} down ", f"127.0.0.1:{node.port} ")

    async def _edit(self, old: str, new: str) -> None:
        gates = self.proxy.folder / "tidegate" / "gates.conf"
        text = gates.read_text()
        # Once in each list.
        assert text.count(old) == 2
        gates.write_text(text.replace(old, new))
        await self.proxy.reload()

    async def stored(self) -> list[Row]:
        """The log, of which both gates tell the same."""
        logs: list[list[Row]] = []
        for node in self.nodes:
            assert node.gate is not None
            rows: list[Row] = []
            since, end = "earliest", False
            while not end:
                page = await _answered(node.gate, f"/v1/readings?limit=1000&time=us&since={since}")
                rows += [
                    Row(item["offset"], item["device"], item["metric"], item["ts"], item["value"])
                    for item in page.json["items"]
                ]
                since, end = page.json["next"], page.json["end"]
            logs.append(rows)
        # One may not know yet what the other wrote last.
        shorter, longer = sorted(logs, key=len)
        assert shorter == longer[: len(shorter)]
        return longer


async def _answered(gate: GateProcess, path: str) -> Reply:
    """What it says as soon as it can: one of its workers may still wait for a database that came back."""
    async with asyncio.timeout(PATIENCE):
        while (page := await gate.get(path)).status == 503:
            await asyncio.sleep(0.05)
    assert page.status == 200, page
    return page


@asynccontextmanager
async def two_nodes(folder: Path, **environment: str) -> AsyncIterator[Nodes]:
    """Two gates with the same settings, and so the same database, behind nginx."""
    settings = {"JWT_SECRET": SECRET, "TRUSTED_PROXIES": "127.0.0.1/32", **PLAIN, **environment}
    nodes = [Node(folder / f"data{number}", settings) for number in range(2)]
    try:
        for node in nodes:
            await node.start()
        async with run_nginx(folder / "nginx", [node.port for node in nodes]) as proxy:
            yield Nodes(nodes, proxy)
    finally:
        for node in nodes:
            await node.close()


class Writer:
    """A device that writes one reading after the other through nginx until it is told to stop.

    `acked`: the values that were answered 200, which count up. Their times are the same, but for keyed
    writes, which have none. `answers`: how often which status came, 0 for a broken connection.
    """

    def __init__(self, nodes: Nodes, device: str, *, keyed: bool) -> None:
        self.device = device
        self.keyed = keyed
        self.acked: list[int] = []
        self.sent = 0
        self.answers: Counter[int] = Counter()
        self._nodes = nodes

    async def run(self, stop: asyncio.Event) -> None:
        """Write; what was not answered is sent again as it was."""
        url = f"{self._nodes.proxy.url}/v1/devices/{self.device}/readings"
        bearer = {"Authorization": f"Bearer {self._nodes.token()}"}
        async with aiohttp.ClientSession(headers=bearer) as session:
            while not stop.is_set():
                self.sent += 1
                async with asyncio.timeout(PATIENCE):
                    while not await self._once(session, url, self.sent):
                        await asyncio.sleep(0.02)
                self.acked.append(self.sent)

    async def _once(self, session: aiohttp.ClientSession, url: str, value: int) -> bool:
        reading = {"metric": "m", "value": value}
        headers = {}
        if self.keyed:
            headers["Idempotency-Key"] = f"{self.device}-{value}"
        else:
            reading["ts"] = value
        try:
            async with session.post(url, json=reading, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, ConnectionError):
            self.answers[0] += 1
            return False
        self.answers[response.status] += 1
        assert response.status == 200 or response.status in AGAIN, (response.status, body)
        return response.status == 200


async def more(writers: Sequence[Writer], count: int) -> None:
    """Wait until so many more writes were answered."""

    def acked() -> int:
        return sum(len(writer.acked) for writer in writers)

    await reach(acked, acked() + count)


async def reach(count: Callable[[], int], goal: int) -> None:
    """Wait until there are so many."""
    async with asyncio.timeout(3 * PATIENCE):
        while count() < goal:
            await asyncio.sleep(0.01)


def stored_once(log: Sequence[Row], writers: Sequence[Writer]) -> None:
    """Assert that the log is what was answered: nothing lost, nothing twice, no offset left out."""
    assert [row.offset for row in log] == list(range(1, len(log) + 1))
    stored = Counter((row.device, row.value) for row in log)
    assert set(stored.values()) == {1}
    assert {(writer.device, value) for writer in writers for value in writer.acked} == stored.keys()
