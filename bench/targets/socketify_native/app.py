"""socketify: uWebSockets in C++ by its own interface; handlers that await run on its asyncio loop."""

import os
import sys
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit, http_date
from readings import page_query, parse
from socketify import App, OpCode
from store import Store

NAMES = ("metric", "from", "to", "order", "limit", "cursor")
app = App()
stores: list[Store] = []


@app.on_start
async def start() -> None:
    """The pool, before anything is served."""
    stores.append(await Store.open(os.environ["BENCH_DATABASE"]))


def hello(res, req) -> None:
    """The smallest JSON; no coroutine is needed."""
    res.write_header("Content-Type", "application/json").end(b'{"ok":true}')


def answer(res, status: int, body: Any, headers: dict[str, str]) -> None:
    """All in one write (cork)."""

    def write(res) -> None:
        res.write_status(status)
        for name, value in headers.items():
            res.write_header(name, value)
        res.write_header("Date", http_date())
        if body is None:
            res.end_without_body()
        else:
            res.write_header("Content-Type", "application/json")
            res.end(orjson.dumps(body))

    res.cork(write)


def admitted(req, scope: str) -> tuple[str, dict[str, str]]:
    """The device, and the headers of the answer. Refused. A request is gone at the first await."""
    device = req.get_parameter(0)
    return device, admit(req.get_header("authorization"), scope, device, req.get_header("x-request-id"))


async def write(res, req) -> None:
    """Store readings, durably, before the answer."""
    try:
        device, headers = admitted(req, "readings:write")
        body = await res.get_data()
        rows, rejected = parse(body.getvalue())
        stored = await stores[0].add(device, rows)
    except Refused as refused:
        answer(res, refused.status, refused.body, refused.headers)
        return
    answer(res, 200, answers.written(len(rows), stored, rejected), headers)


async def latest(res, req) -> None:
    """The latest value of each metric."""
    try:
        device, headers = admitted(req, "readings:read")
    except Refused as refused:
        answer(res, refused.status, refused.body, refused.headers)
        return
    known = req.get_header("if-none-match")
    body = await stores[0].latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if known == headers["ETag"]:
        answer(res, 304, None, headers)
    else:
        answer(res, 200, body, headers)


async def page(res, req) -> None:
    """One page of a range."""
    try:
        device, headers = admitted(req, "readings:read")
        query = {name: value for name in NAMES if (value := req.get_query(name)) is not None}
        url = req.get_full_url()
        body = await stores[0].page(device, **page_query(query))
    except Refused as refused:
        answer(res, refused.status, refused.body, refused.headers)
        return
    answer(res, 200, body, headers | answers.link(url, body))


def echo(ws, message, opcode) -> None:
    """Give back each text."""
    ws.send(message, OpCode.TEXT)


app.get("/hello", hello)
app.any("/*", lambda res, req: answer(res, 404, {"code": "not_found"}, {}))
app.post("/v1/devices/:device/readings", write)
app.get("/v1/devices/:device/readings", page)
app.get("/v1/devices/:device/latest", latest)
app.ws("/echo", {"message": echo, "compression": 0})
app.listen(int(sys.argv[1]))
app.run()
