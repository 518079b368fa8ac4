"""Readings in PostgreSQL by psycopg, for targets that block: each statement as the caller runs it.

`Run` takes a statement and its arguments and gives the rows: by a pool, by Django's connections, by one
connection.
"""

from collections.abc import Callable
from typing import Any

import answers
import orjson
from answers import Latest, Written
from readings import Row
from sql import FORMAT_TEXT

Run = Callable[[str, list[Any]], list[tuple[Any, ...]]]
class Store:
    """Readings, and the latest of them in memory."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._latest = Latest()

    def add(self, device: str, rows: list[Row]) -> Written:
        """Store them durably; what is there already stays as it is."""
        if len(rows) == 1:
            [(metric, ts, value)] = rows
            found = self._run(FORMAT_TEXT.one, [device, metric, ts, orjson.dumps(value).decode()])
            stored = Written(1, found[0][0]) if found else Written(0, 0)
        else:
            metrics, times, values = (list(column) for column in zip(*rows, strict=True))
            texts = [orjson.dumps(value).decode() for value in values]
            stored = Written(*self._run(FORMAT_TEXT.many, [device, metrics, times, texts])[0])
        self._latest.forget(device)
        return stored

    def latest(self, device: str) -> dict[str, Any]:
        """The latest values, from memory if they are there."""
        body = self._latest.get(device)
        if body is None:
            writes = self._latest.writes(device)
            rows = self._run(FORMAT_TEXT.latest, [device])
            body = answers.latest(device, [(m, ts, id, orjson.loads(value)) for m, ts, id, value in rows])
            self._latest.keep(device, writes, body)
        return body

    def page(
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
        statement = FORMAT_TEXT.descending if descending else FORMAT_TEXT.ascending
        rows = self._run(statement, [device, metric, low, high, limit + 1])
        return answers.page(metric, limit, [(id, ts, orjson.loads(value)) for id, ts, value in rows])
