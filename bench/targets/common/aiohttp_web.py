"""aiohttp's web.Application on uvloop: routes, a middleware for errors, cleanup_ctx for the pool.

Run by `-m` in the folder of a target, so that its own store.py goes before the one that stands here.
"""

import os
import sys
from collections.abc import AsyncIterator

import answers
import orjson
import uvloop
from aiohttp import WSMsgType, web
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from store import Store

STORE = web.AppKey("store", Store)
routes = web.RouteTableDef()


@web.middleware
async def errors(request: web.Request, handler) -> web.StreamResponse:
    """What was refused becomes an answer."""
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_bytes_response(
            refused.body, status=refused.status, headers=refused.headers, dumps=orjson.dumps
        )


def admitted(request: web.Request, scope: str) -> tuple[str, dict[str, str]]:
    """The device of a request that may go on, and the headers of its answer. Refused."""
    device, given = request.match_info["device"], request.headers
    return device, admit(given.get("Authorization"), scope, device, given.get("X-Request-ID"))


@routes.get("/hello")
async def hello(request: web.Request) -> web.Response:
    """The smallest JSON."""
    return web.json_bytes_response({"ok": True}, dumps=orjson.dumps)


@routes.post("/v1/devices/{device}/readings")
async def write(request: web.Request) -> web.Response:
    """Store readings, durably, before the answer."""
    device, headers = admitted(request, "readings:write")
    rows, rejected = parse(await request.read())
    stored = await request.app[STORE].add(device, rows)
    body = answers.written(len(rows), stored, rejected)
    return web.json_bytes_response(body, headers=headers, dumps=orjson.dumps)


@routes.get("/v1/devices/{device}/latest")
async def latest(request: web.Request) -> web.Response:
    """The latest value of each metric."""
    device, headers = admitted(request, "readings:read")
    body = await request.app[STORE].latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return web.Response(status=304, headers=headers)
    return web.json_bytes_response(body, headers=headers, dumps=orjson.dumps)


@routes.get("/v1/devices/{device}/readings")
async def page(request: web.Request) -> web.Response:
    """One page of a range."""
    device, headers = admitted(request, "readings:read")
    body = await request.app[STORE].page(device, **page_query(dict(request.query)))
    headers |= answers.link(request.path_qs, body)
    return web.json_bytes_response(body, headers=headers, dumps=orjson.dumps)


@routes.get("/echo")
async def echo(request: web.Request) -> web.WebSocketResponse:
    """Give back each text."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    async for message in ws:
        if message.type == WSMsgType.TEXT:
            await ws.send_str(message.data)
    return ws


async def database(app: web.Application) -> AsyncIterator[None]:
    """The pool, as long as the application runs."""
    app[STORE] = await Store.open(os.environ["BENCH_DATABASE"])
    yield
    await app[STORE].close()


app = web.Application(middlewares=[errors])
app.add_routes(routes)
app.cleanup_ctx.append(database)
web.run_app(
    app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop()
)
