"""Readings in PostgreSQL by asyncpg, as its documentation would have it: a pool, prepared statements, codecs.

Generous where a team that knows it would be: no RESET between two uses of a connection, since nothing here
changes a session; a batch is one INSERT from arrays.
"""

from typing import Any

import answers
import asyncpg
import orjson
from answers import Latest, Written
from readings import Row

POOL = 10
SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text NOT NULL,
    metric text NOT NULL,
    ts bigint NOT NULL,
    value jsonb NOT NULL,
    UNIQUE (device, metric, ts)
)
"""
ONE = "INSERT INTO readings (device, metric, ts, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id"
MANY = """
WITH stored AS (
    INSERT INTO readings (device, metric, ts, value)
    SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::jsonb[])
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT count(*), coalesce(max(id), 0) FROM stored
"""
LATEST = """
SELECT DISTINCT ON (metric) metric, ts, id, value FROM readings
WHERE device = $1 ORDER BY metric, ts DESC
"""
PAGE = """
SELECT id, ts, value FROM readings
WHERE device = $1 AND metric = $2 AND ts >= $3 AND ts < $4 ORDER BY ts {order} LIMIT $5
"""
UP, DOWN = PAGE.format(order="ASC"), PAGE.format(order="DESC")


class Store:
    """Readings, and the latest of them in memory."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._latest = Latest()

    @classmethod
    async def open(cls, url: str) -> "Store":
        """With its table."""
        pool = await asyncpg.create_pool(url, min_size=POOL, max_size=POOL, init=_codecs, reset=_keep)
        await pool.execute(SCHEMA)
        return cls(pool)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._pool.close()

    async def add(self, device: str, rows: list[Row]) -> Written:
        """Store them durably; what is there already stays as it is."""
        if len(rows) == 1:
            id = await self._pool.fetchval(ONE, device, *rows[0])
            stored = Written(0, 0) if id is None else Written(1, id)
        else:
            metrics, times, values = (list(column) for column in zip(*rows, strict=True))
            stored = Written(*await self._pool.fetchrow(MANY, device, metrics, times, values))
        self._latest.forget(device)
        return stored

    async def latest(self, device: str) -> dict[str, Any]:
        """The latest values, from memory if they are there."""
        body = self._latest.get(device)
        if body is None:
            writes = self._latest.writes(device)
            body = answers.latest(device, await self._pool.fetch(LATEST, device))
            self._latest.keep(device, writes, body)
        return body

    async def page(
        self,
        device: str,
        metric: str,
        low: int,
        high: int,
        descending: bool = False,
        limit: int = 100,
        cursor: int | None = None,
    ) -> dict[str, Any]:
        """A page of a range; times in microseconds."""
        if cursor is not None:
            low, high = (low, cursor + 1) if descending else (cursor, high)
        rows = await self._pool.fetch(DOWN if descending else UP, device, metric, low, high, limit + 1)
        return answers.page(metric, limit, rows)


async def _codecs(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=_encoded, decoder=orjson.loads, schema="pg_catalog", format="text"
    )


async def _keep(connection: asyncpg.Connection) -> None:
    """Nothing to take back."""


def _encoded(value: Any) -> str:
    return orjson.dumps(value).decode()
