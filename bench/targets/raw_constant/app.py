"""The floor L0: a uvloop protocol that writes constant bytes whenever something comes. Nothing is parsed.

No server can be faster on this loop; it also shows what the load generator can do.
"""

import asyncio
import sys

import uvloop

BODY = b'{"ok":true}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Date: Sat, 21 Nov 2026 09:00:00 GMT\r\n\r\n%s" % (len(BODY), BODY)
)


class Constant(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer, whatever it is."""
        self.transport.write(ANSWER)


async def serve(port: int) -> None:
    """Until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(serve(int(sys.argv[1])))
