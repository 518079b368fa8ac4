"""Robyn with asyncpg: its Rust runtime parses and writes; one process, one worker."""

import os
import sys
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from robyn import Headers, Request, Response, Robyn
from store import Store

app = Robyn(__file__)
stores: list[Store] = []


async def start() -> None:
    """The pool, before anything is served."""
    stores.append(await Store.open(os.environ["BENCH_DATABASE"]))


def answer(status: int, body: Any, headers: dict[str, str]) -> Response:
    """JSON with headers."""
    data = b"" if body is None else orjson.dumps(body)
    return Response(status, Headers({**headers, "Content-Type": "application/json"}), data)


def admitted(request: Request, scope: str) -> tuple[str, dict[str, str]]:
    """The device, and the headers of the answer. Refused."""
    device, given = request.path_params["device"], request.headers
    return device, admit(given.get("authorization"), scope, device, given.get("x-request-id"))


@app.get("/hello")
async def hello(request: Request) -> dict[str, bool]:
    """The smallest JSON: a dict becomes it."""
    return {"ok": True}


@app.post("/v1/devices/:device/readings")
async def write(request: Request) -> Response:
    """Store readings, durably, before the answer."""
    try:
        device, headers = admitted(request, "readings:write")
        body = request.body
        rows, rejected = parse(body.encode() if isinstance(body, str) else body)
        stored = await stores[0].add(device, rows)
    except Refused as refused:
        return answer(refused.status, refused.body, refused.headers)
    return answer(200, answers.written(len(rows), stored, rejected), headers)


@app.get("/v1/devices/:device/latest")
async def latest(request: Request) -> Response:
    """The latest value of each metric."""
    try:
        device, headers = admitted(request, "readings:read")
    except Refused as refused:
        return answer(refused.status, refused.body, refused.headers)
    body = await stores[0].latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    known = request.headers.get("if-none-match") == headers["ETag"]
    return answer(304, None, headers) if known else answer(200, body, headers)


@app.get("/v1/devices/:device/readings")
async def page(request: Request) -> Response:
    """One page of a range."""
    try:
        device, headers = admitted(request, "readings:read")
        query = {name: values[0] for name, values in request.query_params.to_dict().items()}
        body = await stores[0].page(device, **page_query(query))
    except Refused as refused:
        return answer(refused.status, refused.body, refused.headers)
    url = request.url.path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    return answer(200, body, headers | answers.link(url, body))


@app.websocket("/echo")
async def echo(websocket) -> None:
    """Give back each text."""
    while True:
        await websocket.send_text(await websocket.receive_text())


app.startup_handler(start)
app.start(host="127.0.0.1", port=int(sys.argv[1]))
