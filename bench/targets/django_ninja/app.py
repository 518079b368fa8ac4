"""Django with Ninja on gunicorn: pydantic by Ninja, Django's pool of psycopg connections; ten threads, one process.

SQL by Django's cursor, since its ORM does not tell how many rows of an INSERT ... ON CONFLICT were new.
"""

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import answers
import django
import orjson
from checks import LATEST_HEADERS, Refused, admit
from django.conf import settings

url = urlsplit(os.environ["BENCH_DATABASE"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="not used",
    ROOT_URLCONF=__name__,
    # Says how long an answer is.
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    USE_TZ=True,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "HOST": url.hostname,
            "PORT": url.port,
            "OPTIONS": {"pool": {"min_size": 10, "max_size": 10}},
        }
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from ninja import NinjaAPI, Query, Schema  # noqa: E402
from ninja.parser import Parser  # noqa: E402
from ninja.renderers import BaseRenderer  # noqa: E402
from pydantic import (  # noqa: E402
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from readings import Row, unique_time  # noqa: E402
from sql import SCHEMA  # noqa: E402
from sync_store import Store  # noqa: E402


class Orjson(BaseRenderer):
    """Answers by orjson, as Ninja's documentation makes them."""

    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        """The bytes."""
        return orjson.dumps(data)


class OrjsonParser(Parser):
    """Bodies by orjson."""

    def parse_body(self, request: HttpRequest) -> Any:
        """The object."""
        return orjson.loads(request.body)


api = NinjaAPI(openapi_url=None, renderer=Orjson(), parser=OrjsonParser())


def run(statement: str, arguments: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of a statement on this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else []


run(SCHEMA, [])
connection.close()
store = Store(run)


def real(value: object) -> object:
    """pydantic would take an integer that is no Number for a float."""
    if not isinstance(value, float):
        raise ValueError("expected a float")
    return value


Metric = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.:/%-]{1,64}$")]
Number = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
Real = Annotated[float, BeforeValidator(real), Field(allow_inf_nan=False)]
Value = StrictBool | Number | Real | Annotated[StrictStr, Field(max_length=1024)]
Time = Annotated[StrictInt, Field(ge=0, lt=253402300800000)]


class Item(Schema):
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


class Body(RootModel[Item | Annotated[list[Any], Field(min_length=1, max_length=10_000)]]):
    """An item, or many, which are validated one by one."""


class Page(Schema):
    """What a page is asked by; times in milliseconds."""

    metric: Metric
    start: Annotated[int, Field(alias="from", ge=0)] = 0
    stop: Annotated[int, Field(alias="to", ge=0)] = 253402300799999
    order: Literal["asc", "desc"] = "asc"
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[int, Field(ge=0)] | None = None


whole = TypeAdapter(list[Item])
one = TypeAdapter(Item)


def allow(scope: str) -> Callable[[HttpRequest], dict[str, str]]:
    """What Ninja asks before it looks at the body: the headers of the answer become request.auth. Refused."""

    def check(request: HttpRequest) -> dict[str, str]:
        given, device = request.headers, request.resolver_match.kwargs["device"]
        return admit(given.get("Authorization"), scope, device, given.get("X-Request-ID"))

    return check


def put(response: HttpResponse, headers: dict[str, str]) -> None:
    """Set headers."""
    for name, value in headers.items():
        response.headers[name] = value


@api.get("/hello")
def hello(request: HttpRequest) -> dict[str, bool]:
    """The smallest JSON."""
    return {"ok": True}


@api.post("/v1/devices/{device}/readings", auth=allow("readings:write"))
def write(request: HttpRequest, response: HttpResponse, device: str, body: Body) -> dict[str, Any]:
    """Store readings, durably, before the answer."""
    put(response, request.auth)
    given = body.root
    rows, rejected = sorted_out(given) if isinstance(given, list) else (given.rows, [])
    return answers.written(len(rows), store.add(device, rows), rejected)


def sorted_out(items: list[Any]) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows of the good items, and what is wrong with the others."""
    try:
        return [row for item in whole.validate_python(items) for row in item.rows], []
    except ValidationError:
        rows, rejected = [], []
    for number, each in enumerate(items):
        try:
            rows += one.validate_python(each).rows
        except ValidationError as error:
            rejected.append({"pointer": f"/{number}", "code": "invalid", "detail": error.errors()[0]["msg"]})
    if not rows:
        raise Refused(422, "invalid")
    return rows, rejected


@api.get("/v1/devices/{device}/latest", auth=allow("readings:read"))
def latest(request: HttpRequest, response: HttpResponse, device: str) -> Any:
    """The latest value of each metric."""
    body = store.latest(device)
    put(response, {**request.auth, "ETag": answers.etag(body), **LATEST_HEADERS})
    if request.headers.get("If-None-Match") == response.headers["ETag"]:
        return HttpResponse(status=304, headers=dict(response.headers))
    return body


@api.get("/v1/devices/{device}/readings", auth=allow("readings:read"))
def page(request: HttpRequest, response: HttpResponse, device: str, asked: Query[Page]) -> dict[str, Any]:
    """One page of a range."""
    low, high, down = asked.start * 1000, asked.stop * 1000, asked.order == "desc"
    body = store.page(device, asked.metric, low, high, down, asked.limit, asked.cursor)
    put(response, {**request.auth, **answers.link(request.get_full_path(), body)})
    return body


@api.exception_handler(Refused)
def refused(request: HttpRequest, error: Refused) -> HttpResponse:
    """What was refused becomes an answer."""
    response = api.create_response(request, error.body, status=error.status)
    put(response, error.headers)
    return response


urlpatterns = [path("", api.urls)]
app = get_wsgi_application()
