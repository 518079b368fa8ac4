"""Litestar on granian with asyncpg: typed handlers, msgspec for bodies, dependencies, a lifespan for the pool.

The body is a msgspec type, which Litestar decodes; items of an array are converted one by one, since one that
is bad must not cost the others.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import answers
import msgspec
from checks import LATEST_HEADERS, Refused, admit
from litestar import Litestar, Request, Response, get, post, websocket_listener
from litestar.datastructures import State
from litestar.exceptions import ValidationException
from litestar.params import Parameter
from readings import Item, Row, check_count, rows
from store import Store


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """The pool, as long as the application runs."""
    app.state.store = await Store.open(os.environ["BENCH_DATABASE"])
    yield
    await app.state.store.close()


async def can_read(request: Request, device: str) -> dict[str, str]:
    """A dependency: the headers of the answer, if a device may be read. Refused."""
    return admitted(request, "readings:read", device)


async def can_write(request: Request, device: str) -> dict[str, str]:
    """A dependency: the headers of the answer, if a device may be written. Refused."""
    return admitted(request, "readings:write", device)


def admitted(request: Request, scope: str, device: str) -> dict[str, str]:
    """The headers of the answer. Refused."""
    given = request.headers
    return admit(given.get("authorization"), scope, device, given.get("x-request-id"))


@get("/hello")
async def hello() -> dict[str, bool]:
    """The smallest JSON."""
    return {"ok": True}


@post("/v1/devices/{device:str}/readings", status_code=200, dependencies={"allowed": can_write})
async def write(
    device: str, allowed: dict[str, str], data: Item | list[Any], state: State
) -> Response[dict[str, Any]]:
    """Store readings, durably, before the answer."""
    good, rejected = sorted_out(data) if isinstance(data, list) else (rows(data), [])
    stored = await state.store.add(device, good)
    return Response(answers.written(len(good), stored, rejected), headers=allowed)


def sorted_out(items: list[Any]) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows of the good items, and what is wrong with the others."""
    check_count(items)
    good, rejected = [], []
    for number, each in enumerate(items):
        try:
            good += rows(msgspec.convert(each, Item))
        except msgspec.ValidationError as error:
            rejected.append({"pointer": f"/{number}", "code": "invalid", "detail": str(error)})
    if not good:
        raise Refused(422, "invalid")
    return good, rejected


@get("/v1/devices/{device:str}/latest", dependencies={"allowed": can_read})
async def latest(
    device: str,
    allowed: dict[str, str],
    state: State,
    if_none_match: Annotated[str | None, Parameter(header="If-None-Match")] = None,
) -> Response[dict[str, Any] | None]:
    """The latest value of each metric."""
    body = await state.store.latest(device)
    allowed |= {"ETag": answers.etag(body), **LATEST_HEADERS}
    if if_none_match == allowed["ETag"]:
        return Response(None, status_code=304, headers=allowed)
    return Response(body, headers=allowed)


@get("/v1/devices/{device:str}/readings", dependencies={"allowed": can_read})
async def page(
    request: Request,
    device: str,
    allowed: dict[str, str],
    state: State,
    metric: str,
    start: Annotated[int, Parameter(query="from", ge=0)] = 0,
    stop: Annotated[int, Parameter(query="to", ge=0)] = 253402300799999,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    cursor: Annotated[int | None, Parameter(ge=0)] = None,
) -> Response[dict[str, Any]]:
    """One page of a range."""
    body = await state.store.page(device, metric, start * 1000, stop * 1000, order == "desc", limit, cursor)
    allowed |= answers.link(f"{request.url.path}?{request.url.query}", body)
    return Response(body, headers=allowed)


@websocket_listener("/echo")
async def echo(data: str) -> str:
    """Give back each text."""
    return data


def refused(request: Request, error: Refused) -> Response[dict[str, object]]:
    """What was refused becomes an answer."""
    return Response(error.body, status_code=error.status, headers=error.headers)


def invalid(request: Request, error: ValidationException) -> Response[dict[str, object]]:
    """A body that Litestar finds invalid is 422 here."""
    return refused(request, Refused(422, "invalid"))


app = Litestar(
    [hello, write, latest, page, echo],
    lifespan=[lifespan],
    openapi_config=None,
    exception_handlers={Refused: refused, ValidationException: invalid},
)
