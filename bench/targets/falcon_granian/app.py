"""Falcon's ASGI application on granian with asyncpg: resources, a media handler with orjson, middleware for the pool."""

import os

import answers
import falcon.asgi
import orjson
from checks import LATEST_HEADERS, Refused, admit
from falcon import WebSocketDisconnected, media
from falcon.asgi import Request, Response, WebSocket
from readings import page_query, parse
from store import Store


class Database:
    """The pool, as long as the application runs."""

    store: Store

    async def process_startup(self, scope, event) -> None:
        """Open it."""
        self.store = await Store.open(os.environ["BENCH_DATABASE"])

    async def process_shutdown(self, scope, event) -> None:
        """Close it."""
        await self.store.close()


def admitted(req: Request, resp: Response, scope: str, device: str) -> None:
    """Set the headers of the answer, if it may go on. Refused."""
    resp.set_headers(admit(req.auth, scope, device, req.get_header("X-Request-ID")))


class Hello:
    """The smallest JSON."""

    async def on_get(self, req: Request, resp: Response) -> None:
        """GET."""
        resp.media = {"ok": True}


class Readings:
    """Those of a device."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def on_post(self, req: Request, resp: Response, device: str) -> None:
        """Store readings, durably, before the answer."""
        admitted(req, resp, "readings:write", device)
        rows, rejected = parse(await req.stream.read())
        stored = await self._database.store.add(device, rows)
        resp.media = answers.written(len(rows), stored, rejected)

    async def on_get(self, req: Request, resp: Response, device: str) -> None:
        """One page of a range."""
        admitted(req, resp, "readings:read", device)
        body = await self._database.store.page(device, **page_query(req.params))
        resp.set_headers(answers.link(req.relative_uri, body))
        resp.media = body


class Latest:
    """The latest value of each metric."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def on_get(self, req: Request, resp: Response, device: str) -> None:
        """GET, 304 if they are known."""
        admitted(req, resp, "readings:read", device)
        body = await self._database.store.latest(device)
        etag = answers.etag(body)
        resp.set_headers({"ETag": etag, **LATEST_HEADERS})
        if req.get_header("If-None-Match") == etag:
            resp.status = 304
        else:
            resp.media = body


class Echo:
    """Gives back each text."""

    async def on_websocket(self, req: Request, ws: WebSocket) -> None:
        """Until the client goes."""
        try:
            await ws.accept()
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnected:
            pass


async def refused(req: Request, resp: Response | None, error: Refused, params) -> None:
    """What was refused becomes an answer."""
    resp.status = error.status
    resp.set_headers(error.headers)
    resp.media = error.body


database = Database()
app = falcon.asgi.App(middleware=[database])
app.resp_options.media_handlers[falcon.MEDIA_JSON] = media.JSONHandler(dumps=orjson.dumps, loads=orjson.loads)
app.add_error_handler(Refused, refused)
app.add_route("/hello", Hello())
app.add_route("/v1/devices/{device}/readings", Readings(database))
app.add_route("/v1/devices/{device}/latest", Latest(database))
app.add_route("/echo", Echo())
