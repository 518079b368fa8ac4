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

    `probes`: per part a check that raises StorageError when it cannot work; `spare`: the same of parts that
    the gate can do without. `closing`: whether the
    gate is about to end. `render`: the figures for an Accept header, with their content type.
    `token`: what /metrics asks for, "" if nothing.
    """

    def __init__(
        self,
        probes: dict[str, Probe],
        closing: Callable[[], bool],
        render: Callable[[str], Awaitable[tuple[bytes, str]]],
        token: str,
        spare: dict[str, Probe] | None = None,
    ) -> None:
        self._probes = probes
        self._spare = spare or {}
        self._closing = closing
        self._render = render
        self._token = token

    def livez(self, request: Request) -> Response:
        """`GET /livez`: the process answers."""
        return respond(request.head.accept, {"status": "ok"}, headers=_UNCACHED)

    async def readyz(self, request: Request) -> Response:
        """`GET /readyz`: 503 when it should get no traffic, 200 and `degraded` without a part to spare."""
        probes = self._probes | self._spare
        states = await asyncio.gather(*map(_state, probes.values()))
        parts: dict[str, dict[str, str]] = dict(zip(probes, states, strict=True))
        lacking = [name for name in self._spare if parts[name]["status"] != "ok"]
        for name in lacking:
            parts[name]["status"] = "degraded"
        if self._closing():
            parts["gate"] = {"status": "closing"}
        ready = all(state["status"] in ("ok", "degraded") for state in parts.values())
        status = ("degraded" if lacking else "ready") if ready else "unavailable"
        content = {"status": status, "parts": parts}
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
