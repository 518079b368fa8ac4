"""granian's own interface, RSGI: HTTP is parsed and written in Rust, one call answers."""

import os
import re
from typing import Any
from urllib.parse import parse_qsl

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit
from readings import page_query, parse
from store import Store

BODY = b'{"ok":true}'
HEADERS = [("content-type", "application/json")]
DEVICE = re.compile(r"/v1/devices/([^/]+)/(latest|readings)")


class Application:
    """Callable by the hooks of RSGI."""

    store: Store

    def __rsgi_init__(self, loop) -> None:
        """The pool, before anything is served."""
        self.store = loop.run_until_complete(Store.open(os.environ["BENCH_DATABASE"]))

    def __rsgi_del__(self, loop) -> None:
        """Let go of it."""
        loop.run_until_complete(self.store.close())

    async def __rsgi__(self, scope, protocol) -> None:
        """One request or WebSocket."""
        if scope.path == "/hello":
            protocol.response_bytes(200, HEADERS, BODY)
            return
        if scope.proto == "ws":
            await echo(protocol)
            return
        try:
            status, body, headers = await self._answer(scope, protocol)
        except Refused as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        pairs = [(name.lower(), value) for name, value in headers.items()]
        if body is None:
            protocol.response_empty(status, pairs)
        else:
            protocol.response_bytes(status, [*HEADERS, *pairs], orjson.dumps(body))

    async def _answer(self, scope, protocol) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers. Refused."""
        found = DEVICE.fullmatch(scope.path)
        if found is None:
            raise Refused(404, "not_found")
        (device, what), given = found.groups(), scope.headers
        writes = scope.method == "POST"
        headers = admit(
            given.get("authorization"),
            "readings:write" if writes else "readings:read",
            device,
            given.get("x-request-id"),
        )
        if writes:
            rows, rejected = parse(await protocol())
            return 200, answers.written(len(rows), await self.store.add(device, rows), rejected), headers
        if what == "latest":
            body = await self.store.latest(device)
            headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
            known = given.get("if-none-match") == headers["ETag"]
            return (304, None, headers) if known else (200, body, headers)
        body = await self.store.page(device, **page_query(dict(parse_qsl(scope.query_string))))
        return 200, body, headers | answers.link(f"{scope.path}?{scope.query_string}", body)


async def echo(protocol) -> None:
    """Give back each text."""
    socket = await protocol.accept()
    # 0: the end, 1: bytes, 2: a text.
    while (message := await socket.receive()).kind == 2:
        await socket.send_str(message.data)


app = Application()
