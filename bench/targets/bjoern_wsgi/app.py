"""bjoern: libev and http-parser in C, a WSGI application without a framework.

It handles one request at a time, so it has one connection to PostgreSQL, and each write waits for the disk
before the next begins.
"""

import os
import re
import sys
from typing import Any
from urllib.parse import parse_qsl

import answers
import bjoern
import orjson
import psycopg
from checks import LATEST_HEADERS, Refused, admit, http_date
from readings import page_query, parse
from sql import SCHEMA
from sync_store import Store

HELLO = b'{"ok":true}'
HELLO_HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(HELLO)))]
STATUS = {
    200: "200 OK",
    304: "304 Not Modified",
    400: "400 Bad Request",
    401: "401 Unauthorized",
    403: "403 Forbidden",
    404: "404 Not Found",
    413: "413 Content Too Large",
    422: "422 Unprocessable Content",
    429: "429 Too Many Requests",
}
DEVICE = re.compile(r"/v1/devices/([^/]+)/(latest|readings)")
connection = psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True)


def run(statement: str, arguments: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    cursor = connection.execute(statement, arguments)
    return cursor.fetchall() if cursor.description else []


run(SCHEMA, [])
store = Store(run)


def app(environ, start_response) -> list[bytes]:
    """One request."""
    if environ["PATH_INFO"] == "/hello":
        start_response("200 OK", HELLO_HEADERS)
        return [HELLO]
    try:
        status, body, headers = answer(environ)
    except Refused as refused:
        status, body, headers = refused.status, refused.body, refused.headers
    data = b"" if body is None else orjson.dumps(body)
    pairs = [*headers.items(), ("Date", http_date()), ("Content-Length", str(len(data)))]
    if body is not None:
        pairs.append(("Content-Type", "application/json"))
    start_response(STATUS[status], pairs)
    return [data]


def answer(environ) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers. Refused."""
    found = DEVICE.fullmatch(environ["PATH_INFO"])
    if found is None:
        raise Refused(404, "not_found")
    device, what = found.groups()
    writes = environ["REQUEST_METHOD"] == "POST"
    headers = admit(
        environ.get("HTTP_AUTHORIZATION"),
        "readings:write" if writes else "readings:read",
        device,
        environ.get("HTTP_X_REQUEST_ID"),
    )
    if writes:
        rows, rejected = parse(environ["wsgi.input"].read())
        return 200, answers.written(len(rows), store.add(device, rows), rejected), headers
    if what == "latest":
        body = store.latest(device)
        headers |= {"ETag": answers.etag(body), **LATEST_HEADERS}
        known = environ.get("HTTP_IF_NONE_MATCH") == headers["ETag"]
        return (304, None, headers) if known else (200, body, headers)
    query = environ["QUERY_STRING"]
    body = store.page(device, **page_query(dict(parse_qsl(query))))
    return 200, body, headers | answers.link(f"{environ['PATH_INFO']}?{query}", body)


bjoern.run(app, "127.0.0.1", int(sys.argv[1]))
