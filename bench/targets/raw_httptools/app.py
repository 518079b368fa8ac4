"""The floor L1: uvloop + httptools in the shape of vmbench, with a synchronous handler.

What any server on this loop has to do: the parser's callbacks collect target and headers, a handler
gets a request and gives a body, the answer is put together and written at once. No routing, no checks.
The Date is renewed once a second.
"""

import asyncio
import sys
from email.utils import formatdate

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b"
date = [b""]


class Request:
    """One request."""

    __slots__ = ("headers", "method", "target")

    def __init__(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers


def hello(request: Request) -> tuple[bytes, bytes]:
    """The smallest JSON: its type and its bytes."""
    return b"application/json", b'{"ok":true}'


class Connection(asyncio.Protocol):
    """One connection, and what its parser calls."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to parse."""
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def data_received(self, data: bytes) -> None:
        """Parse; what is no HTTP ends the connection."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        """The target."""
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        """Handle and answer."""
        parser = self.parser
        kind, body = hello(Request(parser.get_method(), self.target, self.headers))
        self.headers = []
        self.transport.write(ANSWER % (kind, len(body), date[0], body))
        if not parser.should_keep_alive():
            self.transport.close()


async def keep_date() -> None:
    """Renew the Date once a second."""
    while True:
        date[0] = formatdate(usegmt=True).encode()
        await asyncio.sleep(1)


async def serve(port: int) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_date())
        group.create_task(server.serve_forever())


uvloop.run(serve(int(sys.argv[1])))
