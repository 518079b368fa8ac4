"""What operators ask: is it alive, is it ready, what does it count, what do its errors mean."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable

from handlers.exchange import Request, Response
from handlers.problems import CATALOGUE, Problem, challenge
from handlers.schemas import Page, respond
from storage.errors import StorageError

# Seconds that a part may take to say how it is.
PROBE_TIMEOUT = 2.0

Probe = Callable[[], Awaitable[None]]


class Health:
    """Handlers of operations.

    `probes`: per part a check that raises StorageError when it cannot work. `closing`: whether the
    gate is about to end. `render`: the figures for an Accept header, with their content type.
    `token`: what /metrics asks for, "" if nothing.
    """

    def __init__(
        self,
        probes: dict[str, Probe],
        closing: Callable[[], bool],
        render: Callable[[str], Awaitable[tuple[bytes, str]]],
        token: str,
    ) -> None:
        self._probes = probes
        self._closing = closing
        self._render = render
        self._token = token

    def livez(self, request: Request) -> Response:
        """`GET /livez`: the process answers."""
        return respond(request.head.accept, {"status": "ok"}, headers=_UNCACHED)

    async def readyz(self, request: Request) -> Response:
        """`GET /readyz`: 503 when it should get no traffic."""
        names = list(self._probes)
        states = await asyncio.gather(*map(_state, self._probes.values()))
        parts: dict[str, dict[str, str]] = dict(zip(names, states, strict=True))
        if self._closing():
            parts["gate"] = {"status": "closing"}
        ready = all(state["status"] == "ok" for state in parts.values())
        content = {"status": "ready" if ready else "unavailable", "parts": parts}
        return respond(request.head.accept, content, 200 if ready else 503, _UNCACHED)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: what is counted, for Prometheus."""
        if self._token:
            given = request.head.headers.get("Authorization", "").partition(" ")[2]
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
                raise Problem("token_missing", "expected the token of /metrics", headers=(challenge(),))
        accept = request.head.headers.get("Accept", "")
        body, content_type = await self._render(accept)
        return Response(200, body, content_type, _UNCACHED)

    def problems(self, request: Request) -> Response:
        """`GET /problems`: the codes of all errors."""
        return respond(request.head.accept, Page(list(map(_entry, CATALOGUE)), None))

    def problem(self, request: Request) -> Response:
        """`GET /problems/{code}`: what the `type` of a problem leads to."""
        code = request.head.params["code"]
        if code not in CATALOGUE:
            raise Problem("not_found", "there is no such problem")
        return respond(request.head.accept, _entry(code))


_UNCACHED = (("Cache-Control", "no-store"),)


async def _state(probe: Probe) -> dict[str, str]:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await probe()
    except StorageError as error:
        return {"status": "unavailable", "detail": str(error)}
    except TimeoutError:
        return {"status": "unavailable", "detail": f"no answer within {PROBE_TIMEOUT} s"}
    return {"status": "ok"}


def _entry(code: str) -> dict[str, object]:
    entry = CATALOGUE[code]
    return {"code": code, "type": f"/problems/{code}", "status": entry.status, "title": entry.title}
