import csv
import io
import json
from typing import Any

import pytest

from handlers import reading as handlers_reading
from tests.handlers.wire import NDJSON, problem, raw
from tests.running import Reply, Running

RANGE = "/v1/devices/demo.a/readings"
CSV = {"Accept": "text/csv"}
LINES = {"Accept": NDJSON}


def reading(ts: int, value: object = 1, metric: str = "t") -> dict[str, Any]:
    return {"metric": metric, "value": value, "ts": ts}


def table(reply: Reply) -> list[list[str]]:
    assert reply.status == 200, reply
    assert reply.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(reply.body.decode(), newline="")))


def lines(reply: Reply) -> list[Any]:
    assert reply.status == 200, reply
    assert reply.headers["Content-Type"] == NDJSON
    assert reply.body.endswith(b"\n") or not reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


async def test_a_range_comes_as_csv_with_a_header_line(gate: Running) -> None:
    text = 'two\nlines, "quoted"'
    await gate.write("demo.a", *[reading(n, v) for n, v in enumerate([1.5, 2, True, False, text, "ä"])])
    rows = table(await gate.get(RANGE + "?time=ms", headers=CSV))
    assert rows[0] == ["offset", "metric", "ts", "value"]
    assert [row[3] for row in rows[1:]] == ["1.5", "2", "true", "false", text, "ä"]
    assert rows[1] == ["1", "t", "0", "1.5"]
    assert table(await gate.get(RANGE + "?to=1", headers=CSV))[1][2] == "1970-01-01T00:00:00Z"


async def test_a_range_comes_as_ndjson_item_for_item(gate: Running) -> None:
    await gate.write("demo.a", *[reading(n, v) for n, v in enumerate([1.5, True, "a\nb"])])
    for query in ("", "?order=desc", "?time=us&from=1&to=2", "?metric=t", "?every=1m&fn=count&fn=max"):
        items = (await gate.get(RANGE + query)).json["items"]
        assert lines(await gate.get(RANGE + query, headers=LINES)) == items


async def test_buckets_come_as_csv_in_the_order_of_the_functions(gate: Running) -> None:
    await gate.write("demo.a", reading(0, 1), reading(60_000, 3))
    rows = table(await gate.get(RANGE + "?every=1m&fn=max&fn=count&time=ms", headers=CSV))
    assert rows == [["ts", "metric", "max", "count"], ["0", "t", "1", "1"], ["60000", "t", "3", "1"]]


async def test_the_log_comes_as_csv_and_ndjson(gate: Running) -> None:
    await gate.write("demo.a", reading(1))
    await gate.write("demo.b", reading(2, "x", "u"))
    rows = table(await gate.get("/v1/readings?time=ms", headers=CSV))
    assert rows == [
        ["offset", "device", "metric", "ts", "value"],
        ["1", "demo.a", "t", "1", "1"],
        ["2", "demo.b", "u", "2", "x"],
    ]
    page = (await gate.get("/v1/readings?match=*.b")).json
    assert lines(await gate.get("/v1/readings?match=*.b", headers=LINES)) == page["items"]
    assert lines(await gate.get(f"/v1/readings?since={page['next']}", headers=LINES)) == []
    problem(await gate.get("/v1/readings?since=x-1", headers=CSV), 410, "position_gone")


async def test_an_export_holds_all_however_many_pages_that_takes(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers_reading, "EXPORT_ROWS", 7)
    await gate.write("demo.a", *[reading(ts // 2, ts, f"m{ts % 2}") for ts in range(100)])
    for path in (RANGE, RANGE + "?order=desc", "/v1/readings", RANGE + "?every=1ms&fn=last"):
        for headers in (CSV, LINES):
            reply = await gate.get(path, headers=headers)
            got = table(reply)[1:] if headers is CSV else lines(reply)
            assert len(got) == 100, path
            assert len({str(row) for row in got}) == 100


async def test_an_export_ends_at_the_head_seen_at_the_start(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers_reading, "EXPORT_ROWS", 3)
    await gate.write("demo.a", *[reading(ts) for ts in range(10)])
    engine = gate.gate.engine
    for method, path in (("range", RANGE), ("read_from", "/v1/readings")):
        head = engine.state().head
        original = getattr(engine, method)

        async def while_written(*args: Any, original: Any = original) -> Any:
            await gate.write("demo.a", *[reading(engine.state().head + n + 1000) for n in range(3)])
            return await original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(engine, method, while_written)
            assert len(lines(await gate.get(path, headers=LINES))) == head


async def test_an_export_to_http_1_0_ends_with_the_connection(gate: Running) -> None:
    await gate.write("demo.a", reading(1))
    reply = await raw(
        gate,
        f"GET {RANGE} HTTP/1.0\r\nAccept: {NDJSON}\r\nAuthorization: Bearer {gate.token()}\r\n\r\n".encode(),
    )
    assert "Transfer-Encoding" not in reply.headers
    assert len(lines(reply)) == 1


async def test_head_of_an_export_has_its_headers_and_no_body(gate: Running) -> None:
    await gate.write("demo.a", reading(1))
    reply = await gate.call("HEAD", RANGE, headers=CSV)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"].startswith("text/csv")
