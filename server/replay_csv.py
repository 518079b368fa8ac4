"""Readings out of a CSV file of measurements, each with its line, in memory that does not grow."""

import csv
import hashlib
from collections.abc import Iterator
from datetime import UTC
from io import BufferedReader
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from server.replay_cells import (
    EPOCH,
    FORMATS,
    MICROSECOND,
    MISSING,
    NUMBER,
    TIME_NAME,
    Clock,
    is_time,
    kind_of,
    metric_name,
    parse_value,
)
from storage.models import Value

SAMPLE = 100  # rows that are looked at to tell what a column holds
RECENT = 65_536  # times that are remembered to see one again
LINE_MAX = 1 << 20
REJECTS_SHOWN = 10


class ReplayError(Exception):
    """Why a replay cannot go on, for a person; `code` is the exit code of the command."""

    code = 2


class BadFile(ReplayError):
    """The file does not hold measurements that can be read; `line` 0: no single line is to blame."""

    def __init__(self, detail: str, line: int = 0) -> None:
        super().__init__(f"line {line:,}: {detail}" if line else detail)
        self.line = line


class Item(Struct, frozen=True, gc=False):
    """A reading as it goes to the gate."""

    metric: str
    value: Value
    ts: str


class Reject(Struct, frozen=True):
    """A reading that was not stored, and the line of the file it stands in."""

    line: int
    metric: str
    code: str
    detail: str

    def __str__(self) -> str:
        return f"line {self.line:,}, {self.metric}: {self.code}: {self.detail}"


class Batch(Struct, frozen=True):
    """Readings to send together. `end`, `size` and `digest`: readings, bytes and their hash up to its end."""

    items: list[Item]
    lines: list[int]
    body: bytes
    end: int
    size: int
    digest: str


class Counts(Struct):
    """What was seen in the file so far; `repeated`: rows with the time of a row not long before."""

    rows: int = 0
    readings: int = 0
    empty: int = 0
    rejected: int = 0
    repeated: int = 0


class Column(Struct):
    """A column of values; `kind` number, boolean or text, None until a cell shows it."""

    index: int
    metric: str
    kind: str | None = None


