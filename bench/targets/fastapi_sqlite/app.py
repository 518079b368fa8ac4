"""FastAPI + uvicorn + SQLite: one INSERT and one commit per request, with the checks of the contract.

As its documentation would have it: pydantic validates both ways, a dependency authenticates, plain
`def` endpoints run in the thread pool and may block. WAL and synchronous=FULL, as Tidegate has it; each
thread reads by a connection of its own.
"""

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

SECRET = os.environ["BENCH_SECRET"]
DATABASE = os.environ["BENCH_DATA"] + "/bench.db"
# Requests per minute of a principal.
LIMIT = int(os.environ["BENCH_LIMIT"])
INTERVAL, BURST = 60 / LIMIT, max(1, LIMIT // 10)
DEPTH = BURST * INTERVAL

app = FastAPI(openapi_url=None)
lock = threading.Lock()
local = threading.local()
database = sqlite3.connect(DATABASE, check_same_thread=False, isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute(
    "CREATE TABLE IF NOT EXISTS readings "
    "(id INTEGER PRIMARY KEY, device TEXT, metric TEXT, ts INTEGER, value, UNIQUE (device, metric, ts))"
)
buckets: dict[str, float] = {}



def real(value: object) -> object:
    """pydantic would take an integer that is out of range for a float."""
    if not isinstance(value, float):
        raise ValueError("expected a float")
    return value


Number = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
Real = Annotated[float, BeforeValidator(real), Field(allow_inf_nan=False)]
Value = StrictBool | Number | Real | Annotated[StrictStr, Field(max_length=1024)]


class Reading(BaseModel):
    """One reading; `ts` in milliseconds since 1970."""

    model_config = ConfigDict(extra="forbid")
    metric: str = Field(pattern=r"^[A-Za-z0-9_.:/%-]{1,64}$")
    value: Value
    ts: Annotated[StrictInt, Field(ge=0, lt=253402300800000)] | None = None


class Stored(BaseModel):
    """A reading of a page."""

    offset: int
    metric: str
    ts: datetime
    value: Value


class Page(BaseModel):
    """Readings, and where the next page begins."""

    items: list[Stored]
    next: str | None


def principal(scope: str) -> Callable[..., dict[str, Any]]:
    """A dependency: the verified token, with that scope and a grant for the device, under its limit."""

    def verified(
        device: str,
        response: Response,
        authorization: Annotated[str, Header()] = "",
        x_request_id: Annotated[str, Header(max_length=128)] = "",
    ) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                authorization.removeprefix("Bearer "),
                SECRET,
                algorithms=["HS256"],
                audience="tidegate",
                issuer="tidegate",
                options={"require": ["exp", "iat", "aud", "iss", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise HTTPException(401) from error
        if scope not in claims["scope"].split():
            raise HTTPException(403)
        if not any(device.startswith(pattern.removesuffix(">")) for pattern in claims["devices"]):
            raise HTTPException(403 if scope.endswith(":write") else 404)
        # GCRA, as in Tidegate.
        now = time.monotonic()
        arrival = max(buckets.get(claims["sub"], now), now) + INTERVAL
        fill = arrival - now
        if fill > DEPTH:
            raise HTTPException(429, headers={"Retry-After": str(int(fill - DEPTH) + 1)})
        buckets[claims["sub"]] = arrival
        response.headers["X-Request-ID"] = x_request_id or secrets.token_hex(16)
        response.headers["RateLimit-Policy"] = f'"requests";q={LIMIT};w=60'
        response.headers["RateLimit"] = f'"requests";r={int((DEPTH - fill) / INTERVAL)};t={int(fill) + 1}'
        return claims

    return verified


def reader() -> sqlite3.Connection:
    """This thread's connection."""
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, isolation_level=None)
    connection: sqlite3.Connection = local.connection
    return connection


@app.get("/hello")
async def hello() -> dict[str, bool]:
    """The smallest JSON."""
    return {"ok": True}


@app.post("/v1/devices/{device}/readings")
def write(
    device: str, reading: Reading, _: Annotated[dict[str, Any], Depends(principal("readings:write"))]
) -> dict[str, Any]:
    """Store one reading, durably, before the answer."""
    with lock:
        ts = time.time_ns() // 1000 if reading.ts is None else reading.ts * 1000
        cursor = database.execute(
            "INSERT INTO readings (device, metric, ts, value) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (device, reading.metric, ts, reading.value),
        )
        accepted = cursor.rowcount
    return {
        "accepted": accepted,
        "duplicates": 1 - accepted,
        "rejected_count": 0,
        "rejected": [],
        "position": str(cursor.lastrowid),
    }


@app.get("/v1/devices/{device}/readings")
def page(
    request: Request,
    response: Response,
    device: str,
    _: Annotated[dict[str, Any], Depends(principal("readings:read"))],
    metric: str,
    start: Annotated[int, Query(alias="from", ge=0)] = 0,
    stop: Annotated[int, Query(alias="to", ge=0)] = 253402300800000,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int | None, Query(ge=0)] = None,
) -> Page:
    """One page of a range, by its keys."""
    low, high = start * 1000, stop * 1000
    if cursor is not None:
        low, high = (cursor, high) if order == "asc" else (low, cursor + 1)
    rows = reader().execute(
        "SELECT id, ts, value FROM readings WHERE device = ? AND metric = ? AND ts >= ? AND ts < ? "
        f"ORDER BY ts {'ASC' if order == 'asc' else 'DESC'} LIMIT ?",
        (device, metric, low, high, limit + 1),
    ).fetchall()
    items = [
        Stored(offset=id, metric=metric, ts=datetime.fromtimestamp(ts / 1_000_000, UTC), value=value)
        for id, ts, value in rows[:limit]
    ]
    following = str(rows[limit][1]) if len(rows) > limit else None
    if following is not None:
        response.headers["Link"] = f'<{request.url.include_query_params(cursor=following)}>; rel="next"'
    return Page(items=items, next=following)
