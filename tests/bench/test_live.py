"""No stream is measured that loses, doubles, swaps or changes a reading; figures are what they say."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import runner
from bench.environment import Cores
from bench.live import cells, load, report, wire
from bench.live.cells import check, read_commits
from bench.live.crowd import Crowd, Load, Reference, Transport
from bench.live.figures import Live
from bench.live.load import Shape, Task, perform
from bench.live.memory import proportional, pss, resident
from bench.live.musts import BESIDES, BOUNDS, MUSTS
from bench.live.scenarios import LIVE, Scenario
from bench.load.open_loop import Open
from bench.load.wrk import Void
from bench.processes import running
from bench.results import Cell, Figures, Plan
from bench.targets import Target
from bench.targets import load as load_targets
from bench.verify import Unverified
from tests.bench import streaming as target
from tests.bench.streaming import streaming

WEBSOCKET, SSE = (
    Scenario("x", "x", "deliveries/s", Shape(3, transport=transport)) for transport in Transport
)
# The one who gets something else may be the first with it: then it is the others who differ.
_DIFFERS = "a follower got other bytes|in order and once|did not get everything"
# Of the processes of a target that is a thread: the tests' own group has others, which come and go.
NO_GROUP = 1 << 30
# Seconds in which a load comes to where it is cheated; it ends there.
CAUGHT = 10.0
CHEATS = [
    ("wrong accept", "expected the Sec-WebSocket-Accept"),
    ("drops one for all", "expected reading 3 next"),
    ("doubles one for all", "expected reading 4 next"),
    ("swaps two", "expected reading 3 next"),
    ("drops one for one", _DIFFERS),
    ("doubles one for one", _DIFFERS),
    ("other bytes for one", _DIFFERS),
    ("wrong value", "expected reading 3 next"),
    ("no position", "expected ts and position"),
    ("binary frames", "expected a whole text frame"),
    ("not JSON", "expected JSON"),
    ("miscounts", "expected 1 accepted of write 0"),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never comes."""
    monkeypatch.setattr("bench.live.crowd.PATIENCE", 3.0)


@pytest.mark.parametrize("scenario", [WEBSOCKET, SSE], ids=["websocket", "sse"])
def test_a_target_that_keeps_the_contract_is_verified(scenario: Scenario) -> None:
    with streaming() as port:
        check(scenario, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(("fault", "complaint"), CHEATS)
def test_a_cheat_is_caught_before_anything_is_measured(fault: str, complaint: str) -> None:
    with streaming(fault) as port, pytest.raises(Unverified) as caught:
        check(WEBSOCKET, f"http://127.0.0.1:{port}")
    assert re.search(complaint, str(caught.value))


def test_one_who_acknowledges_nothing_is_caught(impatient: None) -> None:
    with streaming("no acknowledgement") as port, pytest.raises(Unverified, match="were not acknowledged"):
        check(WEBSOCKET, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("wrong type", "expected 200 with text/event-stream"),
        ("no verdict", "expected the event recovery"),
        ("drops one for all", "expected reading 3 next"),
        ("doubles one for one", _DIFFERS),
        ("swaps two", "expected reading 3 next"),
    ],
)
def test_a_cheat_over_events_is_caught(fault: str, complaint: str) -> None:
    with streaming(fault) as port, pytest.raises(Unverified) as caught:
        check(SSE, f"http://127.0.0.1:{port}")
    assert re.search(complaint, str(caught.value))


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("drops one for all", "next, in order and once"),
        ("doubles one for all", "next, in order and once"),
        ("drops one for one", _DIFFERS),
        ("doubles one for one", _DIFFERS),
    ],
)
@pytest.mark.parametrize("rate", [0.0, 200.0], ids=["closed", "open"])
def test_a_cheat_in_the_midst_of_the_load_is_caught(fault: str, complaint: str, rate: float) -> None:
    with streaming(fault, after=30) as port, pytest.raises(Unverified) as caught:
        perform(_task(port, Shape(5, rate=rate), CAUGHT))
    assert re.search(complaint, str(caught.value))


def test_one_who_lacks_the_end_is_caught(impatient: None) -> None:
    last = sum(cells.CHECKED) - 1
    with streaming("drops one for one", after=last) as port, pytest.raises(Unverified) as caught:
        check(WEBSOCKET, f"http://127.0.0.1:{port}")
    assert "1 of 3 followers did not get everything" in str(caught.value)


@pytest.mark.parametrize("transport", Transport)
def test_a_closed_loop_counts_what_all_followers_got(transport: Transport) -> None:
    with streaming() as port:
        found = perform(_task(port, Shape(5, 4, transport)))
    assert found.deliveries > 0
    assert found.deliveries % (5 * 4) == 0
    assert 100 < found.size < 250
    # A fifth of a second, and what came behind it.
    assert found.rate <= found.deliveries / 0.2


