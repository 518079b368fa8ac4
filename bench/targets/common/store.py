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
from sql import NUMBERED, SCHEMA

POOL = 10
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
            id = await self._pool.fetchval(NUMBERED.one, device, *rows[0])
            stored = Written(0, 0) if id is None else Written(1, id)
        else:
            metrics, times, values = (list(column) for column in zip(*rows, strict=True))
            stored = Written(*await self._pool.fetchrow(NUMBERED.many, device, metrics, times, values))
        self._latest.forget(device)
        return stored

    async def latest(self, device: str) -> dict[str, Any]:
        """The latest values, from memory if they are there."""
        body = self._latest.get(device)
        if body is None:
            writes = self._latest.writes(device)
            body = answers.latest(device, await self._pool.fetch(NUMBERED.latest, device))
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
        statement = NUMBERED.descending if descending else NUMBERED.ascending
        rows = await self._pool.fetch(statement, device, metric, low, high, limit + 1)
        return answers.page(metric, limit, rows)


async def _codecs(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=_encoded, decoder=orjson.loads, schema="pg_catalog", format="text"
    )


async def _keep(connection: asyncpg.Connection) -> None:
    """Nothing to take back."""


def _encoded(value: Any) -> str:
    return orjson.dumps(value).decode()
