"""FastAPI + uvicorn + SQLite: one INSERT and one commit per request, with the checks of the contract.

As its documentation would have it: pydantic validates, a dependency authenticates, a plain `def`
endpoint runs in the thread pool and may block. WAL and synchronous=FULL, as Tidegate has it.
"""

import os
import sqlite3
import threading
import time
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

SECRET = os.environ["BENCH_SECRET"]
LIMIT = 100_000_000

app = FastAPI(openapi_url=None)
lock = threading.Lock()
database = sqlite3.connect(os.environ["BENCH_DATA"] + "/bench.db", check_same_thread=False, isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute(
    "CREATE TABLE IF NOT EXISTS readings "
    "(id INTEGER PRIMARY KEY, device TEXT, metric TEXT, ts INTEGER, value, UNIQUE (device, metric, ts))"
)
buckets: dict[str, float] = {}


class Reading(BaseModel):
    """One reading."""

    model_config = ConfigDict(extra="forbid")
    metric: str = Field(pattern=r"^[A-Za-z0-9_.:/%-]{1,64}$")
    value: StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=1024)]


def principal(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    """The verified token, under its limit."""
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "),
            SECRET,
            algorithms=["HS256"],
            audience="tidegate",
            issuer="tidegate",
            options={"require": ["exp", "iat", "aud", "iss", "sub"]},
        )
    except jwt.InvalidTokenError as error:
        raise HTTPException(401) from error
    if "readings:write" not in claims["scope"].split():
        raise HTTPException(403)
    # GCRA, as in Tidegate.
    now, interval = time.monotonic(), 60 / LIMIT
    arrival = max(buckets.get(claims["sub"], now), now) + interval
    if arrival - now > 6:
        raise HTTPException(429)
    buckets[claims["sub"]] = arrival
    return claims


@app.post("/v1/devices/{device}/readings")
def write(device: str, reading: Reading, _: Annotated[dict[str, Any], Depends(principal)]) -> dict[str, Any]:
    """Store one reading, durably, before the answer."""
    with lock:
        ts = time.time_ns() // 1000
        row = (device, reading.metric, ts, reading.value)
        cursor = database.execute(
            "INSERT INTO readings (device, metric, ts, value) VALUES (?, ?, ?, ?)", row
        )
    return {"accepted": 1, "duplicates": 0, "rejected_count": 0, "rejected": [], "position": str(cursor.lastrowid)}
