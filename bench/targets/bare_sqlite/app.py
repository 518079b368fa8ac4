"""The floor of a batch: msgspec decodes 1,000 readings, apsw inserts them, one durable commit each.

No HTTP, no checks beyond the decoding, no dedupe, one thread. The schema, the pragmas and the rows
are Tidegate's. Bodies are made outside of the measured time. Prints one JSON object.
"""

import json
import sys
import time
from collections.abc import Iterator

import apsw
import msgspec

BATCH = 1_000
EPOCH = 1_700_000_000_000
# Bodies that are made at a time.
CHUNK = 20
SCHEMA = """
CREATE TABLE readings (
    offset  INTEGER PRIMARY KEY,
    series  INTEGER NOT NULL,
    ts      INTEGER NOT NULL,
    value   ANY     NOT NULL
) STRICT;
CREATE UNIQUE INDEX readings_identity ON readings (series, ts);
"""
PRAGMAS = ("temp_store = MEMORY", "mmap_size = 0", "cache_size = -32768", "journal_mode = WAL", "synchronous = FULL")


class Reading(msgspec.Struct):
    """One reading; ts in milliseconds."""

    metric: str
    ts: int
    value: bool | int | float | str


def bodies() -> Iterator[bytes]:
    """The batches that every target of this scenario gets."""
    start = EPOCH
    while True:
        yield json.dumps(
            [{"metric": f"m{n % 10}", "ts": start + n, "value": 20 + n / 100} for n in range(BATCH)]
        ).encode()
        start += BATCH


class Loop:
    """The database, and what was inserted."""

    def __init__(self, path: str) -> None:
        self.database = apsw.Connection(path)
        for pragma in PRAGMAS:
            self.database.execute(f"PRAGMA {pragma}")
        assert self.database.execute("PRAGMA synchronous").get == 2
        self.database.execute(SCHEMA)
        self.decode = msgspec.json.Decoder(list[Reading]).decode
        self.series: dict[str, int] = {}
        self.offset = 0

    def insert(self, body: bytes) -> None:
        """Decode and commit one batch."""
        series, offset = self.series, self.offset
        rows = []
        for reading in self.decode(body):
            offset += 1
            number = series.setdefault(reading.metric, len(series) + 1)
            rows.append((offset, number, reading.ts * 1000, reading.value))
        with self.database:
            self.database.executemany("INSERT INTO readings (offset, series, ts, value) VALUES (?, ?, ?, ?)", rows)
        self.offset = offset


def run(loop: Loop, source: Iterator[bytes], seconds: float) -> tuple[int, float]:
    """Insert batches for `seconds`: how many, and the seconds they took."""
    batches, spent = 0, 0.0
    while spent < seconds:
        chunk = [next(source) for _ in range(CHUNK)]
        began = time.perf_counter()
        for body in chunk:
            loop.insert(body)
        spent += time.perf_counter() - began
        batches += len(chunk)
    return batches, spent


def main(directory: str, warm_up: float, seconds: float) -> None:
    """Warm up, measure, print."""
    loop, source = Loop(directory + "/bench.db"), bodies()
    before, _ = run(loop, source, warm_up)
    batches, spent = run(loop, source, seconds)
    loop.database.close()
    print(json.dumps({"batches": batches, "seconds": spent, "warm_up_batches": before}))


main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
