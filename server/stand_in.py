"""The parent's answer where a worker is missing: nobody waits there in vain."""

import asyncio
import logging
import ssl
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from typing import cast

from handlers.problems import Problem, retry_after
from server.dispatch import RequestIds
from server.encoding import Encoder
from server.protocol import HEAD_END
from server.sockets import BACKLOG, Sockets

_log = logging.getLogger("tidegate.workers")

# Seconds after which the connections of a slot without a worker are answered by the parent, and how long
# such a connection may take.
VACANT = 1.0
REFUSAL_WITHIN = 2.0
# Bytes of a head that are looked at before such a connection is answered anyway.
HEAD_MAX = 16 * 1024


class StandIn:
    """Answers for the slots that have no worker. `refused`: how often."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.refused = 0
        self._context = context
        self._ids = RequestIds()

    async def stand(self, main: Sockets) -> None:
        """Refuse what comes to the sockets of a slot, after a while and until cancelled."""
        await asyncio.sleep(VACANT)
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for sock in main:
                place = sock.dup()
                server = await loop.create_server(
                    partial(_Refusal, self), sock=place, backlog=BACKLOG, ssl=self._context
                )
                stack.callback(server.close)
            _log.warning("no worker serves a slot", extra={"socket": main[0].getsockname()})
            await loop.create_future()

    def refusal(self) -> bytes:
        """The answer to a request."""
        self.refused += 1
        encoder, request_id = Encoder(), self._ids.choose("")
        encoder.tick(formatdate(usegmt=True))
        problem = Problem("overloaded", "no worker is there to answer", headers=(retry_after(1),))
        return encoder.encode(problem.response(request_id), request_id, connection="close")


class _Refusal(asyncio.Protocol):
    """A connection that is answered 503 when a head has come."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._received = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        asyncio.get_running_loop().call_later(REFUSAL_WITHIN, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. What comes behind the head is read too, or the answer would be lost."""
        if self._answered:
            return
        self._received += data
        if HEAD_END in self._received or len(self._received) > HEAD_MAX:
            self._answered = True
            self._transport.write(self._stand_in.refusal())
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
