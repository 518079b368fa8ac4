"""Sanic with asyncpg: one process, no motd and access log, listeners for the pool, orjson for answers."""

import os
import sys
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit, http_date
from readings import page_query, parse
from sanic import HTTPResponse, Request, Sanic, Websocket
from sanic.response import empty, json
from store import Store

app = Sanic("bench", dumps=orjson.dumps, loads=orjson.loads, configure_logging=False)
app.config.ACCESS_LOG = False
app.config.WEBSOCKET_PING_INTERVAL = 0


@app.before_server_start
async def start(app: Sanic) -> None:
    """The pool, as long as the application runs."""
    app.ctx.store = await Store.open(os.environ["BENCH_DATABASE"])


@app.after_server_stop
async def stop(app: Sanic) -> None:
    """Let go of it."""
    await app.ctx.store.close()


def admitted(request: Request, scope: str, device: str) -> dict[str, str]:
    """The headers of the answer, if it may go on. Refused. Sanic sends no Date of its own."""
    given = request.headers
    headers = admit(given.get("authorization"), scope, device, given.get("x-request-id"))
    return {**headers, "Date": http_date()}


@app.get("/hello")
async def hello(request: Request) -> HTTPResponse:
    """The smallest JSON."""
    return json({"ok": True})


@app.post("/v1/devices/<device:str>/readings")
async def write(request: Request, device: str) -> HTTPResponse:
    """Store readings, durably, before the answer."""
    headers = admitted(request, "readings:write", device)
    rows, rejected = parse(request.body)
    stored = await request.app.ctx.store.add(device, rows)
    return json(answers.written(len(rows), stored, rejected), headers=headers)


@app.get("/v1/devices/<device:str>/latest")
async def latest(request: Request, device: str) -> HTTPResponse:
    """The latest value of each metric."""
    headers: dict[str, Any] = admitted(request, "readings:read", device)
    body = await request.app.ctx.store.latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return empty(304, headers)
    return json(body, headers=headers)


@app.get("/v1/devices/<device:str>/readings")
async def page(request: Request, device: str) -> HTTPResponse:
    """One page of a range."""
    headers = admitted(request, "readings:read", device)
    query = {name: values[0] for name, values in request.args.items()}
    body = await request.app.ctx.store.page(device, **page_query(query))
    headers |= answers.link(f"{request.path}?{request.query_string}", body)
    return json(body, headers=headers)


@app.websocket("/echo")
async def echo(request: Request, ws: Websocket) -> None:
    """Give back each text."""
    async for message in ws:
        await ws.send(message)


@app.exception(Refused)
async def refused(request: Request, error: Refused) -> HTTPResponse:
    """What was refused becomes an answer."""
    return json(error.body, error.status, error.headers)


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]), single_process=True, motd=False)
