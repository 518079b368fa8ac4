"""BlackSheep on granian with asyncpg: routes, orjson by its JSON settings, on_start for the pool."""

import os
from typing import Any

import answers
import orjson
from blacksheep import Application, Request, Response, WebSocket, WebSocketDisconnectError
from blacksheep.settings.json import json_settings
from blacksheep.server.responses import json
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from store import Store


def dumps(value: Any) -> str:
    """JSON as text, which BlackSheep asks for."""
    return orjson.dumps(value).decode()


json_settings.use(loads=orjson.loads, dumps=dumps)
app = Application()


@app.lifespan
async def database():
    """The pool, as long as the application runs."""
    store = await Store.open(os.environ["BENCH_DATABASE"])
    app.services.add_instance(store, Store)
    yield
    await store.close()


def admitted(request: Request, scope: str, device: str) -> dict[str, str]:
    """The headers of the answer, if it may go on. Refused."""
    return admit(header(request, b"authorization"), scope, device, header(request, b"x-request-id"))


def header(request: Request, name: bytes) -> str | None:
    """A header's text."""
    value = request.get_first_header(name)
    return None if value is None else value.decode("latin-1")


def answer(body: Any, headers: dict[str, str], status: int = 200) -> Response:
    """JSON with headers."""
    response = json(body, status)
    for name, value in headers.items():
        response.add_header(name.encode(), value.encode())
    return response


@app.router.get("/hello")
async def hello() -> Response:
    """The smallest JSON."""
    return json({"ok": True})


@app.router.post("/v1/devices/{device}/readings")
async def write(request: Request, device: str, store: Store) -> Response:
    """Store readings, durably, before the answer."""
    headers = admitted(request, "readings:write", device)
    rows, rejected = parse(await request.read() or b"")
    stored = await store.add(device, rows)
    return answer(answers.written(len(rows), stored, rejected), headers)


@app.router.get("/v1/devices/{device}/latest")
async def latest(request: Request, device: str, store: Store) -> Response:
    """The latest value of each metric."""
    headers = admitted(request, "readings:read", device)
    body = await store.latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if header(request, b"if-none-match") == headers["ETag"]:
        return Response(304, [(name.encode(), value.encode()) for name, value in headers.items()])
    return answer(body, headers)


@app.router.get("/v1/devices/{device}/readings")
async def page(request: Request, device: str, store: Store) -> Response:
    """One page of a range."""
    headers = admitted(request, "readings:read", device)
    body = await store.page(device, **page_query({name: each[0] for name, each in request.query.items()}))
    headers |= answers.link(request.url.value.decode(), body)
    return answer(body, headers)


@app.router.ws("/echo")
async def echo(websocket: WebSocket) -> None:
    """Give back each text."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnectError:
        pass


@app.exception_handler(Refused)
async def refused(self: Application, request: Request, error: Refused) -> Response:
    """What was refused becomes an answer."""
    return answer(error.body, error.headers, error.status)
