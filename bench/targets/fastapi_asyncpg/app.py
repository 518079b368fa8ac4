"""FastAPI on uvicorn with asyncpg: pydantic validates, dependencies authenticate, a lifespan owns the pool."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, Self

import answers
from checks import LATEST_HEADERS, Refused, admit
from fastapi import Body, Depends, FastAPI, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from readings import Row, unique_time
from store import Store


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Store]]:
    """The pool, as long as the application runs."""
    store = await Store.open(os.environ["BENCH_DATABASE"])
    yield {"store": store}
    await store.close()


app = FastAPI(openapi_url=None, lifespan=lifespan)

Metric = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.:/%-]{1,64}$")]
Number = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]


def real(value: object) -> object:
    """pydantic would take an integer that is no Number for a float."""
    if not isinstance(value, float):
        raise ValueError("expected a float")
    return value


Real = Annotated[float, BeforeValidator(real), Field(allow_inf_nan=False)]
Value = StrictBool | Number | Real | Annotated[StrictStr, Field(max_length=1024)]
Time = Annotated[StrictInt, Field(ge=0, lt=253402300800000)]


class Item(BaseModel):
    """One reading, or several of one time in `values`; `ts` in milliseconds since 1970."""

    model_config = ConfigDict(extra="forbid")
    metric: Metric | None = None
    value: Value | None = None
    ts: Time | None = None
    values: dict[Metric, Value] | None = None

    @model_validator(mode="after")
    def either(self) -> Self:
        """Either of both."""
        single = self.metric is not None and self.value is not None
        if single == bool(self.values) or (self.metric is None) != (self.value is None):
            raise ValueError("expected metric and value, or values")
        return self

    @property
    def rows(self) -> list[Row]:
        """Metric, microseconds, value."""
        ts = unique_time() if self.ts is None else self.ts * 1000
        if self.values is None:
            return [(self.metric, ts, self.value)]
        return [(metric, ts, value) for metric, value in self.values.items()]


class Written(BaseModel):
    """What became of a write."""

    accepted: int
    duplicates: int
    rejected_count: int
    rejected: list[dict[str, str]]
    position: str


class Stored(BaseModel):
    """A reading of a page."""

    offset: int
    metric: str
    ts: str
    value: StrictBool | StrictInt | StrictFloat | StrictStr


class Page(BaseModel):
    """Readings, and where the next page begins."""

    items: list[Stored]
    next: str | None


whole = TypeAdapter(list[Item])
one = TypeAdapter(Item)


@app.exception_handler(Refused)
async def refused(request: Request, error: Refused) -> JSONResponse:
    """What was refused becomes an answer."""
    return JSONResponse(error.body, error.status, error.headers)


def allowed(scope: str) -> Callable[..., None]:
    """A dependency: the token, scope, grant and limit; it sets the headers of the answer."""

    async def check(
        device: str,
        response: Response,
        authorization: Annotated[str | None, Header()] = None,
        x_request_id: Annotated[str | None, Header()] = None,
    ) -> None:
        response.headers.update(admit(authorization, scope, device, x_request_id))

    return check


async def store(request: Request) -> Store:
    """A dependency: where readings are."""
    return request.state.store


StoreOf = Annotated[Store, Depends(store)]


@app.get("/hello")
async def hello() -> dict[str, bool]:
    """The smallest JSON."""
    return {"ok": True}


@app.post("/v1/devices/{device}/readings", dependencies=[Depends(allowed("readings:write"))])
async def write(
    device: str, store: StoreOf, body: Annotated[Item | Annotated[list[Any], Field(max_length=10_000)], Body()]
) -> Written:
    """Store readings, durably, before the answer."""
    rows, rejected = sorted_out(body) if isinstance(body, list) else (body.rows, [])
    return answers.written(len(rows), await store.add(device, rows), rejected)


def sorted_out(body: list[Any]) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows of the good items, and what is wrong with the others."""
    try:
        return [row for item in whole.validate_python(body) for row in item.rows], []
    except ValidationError:
        rows, rejected = [], []
    for number, each in enumerate(body):
        try:
            rows += one.validate_python(each).rows
        except ValidationError as error:
            rejected.append({"pointer": f"/{number}", "code": "invalid", "detail": error.errors()[0]["msg"]})
    if not rows:
        raise RequestValidationError(rejected)
    return rows, rejected


@app.get("/v1/devices/{device}/latest", dependencies=[Depends(allowed("readings:read"))])
async def latest(
    device: str,
    response: Response,
    store: StoreOf,
    if_none_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """The latest value of each metric."""
    body = await store.latest(device)
    response.headers.update({"ETag": answers.etag(body), **LATEST_HEADERS})
    if if_none_match == response.headers["ETag"]:
        return Response(status_code=304, headers=dict(response.headers))
    return body


@app.get("/v1/devices/{device}/readings", dependencies=[Depends(allowed("readings:read"))])
async def page(
    request: Request,
    response: Response,
    device: str,
    store: StoreOf,
    metric: str,
    start: Annotated[int, Query(alias="from", ge=0)] = 0,
    stop: Annotated[int, Query(alias="to", ge=0)] = 253402300799999,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int | None, Query(ge=0)] = None,
) -> Page:
    """One page of a range."""
    body = await store.page(device, metric, start * 1000, stop * 1000, order == "desc", limit, cursor)
    response.headers.update(answers.link(f"{request.url.path}?{request.url.query}", body))
    return body


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Give back each text."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass
