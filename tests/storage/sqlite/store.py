"""One log on disk for the tests of the engine's parts: a writer, a reader, and a look behind them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from storage.models import Outcome, Reading, Write
from storage.sqlite.directory import HeadFile
from storage.sqlite.reader import Reader
from storage.sqlite.writer import Writer

_ROWS = (
    "SELECT r.offset, s.device, s.metric, r.ts, r.value FROM readings r JOIN series s ON s.id = r.series "
    "ORDER BY r.offset"
)


class Store:
    """A writer on its files. `reopen` is a restart."""

    def __init__(self, folder: Path, vfs: str | None = None) -> None:
        self.folder = folder
        self.path = folder / "tidegate.db"
        self._vfs = vfs
        self._open()

    def _open(self) -> None:
        self.heads = HeadFile(self.folder / "head")
        self.writer = Writer(self.path, self.heads, self._vfs)

    def append(self, *writes: Write) -> list[Any]:
        """Commit; the results."""
        return list(self.writer.append(list(writes)).results)

    def stored(self, *writes: Write) -> list[Reading]:
        """Commit writes that must succeed; the readings."""
        appended = self.writer.append(list(writes))
        assert all(isinstance(result, Outcome) for result in appended.results), appended.results
        return [] if appended.batch is None else appended.batch.readings

    def sweep(self, oldest: int) -> None:
        """The whole clean-up."""
        while self.writer.sweep(oldest):
            pass

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows, by a connection that is not the gate's."""
        connection = apsw.Connection(str(self.path))
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def rows(self) -> list[tuple[Any, ...]]:
        """The visible log: offset, device, metric, ts, value as the column holds it."""
        return self.ask(_ROWS)

    def close(self) -> None:
        """End."""
        self.writer.close()
        self.heads.close()

    def reopen(self) -> None:
        """Restart."""
        self.close()
        self._open()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A reader of its own."""
        reader = Reader(self.path)
        try:
            yield reader
        finally:
            reader.close()


@contextmanager
def store(folder: Path, vfs: str | None = None) -> Iterator[Store]:
    """A store, closed at the end."""
    opened = Store(folder, vfs)
    try:
        yield opened
    finally:
        opened.close()
