"""HTTP byte by byte: what a test sends is what the gate gets."""

import asyncio
import json
from types import TracebackType
from typing import Any

from tests.running import PATIENCE, client_tls


class Answer:
    """An answer as it came. `closing`: it says that the connection ends."""

    def __init__(self, status: int, version: str, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.version = version
        self.headers = headers
        self.body = body

    @property
    def closing(self) -> bool:
        """Whether it announces the end of the connection."""
        return self.headers.get("connection") == "close"

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the problem document that this must be."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json
        assert document["status"] == self.status
        assert document["type"] == f"/problems/{document['code']}"
        assert document["instance"] == self.headers["x-request-id"]
        return str(document["code"])

    def __repr__(self) -> str:
        return f"<{self.status} {self.headers} {self.body[:500]!r}>"


class Raw:
    """A connection to a gate."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, limit: int = 1 << 20) -> "Raw":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit, ssl=client_tls()))

    async def __aenter__(self) -> "Raw":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection at once."""
        self.writer.close()
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> Answer:
        """Read one answer; `head`: it is to a HEAD."""
        async with asyncio.timeout(PATIENCE):
            return await self._answer(head)

    async def ask(self, data: bytes, *, head: bool = False) -> Answer:
        """Send, then read one answer."""
        await self.send(data)
        return await self.answer(head=head)

    async def ended(self, within: float = PATIENCE) -> bytes:
        """What still comes until the gate closes the connection, or resets it."""
        rest = b""
        async with asyncio.timeout(within):
            try:
                while piece := await self.reader.read(65536):
                    rest += piece
            except ConnectionError:
                pass
        return rest

    async def _answer(self, head: bool) -> Answer:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        version, status, _ = lines[0].split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in headers, line
            headers[name.lower()] = value
        return Answer(int(status), version, headers, await self._body(int(status), headers, head))

    async def _body(self, status: int, headers: dict[str, str], head: bool) -> bytes:
        if head or status < 200 or status in (204, 304):
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return body
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read(-1)


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    token: str = "",
    version: str = "1.1",
    headers: tuple[str, ...] = (),
) -> bytes:
    """The bytes of a request; `headers`: further lines."""
    lines = [f"{method} {path} HTTP/{version}", "Host: gate", *headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


async def until(true: Any, within: float = PATIENCE) -> None:
    """Poll until the condition holds: for what nobody tells of."""
    deadline = asyncio.get_running_loop().time() + within
    while not true():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
