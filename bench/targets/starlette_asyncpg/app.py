"""Starlette on uvicorn with asyncpg: routes, an orjson response, a lifespan that owns the pool."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from store import Store


class Json(Response):
    """JSON by orjson, as the documentation of Starlette makes one."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return orjson.dumps(content)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Store]]:
    """The pool, as long as the application runs."""
    store = await Store.open(os.environ["BENCH_DATABASE"])
    yield {"store": store}
    await store.close()


def admitted(request: Request, scope: str) -> tuple[str, dict[str, str]]:
    """The device of a request that may go on, and the headers of its answer. Refused."""
    device, given = request.path_params["device"], request.headers
    return device, admit(given.get("authorization"), scope, device, given.get("x-request-id"))


async def hello(request: Request) -> Response:
    """The smallest JSON."""
    return Json({"ok": True})


async def write(request: Request) -> Response:
    """Store readings, durably, before the answer."""
    device, headers = admitted(request, "readings:write")
    rows, rejected = parse(await request.body())
    stored = await request.state.store.add(device, rows)
    return Json(answers.written(len(rows), stored, rejected), headers=headers)


async def latest(request: Request) -> Response:
    """The latest value of each metric."""
    device, headers = admitted(request, "readings:read")
    body = await request.state.store.latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Json(body, headers=headers)


async def page(request: Request) -> Response:
    """One page of a range."""
    device, headers = admitted(request, "readings:read")
    body = await request.state.store.page(device, **page_query(dict(request.query_params)))
    headers |= answers.link(f"{request.url.path}?{request.url.query}", body)
    return Json(body, headers=headers)


async def echo(websocket: WebSocket) -> None:
    """Give back each text."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def refused(request: Request, error: Exception) -> Response:
    """What was refused becomes an answer."""
    assert isinstance(error, Refused)
    return Json(error.body, error.status, error.headers)


app = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/v1/devices/{device}/readings", write, methods=["POST"]),
        Route("/v1/devices/{device}/readings", page),
        Route("/v1/devices/{device}/latest", latest),
        WebSocketRoute("/echo", echo),
    ],
    exception_handlers={Refused: refused},
    lifespan=lifespan,
)
