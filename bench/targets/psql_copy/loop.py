r"""The floor of a batch on PostgreSQL: `psql \copy` of its readings into the table that the gate has made.

No HTTP, no checks, no dedupe, one client. Table, indexes and columns are the gate's own, its migrations and
the series of the device are there already. The hardest form: many rows in one \copy, from files that are made
outside of the measured time, by a psql that is connected already. Each \copy is a durable commit. Prints one
JSON object.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

BATCH = 1_000
# Batches in one \copy.
CHUNK = 100
# As in bench/contract.py: milliseconds of the first reading, and the first batch of what is measured.
EPOCH, FIRST = 1_700_000_000_000, 1_000_000
DEVICE, METRICS = "bench.batch", 10
COLUMNS = "log_offset, ts, num, series, kind"
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


class Psql:
    """One psql, told line by line."""

    def __init__(self, database: str) -> None:
        self._process = subprocess.Popen(
            ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[str] = self._process.stdin
        self._from: IO[str] = self._process.stdout

    def tell(self, line: str) -> list[str]:
        """What it prints until it has done this."""
        self._to.write(f"{line}\n\\echo done\n")
        self._to.flush()
        said = []
        while (answer := self._from.readline().rstrip("\n")) != "done":
            if self._process.poll() is not None:
                raise SystemExit(f"psql has ended with {self._process.returncode}")
            said.append(answer)
        return said

    def close(self) -> None:
        """Let it end."""
        self._to.close()
        self._process.wait(30)


class Copy:
    """The table, and what was copied into it."""

    def __init__(self, psql: Psql, file: Path) -> None:
        self._psql = psql
        self._file = file
        for setting in DURABLE:
            assert psql.tell(f"SHOW {setting};") == ["on"], setting
        rows = psql.tell(f"SELECT metric, id FROM tidegate.series WHERE device = '{DEVICE}' AND metric ~ '^m[0-9]$';")
        known = dict(row.split("|") for row in rows)
        self._series = [known[f"m{n}"] for n in range(METRICS)]
        (head,) = psql.tell("SELECT head FROM tidegate.head;")
        self._offset = int(head)

    def _write(self, number: int) -> None:
        """Batches from `number` on into the file: the readings that other targets get, as rows of the gate."""
        offset, rows = self._offset, []
        for batch in range(number, number + CHUNK):
            start = EPOCH + batch * BATCH
            for n in range(BATCH):
                offset += 1
                kind = 0 if n % 100 == 0 else 1
                rows.append(f"{offset}\t{(start + n) * 1000}\t{20 + n / 100}\t{self._series[n % METRICS]}\t{kind}\n")
        self._file.write_text("".join(rows))
        self._offset = offset

    def run(self, number: int, seconds: float) -> tuple[int, float]:
        """Copy batches from `number` on for `seconds`: how many, and the seconds they took."""
        batches, spent = 0, 0.0
        while spent < seconds:
            self._write(number + batches)
            began = time.perf_counter()
            said = self._psql.tell(f"\\copy tidegate.readings ({COLUMNS}) from '{self._file}'")
            spent += time.perf_counter() - began
            assert said == [f"COPY {CHUNK * BATCH}"], said
            batches += CHUNK
        return batches, spent


def main(database: str, directory: str, warm_up: float, seconds: float) -> None:
    """Warm up, measure, print."""
    psql = Psql(database)
    copy = Copy(psql, Path(directory) / "rows")
    before, _ = copy.run(0, warm_up)
    batches, spent = copy.run(FIRST, seconds)
    psql.close()
    print(json.dumps({"batches": batches, "seconds": spent, "warm_up_batches": before}))


main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
