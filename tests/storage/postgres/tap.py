"""Something between the gate and PostgreSQL that loses what a test wants lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

# What is done with a commit: its answer is lost after the server has given it; it is lost itself;
# or it is held back until `release`, though the gate gives up long before.
Fault = Literal["answer", "question", "hold"]
_COMMIT = b"tidegate.append"


class Tap:
    """A TCP proxy. `url`: of the database, through here."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname or "", parts.port or 5432
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._released = asyncio.Event()
        # What happens to the next statement that holds the word, and then to another.
        self.fault: Fault | None = None
        self.word = _COMMIT
        self.then: tuple[Fault, bytes] | None = None
        # A fault has come to pass: the answer has been lost, or the question.
        self.struck = asyncio.Event()
        # New connections are closed at once.
        self.closed = False

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._parts._replace(netloc=f"{self._parts.username}@127.0.0.1:{port}").geturl()

    def armed(self) -> bool:
        """Whether the fault is still to come."""
        return self.fault is not None

    def release(self) -> None:
        """Let what was held back go on."""
        self._released.set()

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, up_writer}
        # Set when the answer to what was sent last is not to arrive.
        deaf = asyncio.Event()
        both = [
            asyncio.create_task(self._upwards(reader, up_writer, writer, deaf)),
            asyncio.create_task(self._downwards(up_reader, writer, deaf)),
        ]
        _, left = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        writer.transport.abort()
        # What has been written may still arrive.
        up_writer.close()
        self._writers -= {writer, up_writer}

    async def _upwards(
        self,
        reader: asyncio.StreamReader,
        up: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        deaf: asyncio.Event,
    ) -> None:
        while data := await reader.read(1 << 20):
            if self.fault is not None and self.word in data:
                fault = self.fault
                self.fault, self.word = self.then if self.then is not None else (None, _COMMIT)
                self.then = None
                if fault == "question":
                    up.transport.abort()
                    client.transport.abort()
                    self.struck.set()
                    return
                if fault == "answer":
                    deaf.set()
                if fault == "hold":
                    await self._released.wait()
            up.write(data)
            await up.drain()

    async def _downwards(
        self, up: asyncio.StreamReader, client: asyncio.StreamWriter, deaf: asyncio.Event
    ) -> None:
        while data := await up.read(1 << 20):
            if deaf.is_set():
                self.struck.set()
                break
            client.write(data)
            await client.drain()


@asynccontextmanager
async def tap(url: str) -> AsyncIterator[Tap]:
    """A tap before the database of this URL."""
    made = Tap(url)
    made._server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    try:
        yield made
    finally:
        made._server.close()
        made.release()
        made.cut()
        async with asyncio.timeout(10):
            while made._writers:
                await asyncio.sleep(0.01)
