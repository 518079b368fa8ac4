"""Two years of real hourly temperatures: replayed, stored as they are in the files, and only once."""

import asyncio
import csv
import io
import math
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import vega_datasets

from server.replay import Replay, replay
from server.replay_report import Summary
from tests.running import Running

DATA = Path(vega_datasets.__file__).parent / "_data"
# File, its device, and how it writes times.
FILES = (
    ("seattle-temps.csv", "weather.seattle", "%Y/%m/%d %H:%M"),
    ("sf-temps.csv", "weather.sf", "%Y/%m/%d %H:%M:%S"),
)
ROWS = 8759


def contents(name: str, form: str) -> dict[int, float]:
    """The file, read by other means: milliseconds since 1970 -> value; of one time the first counts."""
    found: dict[int, float] = {}
    with (DATA / name).open(newline="") as file:
        for row in csv.DictReader(file):
            moment = datetime.strptime(row["date"], form).replace(tzinfo=UTC)
            found.setdefault(int(moment.timestamp() * 1000), float(row["temp"]))
    return found


async def run(gate: Running, name: str, device: str, path: Path, **options: float) -> Summary:
    """Replay a file; its place is kept in `path`."""
    token = gate.token(("readings:write",), (device,))
    plan = Replay(
        file=str(DATA / name),
        device=device,
        url=gate.url,
        token=token,
        progress=str(path / f"{device}.progress"),
        **options,  # type: ignore[arg-type]
    )
    return await replay(plan, io.StringIO())


async def stored(gate: Running, device: str) -> list[tuple[int, float]]:
    """All readings of a device by its pages: milliseconds since 1970 and value, in order of time."""
    found = []
    path: str | None = f"/v1/devices/{device}/readings?time=ms&limit=1000"
    while path is not None:
        page = (await gate.get(path)).json
        found += [(item["ts"], item["value"]) for item in page["items"]]
        path = page["next"] and f"/v1/devices/{device}/readings?time=ms&limit=1000&cursor={page['next']}"
    return found


async def test_both_files_are_stored_value_by_value_and_never_twice(gate: Running, tmp_path: Path) -> None:
    wanted = {device: await asyncio.to_thread(contents, name, form) for name, device, form in FILES}
    assert all(len(found) > 8700 for found in wanted.values())

    first = [await run(gate, name, device, tmp_path) for name, device, _ in FILES]
    for summary, (_, device, _) in zip(first, FILES, strict=True):
        assert (summary.rows, summary.complete) == (ROWS, True)
        assert summary.accepted == len(wanted[device])
        assert await stored(gate, device) == sorted(wanted[device].items())

    again = [await run(gate, name, device, tmp_path) for name, device, _ in FILES]
    for summary, before in zip(again, first, strict=True):
        assert summary.accepted == 0
        assert summary.duplicates + summary.rejected == before.sent
        assert summary.rejected == before.rejected
    total = sum(map(len, wanted.values()))
    log = (await gate.get("/v1/readings?since=earliest", headers={"Accept": "application/x-ndjson"})).body
    assert log.count(b"\n") == total
    assert gate.gate.commit.figures.stored == total


async def test_averages_of_a_month_are_those_of_the_file(gate: Running, tmp_path: Path) -> None:
    name, device, form = FILES[0]
    await run(gate, name, device, tmp_path)
    days = defaultdict(list)
    for ms, value in (await asyncio.to_thread(contents, name, form)).items():
        moment = datetime.fromtimestamp(ms / 1000, UTC)
        if moment.month == 7:
            days[moment.replace(hour=0)].append(value)
    assert len(days) == 31
    path = f"/v1/devices/{device}/readings?from=2010-07-01T00:00:00Z&to=2010-08-01T00:00:00Z&every=1d"
    items = (await gate.get(f"{path}&fn=avg&fn=count&fn=max")).json["items"]
    assert [datetime.fromisoformat(item["ts"]) for item in items] == list(days)
    for item, values in zip(items, days.values(), strict=True):
        assert math.isclose(item["avg"], math.fsum(values) / len(values), rel_tol=1e-12)
        assert item["count"] == len(values)
        assert item["max"] == max(values)


async def test_an_interrupted_replay_goes_on_where_it_was_and_doubles_nothing(
    gate: Running, tmp_path: Path
) -> None:
    name, device, form = FILES[1]
    figures = gate.gate.commit.figures
    running = asyncio.create_task(run(gate, name, device, tmp_path, rate=20_000.0, batch=50))
    async with asyncio.timeout(10):
        while figures.stored < 500:
            await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gate.gate.commit.drain()
    before = figures.stored
    assert before < ROWS
    summary = await run(gate, name, device, tmp_path)
    assert summary.complete
    assert 0 < summary.skipped <= before
    assert summary.skipped + summary.sent == ROWS
    wanted = await asyncio.to_thread(contents, name, form)
    assert await stored(gate, device) == sorted(wanted.items())
    assert figures.stored == len(wanted)