def test_an_open_loop_sends_all_that_is_planned_and_times_each_delivery() -> None:
    began = time.perf_counter()
    with streaming() as port:
        found = perform(_task(port, Shape(5, 2, rate=100.0)))
    took = (time.perf_counter() - began) * 1000
    assert found.deliveries == 20 * 2 * 5
    assert found.open is not None
    assert found.open.requests == found.deliveries
    assert found.open.planned == 1000.0
    assert 0 < found.open.p50_ms <= found.open.p99_ms <= found.open.max_ms < took


def test_a_follower_that_is_stuck_is_not_waited_for() -> None:
    with streaming() as port:
        found = perform(_task(port, Shape(3, rate=50.0, stuck=1, overflow="drop_oldest")))
    assert found.deliveries == 10 * 3


def test_a_drain_measures_the_crowd_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "DRAINS", 3)
    acknowledged, waited = Load.acknowledged, 0.0

    def slowly(self: Load, timeout: float) -> int:
        nonlocal waited
        began = time.perf_counter()
        time.sleep(0.02)
        found = acknowledged(self, timeout)
        waited += time.perf_counter() - began
        return found

    monkeypatch.setattr(Load, "acknowledged", slowly)
    began = time.perf_counter()
    with streaming() as port:
        found = perform(_task(port, Shape(5, drain=True)))
    took = time.perf_counter() - began
    assert found.deliveries == 3 * load.DRAINED * 5
    # What the server takes is not in it.
    assert found.deliveries / found.rate < took - waited


def test_a_load_that_goes_wrong_voids_the_cell() -> None:
    with streaming("doubles one for all", after=30) as port, pytest.raises(Void, match="in order and once"):
        load.run(_task(port, Shape(5), CAUGHT))


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "plain"])
@given(seed=st.integers(0, 2**32))
def test_events_are_read_however_they_are_cut(chunked: bool, seed: int) -> None:
    cut = random.Random(seed)
    readings = [
        {"device": wire.DEVICE, "metric": wire.METRIC, "ts": "t", "value": n, "position": f"p-{n}"}
        for n in range(20)
    ]
    whole = b"".join(target.event(reading) for reading in readings)
    if not chunked:
        whole = b"".join(part.split(b"\r\n", 1)[1][:-2] for part in _chunks(whole))
    reader = wire.EventReader()
    reader.chunked = chunked
    reference = Reference(reader)
    _feed(reference, whole, cut)
    assert reader.next == 20
    assert reader.ends[-1] == len(whole)
    # The others get the same, cut elsewhere.
    _feed(reference, whole, cut)


@given(seed=st.integers(0, 2**32), fault=st.sampled_from(["drop", "double", "flip"]))
def test_no_byte_that_differs_is_passed_over(seed: int, fault: str) -> None:
    cut = random.Random(seed)
    frames = [target.frame(_reading(n)) for n in range(20)]
    reference = Reference(wire.FrameReader())
    _feed(reference, b"".join(frames), cut)
    at = cut.randrange(19)
    if fault == "drop":
        del frames[at]
    elif fault == "double":
        frames.insert(at, frames[at])
    else:
        place = cut.randrange(len(frames[at]))
        frames[at] = frames[at][:place] + bytes([frames[at][place] ^ 1]) + frames[at][place + 1 :]
    if fault == "drop":
        # As long as the others': the last one once more, which is too much there.
        frames.append(frames[-1])
    with pytest.raises(Unverified, match="other bytes"):
        _feed(reference, b"".join(frames), cut)


def test_what_is_written_is_masked_and_says_which_reading_it_is() -> None:
    for padding, value in ((0, 7), (20, "7:".ljust(20, "x"))):
        data = wire.write(3, 7, 1, padding)
        assert data[0] == 0x81
        assert data[1] & 0x80
        begin = 6 if data[1] & 0x7F < 126 else 8
        assert wire.message(data[begin:])["readings"] == [
            {"device": "bench.live", "metric": "m", "value": value}
        ]


def test_transactions_are_read_from_the_metrics() -> None:
    text = '# TYPE x\ntidegate_commit_readings_bucket{le="1.0"} 3.0\ntidegate_commit_readings_count 4.0\n'
    assert read_commits(text + "tidegate_commit_readings_sum 10.0\n") == (4.0, 10.0)
    assert read_commits(text) is None


def test_memory_is_that_of_the_process_and_its_children() -> None:
    assert pss("Rss:  100 kB\nPss:    64 kB\nPss_Anon: 3 kB\n") == 64
    with pytest.raises(ValueError, match="no Pss"):
        pss("Rss: 1 kB\n")
    script = "import os, signal; x = b'x' * 50_000_000; os.fork(); print(1, flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            assert process.stdout.readline()
            # Shared by both: the kernel counts it for each, or by halves.
            assert resident(process.pid) > 100_000_000
            assert 50_000_000 < proportional(process.pid) < 90_000_000
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_idle_followers_are_connected_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SETTLE", 0.0)
    crowds: list[int] = []
    close = Crowd.close

    def closing(self: Crowd) -> None:
        crowds.append(len(self))
        close(self)

    monkeypatch.setattr(Crowd, "close", closing)
    scenario = Scenario("idle-20", "x", "KiB", Shape(20), "idle")
    cell = cells.measure(1, scenario, load_targets()["tidegate"], 1, 1)
    assert cell.void == ""
    assert cell.figures is not None
    assert cell.figures.live is not None
    assert cells.FOLLOWERS in crowds
    assert 20 in crowds


def test_the_gate_itself_is_verified() -> None:
    with running(load_targets()["tidegate"]) as server:
        for name in ("fanout-16", "sse-16", "steady"):
            check(LIVE[name], server.url)


def test_a_loop_is_told_its_scenario() -> None:
    begin = '"batches": 5, "seconds": 2, "warm_up_batches": 0, "readings": '
    script = f"import sys; print(chr(123) + {begin!r} + sys.argv[1] + chr(125))"
    loop = Target("x", ["-c", script, "{scenario}"], [], "house", "loop", name="mine")
    cell = cells.measure(1, Scenario("100", "x", "readings/s", kind="loop"), loop, 1, 1)
    assert cell.void == ""
    assert cell.figures is not None
    assert cell.figures.rate == 250.0


# -- musts and the report ----------------------------------------------------------------------------


def test_what_must_be_reached_is_measured() -> None:
    every = set(runner.all_cells(load_targets(), runner.STREAMS))
    wanted = (
        {must.cell for must in MUSTS} | {must.against for must in MUSTS} | {bound.cell for bound in BOUNDS}
    )
    assert wanted | {beside.cell for beside in BESIDES} | {beside.against for beside in BESIDES} <= every
    assert not every & set(runner.all_cells(load_targets()))


def test_a_plan_of_streams_is_told_by_its_cells() -> None:
    assert runner.suite_of("fanout-1@tidegate") is runner.STREAMS
    assert runner.suite_of("hello@raw_httptools") is runner.REQUESTS


def test_the_report_says_what_is_met() -> None:
    text = _report(
        ("fanout-1@tidegate", Figures(150.0, live=Live(size=130.0, commit_readings=1.0))),
        ("fanout-1@aiohttp_fanout", Figures(100.0)),
        ("filters-1000@tidegate_hub", Figures(40_000.0)),
        ("idle-1000@tidegate", Figures(20.0, live=Live(follower_kib=20.0))),
        ("latency@tidegate", Figures(1.0, open=_opened(12.0), sync_p99_ms=3.0)),
    )
    assert "1.50 x (1.50 - 1.50)" in text
    assert "met by 25%" in text
    assert "MISSED by 20%" in text
    assert "20.0 KiB (20.0 - 20.0)" in text
    assert "stretch missed by 43%" in text
    assert "p99 <= 10.0 ms + the disk's 3.00" in text
    assert "12.00 ms (12.00 - 12.00)" in text
    assert "met by 8%" in text


@pytest.mark.parametrize(
    ("p99", "grown", "verdicts"),
    [(14.0, 1, ("met by 7%", "met by 75%")), (16.0, 8, ("MISSED by 7%", "MISSED by 100%"))],
)
def test_one_who_is_slow_is_compared_within_the_round(
    p99: float, grown: int, verdicts: tuple[str, str]
) -> None:
    mib = 1024 * 1024
    text = _report(
        ("steady@tidegate", Figures(1.0, open=_opened(10.0), live=Live(growth=5 * mib))),
        ("one-slow@tidegate", Figures(1.0, open=_opened(p99), live=Live(growth=(5 + grown) * mib))),
    )
    for verdict in verdicts:
        assert verdict in text


def test_a_generator_that_was_the_limit_is_a_doubt() -> None:
    cores = Cores(server=0.5, load=0.99, foreign=0.0, steal=0.0)
    assert "the load generator was busier" in _report(("fanout-1@tidegate", Figures(1.0, cores=cores)))


def _report(*found: tuple[str, Figures]) -> str:
    every = [_cell(name, figures) for name, figures in found]
    return report.render(_plan(*(name for name, _ in found)), every, {})


def _cell(name: str, figures: Figures) -> Cell:
    scenario, _, target = name.partition("@")
    return Cell(1, scenario, target, "2026-11-21", 1.0, "", figures)


def _plan(*names: str) -> Plan:
    return Plan(list(names), 1, 1, 1, 1)


def _opened(p99: float) -> Open:
    return Open(100.0, 100.0, 500, 1.0, 2.0, p99, 15.0, 16.0, 0.01, 0, 0.5)


def _task(port: int, shape: Shape, seconds: float = 0.2) -> Task:
    return Task(shape, "127.0.0.1", port, "token", NO_GROUP, 0.1, seconds)


def _reading(number: int) -> dict[str, object]:
    return {
        "type": "reading",
        "device": wire.DEVICE,
        "metric": wire.METRIC,
        "ts": "t",
        "value": number,
        "position": f"p-{number}",
    }


def _feed(reference: Reference, whole: bytes, cut: random.Random) -> None:
    place = 0
    while place < len(whole):
        end = min(len(whole), place + cut.randrange(1, 400))
        place = reference.follow(memoryview(whole)[place:end], place)


def _chunks(whole: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(whole):
        place = wire.chunk_at(whole, at)
        assert place is not None
        found.append(whole[at : place[1] + 2])
        at = place[1] + 2
    return found
