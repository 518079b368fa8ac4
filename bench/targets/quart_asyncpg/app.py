"""Quart on hypercorn with asyncpg: a blueprint-free application, orjson by its JSON provider, serving hooks."""

import os
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit
from quart import Quart, ResponseReturnValue, request, websocket
from quart.json.provider import JSONProvider
from readings import page_query, parse
from store import Store


class Orjson(JSONProvider):
    """JSON by orjson."""

    def dumps(self, object_: Any, **kwargs: Any) -> str:
        """As text, which Quart asks for."""
        return orjson.dumps(object_).decode()

    def loads(self, object_: str | bytes, **kwargs: Any) -> Any:
        """Of text."""
        return orjson.loads(object_)


app = Quart(__name__)
app.json = Orjson(app)


@app.before_serving
async def start() -> None:
    """The pool, as long as the application runs."""
    app.store = await Store.open(os.environ["BENCH_DATABASE"])


@app.after_serving
async def stop() -> None:
    """Let go of it."""
    await app.store.close()


def admitted(scope: str, device: str) -> dict[str, str]:
    """The headers of the answer, if the request may go on. Refused."""
    given = request.headers
    return admit(given.get("Authorization"), scope, device, given.get("X-Request-ID"))


@app.get("/hello")
async def hello() -> ResponseReturnValue:
    """The smallest JSON."""
    return {"ok": True}


@app.post("/v1/devices/<device>/readings")
async def write(device: str) -> ResponseReturnValue:
    """Store readings, durably, before the answer."""
    headers = admitted("readings:write", device)
    rows, rejected = parse(await request.get_data())
    return answers.written(len(rows), await app.store.add(device, rows), rejected), headers


@app.get("/v1/devices/<device>/latest")
async def latest(device: str) -> ResponseReturnValue:
    """The latest value of each metric."""
    headers = admitted("readings:read", device)
    body = await app.store.latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    return ("", 304, headers) if request.headers.get("If-None-Match") == headers["ETag"] else (body, headers)


@app.get("/v1/devices/<device>/readings")
async def page(device: str) -> ResponseReturnValue:
    """One page of a range."""
    headers = admitted("readings:read", device)
    body = await app.store.page(device, **page_query(request.args.to_dict()))
    return body, headers | answers.link(request.full_path, body)


@app.websocket("/echo")
async def echo() -> None:
    """Give back each text."""
    while True:
        await websocket.send(await websocket.receive())


@app.errorhandler(Refused)
async def refused(error: Refused) -> ResponseReturnValue:
    """What was refused becomes an answer."""
    return error.body, error.status, error.headers
