"""`tidegate replay` against a stub that answers as API.md says, failures included."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import vega_datasets
from aiohttp import web
from aiohttp.test_utils import TestServer

from server.replay import GaveUp, Refused, Replay, replay
from server.replay_csv import BadFile, CsvReadings, ReplayError
from server.replay_report import Latencies, Summary
from server.replay_wire import retry_after
from tests.watching import in_time

DATA = Path(vega_datasets.__file__).parent / "_data"
# Seconds for which the gate stands still once.
STILL = 0.8
Failure = Callable[[web.Request], Awaitable[web.Response]]


class Gate:
    """A stub of the gate: keeps readings by identity, fails first as `failures` says, request by request."""

    def __init__(self) -> None:
        self.url = ""
        self.epoch = "e1"
        self.stored: dict[tuple[str, str, str], object] = {}
        self.failures: list[Failure] = []
        self.requests: list[tuple[float, int]] = []
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.limit: int | None = None
        self.busy = self.busiest = 0

    async def write(self, request: web.Request) -> web.Response:
        items = await request.json()
        self.headers = dict(request.headers)
        self.requests.append((time.monotonic(), len(items)))
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)
        try:
            await asyncio.sleep(self.delay)
            if self.failures:
                return await self.failures.pop(0)(request)
            if self.limit is not None and len(self.stored) >= self.limit:
                return problem(400, "Stop")
            return self.answer(request.match_info["device"], items)
        finally:
            self.busy -= 1

    def answer(self, device: str, items: list[dict[str, object]]) -> web.Response:
        accepted = duplicates = 0
        rejected = []
        for index, item in enumerate(items):
            identity, value = (device, str(item["metric"]), str(item["ts"])), item["value"]
            if value == 666:
                rejected.append(fault(f"/{index}/value", "invalid", "an evil number"))
            elif identity not in self.stored:
                self.stored[identity] = value
                accepted += 1
            elif self.stored[identity] == value:
                duplicates += 1
            else:
                rejected.append(fault(f"/{index}", "conflict", "stored with another value"))
        if len(rejected) == len(items):
            return problem(422, "Unprocessable", "every item is bad", rejected[:100])
        answer = {
            "accepted": accepted,
            "duplicates": duplicates,
            "rejected_count": len(rejected),
            "rejected": rejected[:100],
            "position": f"{self.epoch}-{len(self.stored)}",
        }
        return web.json_response(answer)


def fault(pointer: str, code: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "detail": detail}


def problem(
    status: int,
    title: str,
    detail: str = "",
    errors: list[dict[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    body = {"type": "/problems/x", "title": title, "status": status, "detail": detail, "errors": errors or []}
    return web.Response(
        status=status, text=json.dumps(body), content_type="application/problem+json", headers=headers
    )


def refuse(status: int, title: str = "No", detail: str = "", retry_after: str = "") -> Failure:
    async def failure(_: web.Request) -> web.Response:
        headers = {"Retry-After": retry_after} if retry_after else {}
        return problem(status, title, detail, headers=headers)

    return failure


async def cut(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    stub = Gate()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/devices/{device}/readings", stub.write)
    async with TestServer(app) as server:
        stub.url = str(server.make_url("")).rstrip("/")
        yield stub


def table(path: Path, rows: int, start: int = 0) -> Path:
    """Write a CSV of `rows` seconds, each with its number as value."""
    lines = [f"{datetime.fromtimestamp(1e9 + n, UTC).isoformat()},{n + 1000}\n" for n in range(start, rows)]
    path.write_text("time,level\n" + "".join(lines))
    return path


async def run(gate: Gate, file: Path, **options: object) -> tuple[Summary, str]:
    out = io.StringIO()
    settings = {"file": str(file), "device": "demo.one", "url": gate.url, **options}
    summary = await replay(Replay(**settings), out)  # type: ignore[arg-type]
    return summary, out.getvalue()


async def fail(gate: Gate, file: Path, kind: type[ReplayError], **options: object) -> tuple[str, str]:
    """Run a replay that fails: the message of its error, and what it printed."""
    out = io.StringIO()
    settings = {"device": "demo.one", "url": gate.url, **options, "file": str(file)}
    with pytest.raises(kind) as caught:
        await replay(Replay(**settings), out)  # type: ignore[arg-type]
    return str(caught.value), out.getvalue()


@pytest.mark.parametrize("name", ["seattle-temps.csv", "sf-temps.csv"])
async def test_real_measurements_arrive_once(gate: Gate, tmp_path: Path, name: str) -> None:
    options = {"device": "demo.city", "progress": str(tmp_path / "progress"), "token": "secret"}
    summary, text = await run(gate, DATA / name, **options)
    assert (summary.rows, summary.accepted, summary.duplicates, summary.rejected) == (8759, 8759, 0, 0)
    assert (summary.complete, summary.exit_code, summary.naive, summary.repeated) == (True, 0, 8759, 0)
    first = {"seattle-temps.csv": 39.4, "sf-temps.csv": 47.8}[name]
    assert gate.stored["demo.city", "temp", "2010-01-01T00:00:00Z"] == first
    assert len(gate.stored) == 8759
    assert gate.headers["Authorization"] == "Bearer secret"
    assert gate.busiest <= 4
    assert "8,759 accepted" in text
    assert "8,759 times without an offset were taken in UTC" in text

    again, _ = await run(gate, DATA / name, **options)
    assert (again.accepted, again.duplicates, again.exit_code) == (0, 8759, 0)
    assert list(tmp_path.iterdir()) == []


async def test_local_times_stay_apart(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "berlin.csv"
    # Summer time ends at 03:00 on 2023-10-29 and begins at 02:00 on 2023-03-26.
    hours = ["26.03 02:30", "29.10 02:00", "29.10 02:30", "29.10 02:00", "29.10 02:30", "29.10 03:00"]
    rows = [f"2023-{hour[3:5]}-{hour[:2]}T{hour[6:]},{n}\n" for n, hour in enumerate(hours)]
    file.write_text("ts,a\n" + "".join(rows))
    summary, text = await run(gate, file, timezone="Europe/Berlin")
    assert (summary.accepted, summary.ambiguous, summary.nonexistent, summary.repeated) == (6, 4, 1, 0)
    assert [ts for _, _, ts in gate.stored] == [
        "2023-03-26T01:30:00Z",
        "2023-10-29T00:00:00Z",
        "2023-10-29T00:30:00Z",
        "2023-10-29T01:00:00Z",
        "2023-10-29T01:30:00Z",
        "2023-10-29T02:00:00Z",
    ]
    assert "local times come twice" in text


async def test_rows_of_one_time_are_told(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("ts,a\n2020-01-01,1\n2020-01-01,1\n2020-01-01,2\n2020-01-02,3\n")
    summary, text = await run(gate, file)
    assert (summary.accepted, summary.duplicates, summary.rejected, summary.repeated) == (2, 1, 1, 2)
    assert summary.exit_code == 1
    assert "line 4, a: conflict: stored with another value" in text
    assert "2 rows have the time of an earlier row" in text


async def test_columns_and_kinds(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "\ufeffTemp (C);open;state;n;timestamp_ms\r\n"
        "1.5;true;on;7;1577836800000\r\n"
        "\r\n"
        "NA;FALSE;;-3;1577836800500\r\n"
        'oops;true;"two\nlines";1e400;1577836801000\r\n'
        "2;true;x;8;yesterday\r\n",
        newline="",
    )
    with open(file, "a", newline="") as more:
        more.writelines(f"3;true;x;1;{1577836900000 + n}\r\n" for n in range(200))
    # "oops" stands among the rows that are looked at: the column is one of text.
    summary, text = await run(gate, file, value_columns=("open", "state", "n"), ts_column="timestamp_ms")
    stored = {(metric, ts): value for (_, metric, ts), value in gate.stored.items()}
    assert stored["open", "2020-01-01T00:00:00Z"] is True
    assert stored["open", "2020-01-01T00:00:00.500000Z"] is False
    assert stored["n", "2020-01-01T00:00:00.500000Z"] == -3
    assert stored["state", "2020-01-01T00:00:01Z"] == "two\nlines"
    assert (summary.rows, summary.empty, summary.rejected) == (204, 1, 4)
    assert 'line 5, n: invalid: "1e400" is too large a number' in text
    assert 'line 7, open: invalid: "yesterday" is no time' in text
    names, _ = await run(gate, file, ts_column="timestamp_ms")
    assert "Temp_C (text), open (boolean), state (text), n (number)" in names.layout


async def test_metric_names_the_one_column(gate: Gate, tmp_path: Path) -> None:
    await run(gate, table(tmp_path / "a.csv", 3), metric="tank/level")
    assert {metric for _, metric, _ in gate.stored} == {"tank/level"}
    two = tmp_path / "b.csv"
    two.write_text("time,a,b\n2020-01-01,1,2\n")
    message, _ = await fail(gate, two, ReplayError, metric="x")
    assert "--value-column" in message


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2010/01/01 00:00", "2010-01-01T00:00:00"),
        ("2010/1/2", "2010-01-02T00:00:00"),
        ("2010-01-01T00:00:00+02:00", "2009-12-31T22:00:00"),
        ("2010-01-01 00:00:00.5 UTC", "2010-01-01T00:00:00.500000"),
        ("20100102", "2010-01-02T00:00:00"),
        ("1262304000", "2010-01-01T00:00:00"),
        ("1262304000.25", "2010-01-01T00:00:00.250000"),
        ("1262304000250", "2010-01-01T00:00:00.250000"),
        ("1262304000250001", "2010-01-01T00:00:00.250001"),
    ],
)
def test_times(tmp_path: Path, cell: str, expected: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"a,time\n1,{cell}\n")
    readings = CsvReadings(file, "", (), "", "UTC")
    batch = readings.batch(10)
    readings.close()
    assert batch is not None
    assert [item.ts for item in batch.items] == [expected + "Z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("time,a\n", "line 1: nothing after the header"),
        ("2020-01-01,1\n2020-01-02,2\n", "line 1: no header"),
        ("a,b\n1,2\n", "no column of times"),
        ("year,a\n2006,2\n", "no column of times"),
        ("time\n2020-01-01\n", "line 1: no column of values"),
        ("time,a b,a-b,a b\n2020-01-01,1,2,3\n", "line 1: two columns"),
        ("time,a\n2020-01-01,1\n\n2020-01-02,2,3\n", "line 4: 3 cells where the header has 2"),
        ("time,a\n2020-01-01,\udcff\n", "line 2: not UTF-8"),
        ("time,a\n2020-01-01," + "9" * (1 << 20), "line 2: longer than"),
        ('time,a\n2020-01-01,"' + "9\n" * (1 << 17), "line 2: field larger"),
    ],
)
async def test_a_bad_file_is_named(gate: Gate, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    said, _ = await fail(gate, file, BadFile)
    assert message in said


async def test_what_stands_before_a_bad_line_is_sent(gate: Gate, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 700)
    with file.open("a") as more:
        more.write("2020-01-01\n")
    said, text = await fail(gate, file, BadFile)
    assert "line 702" in said
    assert len(gate.stored) == 700
    assert "not complete" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "a b"}, "no device id"),
        ({"metric": "a b"}, "no metric name"),
        ({"url": "localhost"}, "no address"),
        ({"batch": 0}, "a batch holds"),
        ({"rate": -1.0}, "rate"),
        ({"timezone": "Mars/Base"}, "no time zone"),
        ({"ts_column": "x"}, 'no columns are named "x"; there are "time", "level"'),
    ],
)
async def test_bad_options(gate: Gate, tmp_path: Path, options: dict[str, object], message: str) -> None:
    said, _ = await fail(gate, table(tmp_path / "a.csv", 2), ReplayError, **options)
    assert message in said


async def test_no_such_file(gate: Gate, tmp_path: Path) -> None:
    said, _ = await fail(gate, tmp_path / "a.csv", BadFile)
    assert said.endswith("a.csv: No such file or directory")


async def test_failures_are_retried(gate: Gate, tmp_path: Path) -> None:
    statuses = [408, 429, 502, 504, 507]
    gate.failures = [cut, refuse(503, retry_after="1"), cut, *map(refuse, statuses)]
    summary, text = await run(gate, table(tmp_path / "a.csv", 3000), batch=100, in_flight=2)
    assert (summary.accepted, summary.rejected, summary.retries) == (3000, 0, 8)
    assert len(gate.stored) == 3000
    assert summary.latencies[3] >= 1.0
    assert "8 retries" in text


async def test_a_lost_answer_doubles_nothing(gate: Gate, tmp_path: Path) -> None:
    async def lose(request: web.Request) -> web.Response:
        gate.answer("demo.one", await request.json())
        return await cut(request)

    gate.failures = [lose]
    summary, text = await run(gate, table(tmp_path / "a.csv", 10))
    assert (summary.accepted, summary.duplicates, summary.resent, len(gate.stored)) == (0, 10, 10, 10)
    assert "sent again after a lost answer" in text


async def test_it_gives_up_without_progress(gate: Gate, tmp_path: Path) -> None:
    gate.failures = [refuse(503, detail="database away") for _ in range(99)]
    began = time.monotonic()
    said, text = await fail(gate, table(tmp_path / "a.csv", 10), GaveUp, patience=0.7)
    assert time.monotonic() - began < 3
    assert "503 database away" in said
    assert "Nothing is answered for yet" in text

    gate.failures = [refuse(429, retry_after="600")]
    said, _ = await fail(gate, table(tmp_path / "a.csv", 10), GaveUp)
    assert "asked to wait 600 s" in said


async def test_no_gate_there(gate: Gate, tmp_path: Path) -> None:
    said, _ = await fail(gate, table(tmp_path / "a.csv", 10), GaveUp, url="http://127.0.0.1:1", patience=0.3)
    assert "Cannot connect" in said


async def test_a_refusal_shows_the_problem_with_lines(gate: Gate, tmp_path: Path) -> None:
    async def invalid(_: web.Request) -> web.Response:
        errors = [fault("/2/value", "invalid", "no value"), fault("", "invalid", "bad body")]
        return problem(422, "Invalid", "see errors", errors)

    file = table(tmp_path / "a.csv", 10)
    gate.failures = [invalid]
    said, _ = await fail(gate, file, Refused)
    assert said.startswith("the gate refused lines 2 to 11 with 422: Invalid: see errors")
    assert "line 4, level: invalid: no value" in said

    gate.failures = [refuse(401, "Unauthorized")]
    said, _ = await fail(gate, file, Refused)
    assert "tidegate token" in said

    async def other(_: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>")

    gate.failures = [other]
    said, _ = await fail(gate, file, Refused)
    assert "no gate" in said


async def test_a_batch_of_rejects_does_not_end_it(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("time,a\n" + "".join(f"{10**9 + n},{666 if n < 25 else n}\n" for n in range(40)))
    summary, _ = await run(gate, file, batch=10)
    assert (summary.accepted, summary.rejected, len(summary.rejects)) == (15, 25, 10)
    assert all(reject.code == "invalid" for reject in summary.rejects)


async def test_an_interruption_is_continued(gate: Gate, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 5000)
    gate.delay = 0.01
    out = io.StringIO()
    options = Replay(file=str(file), device="demo.one", url=gate.url, batch=100, in_flight=3)
    task = asyncio.create_task(replay(options, out))
    while len(gate.stored) < 1500:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "not complete" in out.getvalue()
    assert "The same command goes on after" in out.getvalue()
    assert (tmp_path / "a.csv.demo.one.progress").exists()

    summary, text = await run(gate, file, batch=170)
    assert summary.complete
    assert len(gate.stored) == 5000
    assert summary.skipped >= 1000
    assert summary.skipped + summary.sent == 5000
    assert summary.duplicates <= 300
    assert "in an earlier run" in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


async def interrupted(gate: Gate, file: Path) -> None:
    """Replay until 2,000 readings are answered for."""
    gate.limit = 2000
    await fail(gate, file, Refused, batch=200, in_flight=1)
    gate.limit = None


async def test_the_place_counts_for_the_same_contents_only(gate: Gate, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 4000)
    await interrupted(gate, file)
    grown = table(tmp_path / "a.csv", 4500)
    summary, _ = await run(gate, grown)
    assert (summary.skipped, summary.accepted) == (2000, 2500)

    gate.stored.clear()
    await interrupted(gate, file)
    table(tmp_path / "a.csv", 4000, start=5)
    summary, _ = await run(gate, file)
    assert (summary.skipped, summary.sent) == (0, 3995)


async def test_a_replaced_log_is_filled_from_the_beginning(gate: Gate, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 4000)
    await interrupted(gate, file)
    gate.stored.clear()
    gate.epoch = "e2"
    summary, text = await run(gate, file)
    assert summary.complete
    assert len(gate.stored) == 4000
    assert "log was replaced" in text


async def test_a_place_that_cannot_be_kept_is_said(gate: Gate, tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", 1000)
    gate.limit = 500
    options = {"batch": 100, "in_flight": 1, "progress": str(tmp_path / "no" / "where")}
    _, text = await fail(gate, file, Refused, **options)
    assert "cannot be written: the same command sends all again" in text


async def test_a_rate_is_kept_on_a_schedule(gate: Gate, tmp_path: Path) -> None:
    began = time.monotonic()
    await run(gate, table(tmp_path / "a.csv", 500), rate=1000.0)
    assert time.monotonic() - began > 0.35
    assert max(count for _, count in gate.requests) == 100
    gate.requests.clear()

    # The gate stands still for a while: what is due meanwhile follows at once, the schedule does not move.
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(STILL)
        return gate.answer("demo.one", await request.json())

    file = table(tmp_path / "a.csv", 1000)

    async def replayed() -> float:
        gate.failures = [slow]
        began = time.monotonic()
        summary, _ = await run(gate, file, rate=1000.0, in_flight=1)
        assert summary.latencies[1] > STILL / 2
        return time.monotonic() - began

    # By the schedule 0.9 s.
    await in_time(replayed, 0.9 + STILL / 2)


async def test_a_terminal_gets_a_bar(gate: Gate, tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    gate.delay = 0.1
    options = Replay(file=str(table(tmp_path / "a.csv", 2000)), device="demo.one", url=gate.url, batch=100)
    await replay(options, out)
    assert "\ra.csv [" in out.getvalue()
    assert "%" in out.getvalue()


async def test_large_batches(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("time,a\n" + "".join(f"{10**9 + n},{'x' * 200}\n" for n in range(12_000)))
    summary, _ = await run(gate, file, batch=10_000)
    assert (summary.accepted, len(gate.requests)) == (12_000, 2)


def test_latencies() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) == 0
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)
    assert latencies.quantile(0.5) == pytest.approx(0.5, rel=0.03)
    assert latencies.quantile(0.99) == pytest.approx(0.99, rel=0.03)
    assert latencies.quantile(1) == latencies.max == 1


def test_retry_after() -> None:
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"Retry-After": "soon"}) == 0
    assert retry_after({}) == 0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "Tue, 19 Jan 2038 03:14:07 GMT"}) > 1e6
