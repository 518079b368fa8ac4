"""Flask on gunicorn with psycopg: ten threads and a pool of ten connections, in one process.

One process, since the limit and the latest values are in its memory, and there is one core.
"""

import os
from typing import Any

import answers
import orjson
from checks import LATEST_HEADERS, Refused, admit
from flask import Flask, request
from flask.json.provider import JSONProvider
from flask.typing import ResponseReturnValue
from psycopg_pool import ConnectionPool
from readings import page_query, parse
from sql import SCHEMA
from sync_store import Store

POOL = 10


class Orjson(JSONProvider):
    """JSON by orjson."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """As text, which Flask asks for."""
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Of text."""
        return orjson.loads(s)


app = Flask(__name__)
app.json = Orjson(app)
pool = ConnectionPool(
    os.environ["BENCH_DATABASE"], min_size=POOL, max_size=POOL, kwargs={"autocommit": True}, open=True
)


def run(statement: str, arguments: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of a statement on a connection of the pool."""
    with pool.connection() as connection:
        cursor = connection.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else []


run(SCHEMA, [])
store = Store(run)


def admitted(scope: str, device: str) -> dict[str, str]:
    """The headers of the answer, if the request may go on. Refused."""
    given = request.headers
    return admit(given.get("Authorization"), scope, device, given.get("X-Request-ID"))


@app.get("/hello")
def hello() -> ResponseReturnValue:
    """The smallest JSON."""
    return {"ok": True}


@app.post("/v1/devices/<device>/readings")
def write(device: str) -> ResponseReturnValue:
    """Store readings, durably, before the answer."""
    headers = admitted("readings:write", device)
    rows, rejected = parse(request.get_data())
    return answers.written(len(rows), store.add(device, rows), rejected), headers


@app.get("/v1/devices/<device>/latest")
def latest(device: str) -> ResponseReturnValue:
    """The latest value of each metric."""
    headers = admitted("readings:read", device)
    body = store.latest(device)
    headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    return ("", 304, headers) if request.headers.get("If-None-Match") == headers["ETag"] else (body, headers)


@app.get("/v1/devices/<device>/readings")
def page(device: str) -> ResponseReturnValue:
    """One page of a range."""
    headers = admitted("readings:read", device)
    body = store.page(device, **page_query(request.args.to_dict()))
    return body, headers | answers.link(request.full_path, body)


@app.errorhandler(Refused)
def refused(error: Refused) -> ResponseReturnValue:
    """What was refused becomes an answer."""
    return error.body, error.status, error.headers
