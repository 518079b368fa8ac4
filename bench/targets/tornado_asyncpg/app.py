"""Tornado with asyncpg: handlers as classes, `prepare` authenticates, asyncio's loop by uvloop."""

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import answers
import orjson
import tornado.web
import tornado.websocket
import uvloop
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from store import Store


class Handler(tornado.web.RequestHandler):
    """What the handlers of a device share: the check of the request, JSON, errors."""

    def prepare(self) -> None:
        """Token, scope, grant and limit, before the handler. Refused."""
        scope = "readings:write" if self.request.method == "POST" else "readings:read"
        given = self.request.headers
        headers = admit(given.get("Authorization"), scope, self.path_args[0], given.get("X-Request-ID"))
        self.put(headers)

    def put(self, headers: dict[str, str]) -> None:
        """Set headers."""
        for name, value in headers.items():
            self.set_header(name, value)

    def say(self, body: Any) -> None:
        """JSON by orjson."""
        self.set_header("Content-Type", "application/json")
        self.finish(orjson.dumps(body))

    def compute_etag(self) -> None:
        """None but the contract's own."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What was refused becomes an answer."""
        error = kwargs["exc_info"][1]
        refused = error if isinstance(error, Refused) else Refused(status_code, "error")
        self.set_status(refused.status)
        self.put(refused.headers)
        self.say(refused.body)

    def log_exception(self, kind, error, trace) -> None:
        """What was refused is no fault."""
        if not isinstance(error, Refused):
            super().log_exception(kind, error, trace)


class Hello(tornado.web.RequestHandler):
    """The smallest JSON."""

    def get(self) -> None:
        """GET: a dict becomes JSON."""
        self.write({"ok": True})

    def compute_etag(self) -> None:
        """None."""


class Readings(Handler):
    """Those of a device."""

    def initialize(self, store: Store) -> None:
        """Where they are."""
        self.store = store

    async def post(self, device: str) -> None:
        """Store readings, durably, before the answer."""
        rows, rejected = parse(self.request.body)
        self.say(answers.written(len(rows), await self.store.add(device, rows), rejected))

    async def get(self, device: str) -> None:
        """One page of a range."""
        query = {name: values[0].decode() for name, values in self.request.query_arguments.items()}
        body = await self.store.page(device, **page_query(query))
        self.put(answers.link(self.request.uri, body))
        self.say(body)


class Latest(Handler):
    """The latest value of each metric."""

    def initialize(self, store: Store) -> None:
        """Where they are."""
        self.store = store

    async def get(self, device: str) -> None:
        """GET, 304 if they are known."""
        body = await self.store.latest(device)
        etag = answers.etag(body)
        self.put({"ETag": etag, **LATEST_HEADERS})
        if self.request.headers.get("If-None-Match") == etag:
            self.set_status(304)
        else:
            self.say(body)


class Echo(tornado.websocket.WebSocketHandler):
    """Gives back each text."""

    async def on_message(self, message: str) -> None:
        """One text."""
        await self.write_message(message)


async def main(port: int) -> None:
    """Until the process is asked to end."""
    store = await Store.open(os.environ["BENCH_DATABASE"])
    given = {"store": store}
    application = tornado.web.Application(
        [
            (r"/hello", Hello),
            (r"/v1/devices/([^/]+)/readings", Readings, given),
            (r"/v1/devices/([^/]+)/latest", Latest, given),
            (r"/echo", Echo),
        ],
        log_function=lambda handler: None,
    )
    server = application.listen(port, "127.0.0.1", backlog=4096)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.stop()
    await store.close()


logging.getLogger("tornado").setLevel(logging.ERROR)
uvloop.run(main(int(sys.argv[1])))
