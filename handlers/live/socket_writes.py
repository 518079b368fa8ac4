"""Writing over a WebSocket: the same handler as over HTTP, without HTTP."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from auth.principal import Principal, Scope
from auth.rate_limit import Limiter
from handlers.exchange import Deferred, Handler, Head, Media, Preferences, Request, Response
from handlers.live.wires import SubscriptionId
from handlers.problems import Problem, problem_of
from handlers.schemas import Written

_log = logging.getLogger("tidegate.websocket")

UNACKNOWLEDGED_MAX = 64

Done = Callable[[SubscriptionId, "Written | Problem"], None]

_decode_json = msgspec.json.Decoder(Written).decode
_decode_msgpack = msgspec.msgpack.Decoder(Written).decode


class NoHeaders:
    """The headers of what is no HTTP."""

    def __contains__(self, name: object, /) -> bool:
        return False

    def get(self, name: str, default: str, /) -> str:
        """There is none."""
        return default

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """There is none."""
        return default


class SocketWriter:
    """The writes of one connection. `waiting`: how many are not acknowledged yet.

    `write`: the handler of `POST /v1/readings`. `requests`: the limit in which a write counts as a request.
    """

    __slots__ = ("_address", "_head", "_id", "_now", "_requests", "_write", "waiting")

    def __init__(
        self,
        write: Handler,
        requests: Limiter | None,
        now: Callable[[], int],
        request: Request,
        media: Media,
    ) -> None:
        self._write = write
        self._requests = requests
        self._now = now
        self._id = request.id
        self._address = request.address
        self._head = Head(
            "POST",
            "/v1/readings",
            "",
            {},
            {},
            NoHeaders(),
            media,
            media,
            Preferences(),
            request.head.principal,
        )
        self.waiting = 0

    def submit(self, id: SubscriptionId, readings: bytes, done: Done) -> None:
        """Write; `done` gets the verdict after the commit, or a Problem, perhaps at once."""
        principal: Principal = self._head.principal
        try:
            if Scope.READINGS_WRITE not in principal.scopes:
                raise Problem("insufficient_scope", "the token lacks the scope readings:write")
            if self.waiting >= UNACKNOWLEDGED_MAX:
                detail = f"at most {UNACKNOWLEDGED_MAX} writes may wait for their acknowledgement"
                raise Problem("rate_limited", detail)
            if self._requests is not None:
                self._requests.take(principal.account, 1)
            answer: Any = self._write(Request(self._head, readings, self._id, self._address, self._now()))
        except Exception as error:
            done(id, _problem(error))
            return
        deferred: Deferred = answer
        self.waiting += 1
        deferred.write.then(lambda _: self._settled(id, deferred, done))

    def _settled(self, id: SubscriptionId, deferred: Deferred, done: Done) -> None:
        self.waiting -= 1
        try:
            response: Response = deferred.render(deferred.write)
        except Exception as error:
            done(id, _problem(error))
            return
        packed = self._head.accept is Media.MSGPACK
        done(id, (_decode_msgpack if packed else _decode_json)(response.body))


def _problem(error: Exception) -> Problem:
    problem = problem_of(error)
    if problem.entry.status == 500:
        _log.error("unexpected error", exc_info=error)
    return problem
