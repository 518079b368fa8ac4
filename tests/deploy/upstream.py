"""A gate that misbehaves as it is told, and keeps what it got: the fault that a proxy must cope with."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from msgspec import Struct

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Asked(Struct):
    """A request that has come in whole. `turn`: the how manyth of its connection it is, from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    turn: int


# What to answer; b"" closes the connection without a word.
Behave = Callable[[Asked], bytes]


class Upstream:
    """The requests that came, in their order."""

    def __init__(self, port: int, asked: list[Asked]) -> None:
        self.port = port
        self.asked = asked


@asynccontextmanager
async def upstream(behave: Behave) -> AsyncIterator[Upstream]:
    """A server that answers each request as `behave` says."""
    asked: list[Asked] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = 0
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                turn += 1
                request = await _read(reader, turn)
                asked.append(request)
                answer = behave(request)
                if not answer:
                    break
                writer.write(answer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield Upstream(server.sockets[0].getsockname()[1], asked)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader, turn: int) -> Asked:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, body, turn)
