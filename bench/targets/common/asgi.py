"""The contract as an ASGI application without a framework, for the servers that are measured raw.

The answer of /hello is constant. Routing is one dict access, or one regular expression.
"""

import asyncio
import os
import re
from typing import Any
from urllib.parse import parse_qsl

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit, http_date
from readings import page_query, parse
from store import Store

# Servers that send no Date of their own get one.
DATELESS = os.environ.get("BENCH_DATELESS") == "1"
HELLO_BODY = b'{"ok":true}'
HELLO_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(HELLO_BODY))]
HELLO = {"type": "http.response.start", "status": 200, "headers": HELLO_HEADERS}
HELLO_END = {"type": "http.response.body", "body": HELLO_BODY}
DEVICE = re.compile(r"/v1/devices/([^/]+)/(latest|readings)")


class Application:
    """Callable as ASGI has it; opens its store at the lifespan's start, or else at the first need."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, scope, receive, send) -> None:
        """One request, one WebSocket, or the lifespan."""
        if scope["type"] == "http":
            if scope["path"] == "/hello":
                await send(HELLO)
                await send(HELLO_END)
            else:
                await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await _echo(scope, receive, send)
        else:
            await self._lifespan(receive, send)

    async def _http(self, scope, receive, send) -> None:
        headers: dict[str, str] = {}
        try:
            status, body, headers = await self._answer(scope, receive)
        except Refused as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        data = b"" if body is None else orjson.dumps(body)
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        if body is not None:
            pairs += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        if DATELESS:
            pairs.append((b"date", http_date().encode()))
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, scope, receive) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers. Refused."""
        found = DEVICE.fullmatch(scope["path"])
        if found is None:
            raise Refused(404, "not_found")
        device, what = found.groups()
        given = {name: value for name, value in scope["headers"] if name in WANTED}
        writes = scope["method"] == "POST"
        # Some servers hang up on whoever is refused before the body has come.
        content = await _body(receive) if writes else b""
        headers = admit(
            _text(given, b"authorization"),
            "readings:write" if writes else "readings:read",
            device,
            _text(given, b"x-request-id"),
        )
        store = self._store or await self._open()
        if writes:
            rows, rejected = parse(content)
            return 200, answers.written(len(rows), await store.add(device, rows), rejected), headers
        if what == "latest":
            body = await store.latest(device)
            headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
            known = _text(given, b"if-none-match") == headers["ETag"]
            return (304, None, headers) if known else (200, body, headers)
        query = scope["query_string"].decode()
        body = await store.page(device, **page_query(dict(parse_qsl(query))))
        return 200, body, headers | answers.link(f"{scope['path']}?{query}", body)

    async def _open(self) -> Store:
        async with self._opening:
            if self._store is None:
                self._store = await Store.open(os.environ["BENCH_DATABASE"])
            return self._store

    async def _lifespan(self, receive, send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._open()
            elif self._store is not None:
                await self._store.close()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


WANTED = {b"authorization", b"x-request-id", b"if-none-match"}


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def _body(receive) -> bytes:
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _echo(scope, receive, send) -> None:
    """Give back each text."""
    await receive()
    if scope["path"] != "/echo":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


app = Application()