class Lines:
    """The lines of a file as text, with the bytes given so far and their hash."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._number = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LINE_MAX):
            self._number += 1
            self.size += len(line)
            self._hash.update(line)
            if len(line) == LINE_MAX:
                raise BadFile(f"longer than {LINE_MAX:,} bytes", self._number)
            try:
                yield line.decode("utf-8-sig" if self._number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadFile(f"not UTF-8 at byte {error.start + 1}", self._number) from None

    def digest(self) -> str:
        """Hash of the bytes given so far."""
        return self._hash.hexdigest()


class CsvReadings:
    """The readings of a CSV file in batches. Blocks on the disk: not for the event loop."""

    def __init__(
        self, path: Path, ts_column: str, value_columns: tuple[str, ...], metric: str, zone: str
    ) -> None:
        self.counts = Counts()
        self.rejects: list[Reject] = []
        try:
            self.clock = Clock(UTC if zone == "UTC" else ZoneInfo(zone))
        except (OSError, ValueError, LookupError):
            raise ReplayError(f'no time zone "{zone}"; name one such as Europe/Berlin') from None
        try:
            self._file = path.open("rb")
            self.total = path.stat().st_size
        except OSError as error:
            raise BadFile(f"{path}: {error.strerror}") from None
        try:
            self._lines = Lines(self._file)
            self._rows = self._read_rows()
            self._header = self._read_header(ts_column)
            self._sample = [row for _, row in zip(range(SAMPLE), self._rows, strict=False)]
            if not self._sample:
                raise BadFile("nothing after the header", 1)
            self.ts_index = self._find_time(ts_column)
            self.columns = self._find_values(value_columns, metric)
        except BaseException:
            self.close()
            raise
        self._recent: dict[int, None] = {}
        self._readings = self._read()
        self._bad: BadFile | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def layout(self) -> str:
        """What each column was taken for, in words."""
        values = ", ".join(f"{c.metric} ({c.kind or 'empty so far'})" for c in self.columns)
        return f'time from "{self._header[self.ts_index]}"; {values}'

    def batch(self, limit: int) -> Batch | None:
        """Up to `limit` further readings, None after the last; BadFile after those before a bad line."""
        items: list[Item] = []
        lines: list[int] = []
        try:
            for line, item in self._readings if self._bad is None else ():
                items.append(item)
                lines.append(line)
                if len(items) == limit:
                    break
        except BadFile as error:
            self._bad = error
        if not items and self._bad:
            raise self._bad
        if not items:
            return None
        body = msgspec.json.encode(items)
        return Batch(items, lines, body, self.counts.readings, self._lines.size, self._lines.digest())

    def skip(self, readings: int, digest: str) -> bool:
        """Pass over what an earlier run sent; False where the file up to there is another one than it was."""
        for _ in zip(range(readings), self._readings, strict=False):
            pass
        return self.counts.readings == readings and self._lines.digest() == digest

    def _read_rows(self) -> Iterator[tuple[int, list[str]]]:
        first = self._file.readline(LINE_MAX)
        self._file.seek(0)
        delimiter = max(",;\t|", key=lambda mark: first.count(mark.encode()))
        reader = csv.reader(self._lines, delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadFile(str(error), line) from None
            if row:
                yield line, row

    def _read_header(self, ts_column: str) -> list[str]:
        line, header = next(self._rows, (0, []))
        if not line:
            raise BadFile("the file is empty")
        header = [name.strip() for name in header]
        if not ts_column and any(NUMBER.fullmatch(name) or is_time(name) for name in header):
            raise BadFile("no header: the first line holds values, it must name the columns", line)
        return header

    def _find(self, name: str) -> int:
        if (found := self._header.count(name)) == 1:
            return self._header.index(name)
        there = ", ".join(f'"{other}"' for other in self._header)
        raise BadFile(f'{found or "no"} columns are named "{name}"; there are {there}')

    def _find_time(self, name: str) -> int:
        if name:
            return self._find(name)
        for index, header in enumerate(self._header):
            cells = [row[index] for _, row in self._sample if len(row) > index]
            named = TIME_NAME.search(header) is not None
            if cells and all(
                is_time(cell) and (named or not NUMBER.fullmatch(cell.strip())) for cell in cells
            ):
                return index
        there = ", ".join(f'"{header}"' for header in self._header)
        raise BadFile(f"no column of times ({FORMATS}) among {there}; name it with --ts-column")

    def _find_values(self, names: tuple[str, ...], metric: str) -> list[Column]:
        indices = [self._find(name) for name in names] or [
            index for index in range(len(self._header)) if index != self.ts_index
        ]
        if not indices:
            raise BadFile("no column of values beside the time", 1)
        if metric and len(indices) > 1:
            raise ReplayError("--metric names one column: choose it with --value-column")
        columns = [Column(index, metric or metric_name(self._header[index], index)) for index in indices]
        if len({column.metric for column in columns}) < len(columns):
            raise BadFile("two columns would make the same metric: choose with --value-column", 1)
        for column in columns:
            column.kind = kind_of([row[column.index] for _, row in self._sample if len(row) > column.index])
        return columns

    def _read(self) -> Iterator[tuple[int, Item]]:
        while self._sample:
            yield from self._read_row(*self._sample.pop(0))
        for line, row in self._rows:
            yield from self._read_row(line, row)

    def _read_row(self, line: int, row: list[str]) -> Iterator[tuple[int, Item]]:
        if len(row) != len(self._header):
            raise BadFile(f"{len(row)} cells where the header has {len(self._header)}", line)
        self.counts.rows += 1
        try:
            ts = self.clock.read(row[self.ts_index])
        except ValueError:
            detail = f'"{row[self.ts_index][:40]}" is no time'
            for column in self.columns:
                self._reject(Reject(line, column.metric, "invalid", detail))
            return
        if ts in self._recent:
            self.counts.repeated += 1
        self._recent[ts] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        time = (EPOCH + ts * MICROSECOND).replace(tzinfo=None).isoformat() + "Z"
        for column in self.columns:
            if (item := self._read_cell(line, row[column.index], column, time)) is not None:
                self.counts.readings += 1
                yield line, item

    def _read_cell(self, line: int, cell: str, column: Column, time: str) -> Item | None:
        column.kind = column.kind or kind_of([cell])
        if column.kind is None or not cell or (column.kind != "text" and cell.strip().lower() in MISSING):
            self.counts.empty += 1
            return None
        try:
            return Item(column.metric, parse_value(cell, column.kind), time)
        except ValueError as error:
            self._reject(Reject(line, column.metric, "invalid", f'"{cell[:40]}" {error}'))
            return None

    def _reject(self, reject: Reject) -> None:
        self.counts.rejected += 1
        if len(self.rejects) < REJECTS_SHOWN:
            self.rejects.append(reject)
