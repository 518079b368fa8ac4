"""Readings in PostgreSQL by aiopg, as its documentation would have it: a pool, a cursor for each statement.

aiopg is in autocommit by nature; a batch is one INSERT from arrays.
"""

from typing import Any

import aiopg
import answers
import orjson
import psycopg2.extras
from answers import Latest, Written
from readings import Row
from sql import FORMAT, SCHEMA

POOL = 10
class Store:
    """Readings, and the latest of them in memory."""

    def __init__(self, pool: aiopg.Pool) -> None:
        self._pool = pool
        self._latest = Latest()

    @classmethod
    async def open(cls, url: str) -> "Store":
        """With its table."""
        # jsonb is decoded below; aiopg would also ask for hstore's ids on each connection.
        pool = await aiopg.create_pool(
            url, minsize=POOL, maxsize=POOL, enable_json=False, enable_hstore=False, enable_uuid=False
        )
        psycopg2.extras.register_default_jsonb(loads=orjson.loads, globally=True)
        store = cls(pool)
        await store._run(SCHEMA)
        return store

    async def close(self) -> None:
        """Let go of the connections."""
        self._pool.close()
        await self._pool.wait_closed()

    async def add(self, device: str, rows: list[Row]) -> Written:
        """Store them durably; what is there already stays as it is."""
        if len(rows) == 1:
            [(metric, ts, value)] = rows
            found = await self._run(FORMAT.one, device, metric, ts, _encoded(value))
            stored = Written(1, found[0][0]) if found else Written(0, 0)
        else:
            metrics, times, values = (list(column) for column in zip(*rows, strict=True))
            found = await self._run(FORMAT.many, device, metrics, times, [_encoded(value) for value in values])
            stored = Written(*found[0])
        self._latest.forget(device)
        return stored

    async def latest(self, device: str) -> dict[str, Any]:
        """The latest values, from memory if they are there."""
        body = self._latest.get(device)
        if body is None:
            writes = self._latest.writes(device)
            body = answers.latest(device, await self._run(FORMAT.latest, device))
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
        statement = FORMAT.descending if descending else FORMAT.ascending
        rows = await self._run(statement, device, metric, low, high, limit + 1)
        return answers.page(metric, limit, rows)

    async def _run(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(statement, arguments)
            return await cursor.fetchall() if cursor.description else []


def _encoded(value: Any) -> str:
    return orjson.dumps(value).decode()
