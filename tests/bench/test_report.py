"""What a run found is told as it is: where the gate is beaten first, all of it from the raw results."""

import importlib.util
import json
import re
from pathlib import Path

import msgspec
import pytest

from bench import beaten, compare, digest, everything, gallery, page, plots, report, summary
from bench.load.open_loop import Open
from bench.results import Cell, Figures, Plan, Results
from tests.bench import invented

NAME = re.compile(r"(?:src|href|url|import)\s*[=(]\s*[\"']?(?!data:)[a-z]*:?//", re.IGNORECASE)


@pytest.fixture
def run(tmp_path: Path) -> Results:
    return invented.results(tmp_path)


def test_a_peer_that_beats_the_gate_is_named_with_every_way_it_does(run: Results) -> None:
    found = beaten.wins(digest.digest(run))
    assert {(win.scenario, win.target) for win in found} == {("latest", "quick_one")}
    by_what = {win.what: win for win in found}
    counted = by_what["requests/s"]
    assert counted.factor == pytest.approx(1.1, rel=0.04)
    assert (counted.won, counted.rounds, counted.sure) == (5, 5, True)
    assert any(what.startswith("p99 ms at ") for what in by_what)
    text = summary.render(run)
    assert text.index("## Where Tidegate is beaten") < text.index("## Beside Tidegate")
    assert "| latest   | Quick <one> & co. | requests/s" in text


def test_a_gate_that_is_not_beaten_says_so_and_one_that_took_no_part_says_nothing(tmp_path: Path) -> None:
    better = invented.results(tmp_path, "better", factor=1.5)
    assert "## Where Tidegate is beaten\n\nNowhere in this run." in summary.render(better)
    empty = Results.create(tmp_path, "empty", Plan(["hello@raw_httptools"], 1, 1, 1, 1), {})
    assert "Where Tidegate is beaten" not in summary.render(empty)


def test_a_win_in_some_rounds_only_is_told_as_one(tmp_path: Path) -> None:
    plan = Plan(["latest@tidegate", "latest@other"], 3, 1, 1, 1)
    run = Results.create(tmp_path, "run", plan, {})
    for number, (ours, theirs) in enumerate(((100.0, 120.0), (100.0, 90.0), (100.0, 110.0)), 1):
        run.add(Cell(number, "latest", "tidegate", "", 1.0, "", Figures(ours)))
        run.add(Cell(number, "latest", "other", "", 1.0, "", Figures(theirs)))
    (win,) = beaten.wins(digest.digest(run))
    assert (win.won, win.rounds, win.sure) == (2, 3, False)
    assert win.factor == pytest.approx(1.1)


def test_a_load_at_which_the_client_was_late_itself_tells_nothing_of_a_server(tmp_path: Path) -> None:
    plan = Plan(["write@tidegate", "write@other"], 1, 1, 1, 1, ["write"])
    run = Results.create(tmp_path, "run", plan, {})
    for target, steps in (
        ("tidegate", [invented.opened(500, 2.0), invented.opened(1000, 90.0, late=True)]),
        ("other", [invented.opened(500, 1.0), invented.opened(1000, 1.0)]),
    ):
        run.add(Cell(1, "write", target, "", 1.0, "", Figures(1500.0, curve=steps)))
    (win,) = beaten.wins(digest.digest(run))
    assert win.what == "p99 ms at 500/s"


def test_who_takes_less_stands_in_one_row_behind_who_does_more(tmp_path: Path) -> None:
    memory = {"tidegate": 70.0, "raw_x": 10.0, "one": 30.0, "two": 20.0, "three": 69.0, "four": 90.0}
    run = Results.create(tmp_path, "run", Plan([f"hello@{name}" for name in memory], 1, 1, 1, 1), {})
    for name, mib in memory.items():
        rate = 110.0 if name == "four" else 100.0
        run.add(Cell(1, "hello", name, "", 1.0, "", Figures(rate, loaded_mib=mib)))
    found = beaten.wins(digest.digest(run))
    assert [(win.what, win.target, win.theirs, win.more, win.floor) for win in found] == [
        ("requests/s", "four", "110", 0, False),
        ("MiB after the load", "two", "20.0", 1, False),
        ("MiB after the load", "raw_x", "10.0", 0, True),
    ]
    assert "| two and 1 more " in summary.render(run)


def test_less_is_better_where_it_is(tmp_path: Path) -> None:
    plan = Plan(["start@tidegate", "start@other"], 1, 1, 1, 1)
    run = Results.create(tmp_path, "run", plan, {})
    run.add(Cell(1, "start", "tidegate", "", 1.0, "", Figures(300.0)))
    run.add(Cell(1, "start", "other", "", 1.0, "", Figures(100.0)))
    found = digest.digest(run)
    assert [cell.target for cell in found.of("start")] == ["other", "tidegate"]
    (win,) = beaten.wins(found)
    assert win.what == "ms"
    assert win.factor == pytest.approx(3.0)


def test_percentiles_of_rounds_are_those_of_all_their_requests(tmp_path: Path) -> None:
    plan = Plan(["write@tidegate"], 2, 1, 1, 1, ["write"])
    run = Results.create(tmp_path, "run", plan, {})
    for number, milliseconds in ((1, 1.0), (2, 100.0)):
        step = invented.opened(500, milliseconds, late=number == 2)
        run.add(Cell(number, "write", "tidegate", "", 1.0, "", Figures(1000.0, curve=[step])))
    (point,) = digest.digest(run).cells["write@tidegate"].curve
    assert point.p50_ms == pytest.approx(1.1, rel=0.03)
    assert point.p90_ms == pytest.approx(108, rel=0.03)
    assert point.p99.least == pytest.approx(1.1, rel=0.03)
    assert point.p99.most == pytest.approx(110, rel=0.03)
    assert (point.rounds, point.late) == (2, 1)
    assert "client late in 1" in summary.render(run)


def test_what_is_void_or_broken_stands_in_the_summary(run: Results) -> None:
    run.add(Cell(5, "write", "aiohttp_asyncpg", "", 1.0, "not verified: expected 401 for no token"))
    facts = dict(run.facts)
    facts["gone"] = msgspec.structs.replace(
        facts["quick_one"], broken="gone cannot be installed", cannot={"page": "it has no database"}
    )
    run.keep_facts(facts)
    text = summary.render(Results.read(run.directory))
    assert "34 of 35 measurements count" in text
    assert "round 5, write@aiohttp_asyncpg is void: not verified: expected 401" in text
    assert "- gone: gone cannot be installed" in text
    assert "- page@gone: it has no database" in text


def test_the_canary_s_word_stands_in_the_summary(run: Results) -> None:
    assert "was off by more than 5% 0 times; 0 of 35 measurements" in summary.render(run)


def test_a_run_that_measured_nothing_has_a_summary_and_a_page(tmp_path: Path) -> None:
    empty = Results.create(tmp_path, "empty", Plan(["write@tidegate", "fanout-1@tidegate"], 1, 1, 1, 1), {})
    assert "0 of 2 measurements count" in summary.render(empty)
    assert "<!doctype html>" in page.render(empty)


def test_the_runs_of_before_can_be_read(tmp_path: Path) -> None:
    old = Path(report.__file__).parent / "results" / "2026-11-21-2288e5e"
    run = Results.read(old)
    assert "bare_sqlite" in summary.render(run)
    assert "2288e5e" in page.render(run)


def test_what_the_generators_reach_is_shown(tmp_path: Path) -> None:
    plan = Plan(["hello@raw_constant", "hello-ceiling@raw_constant"], 1, 1, 1, 1)
    run = Results.create(tmp_path, "run", plan, {})
    run.add(Cell(1, "hello", "raw_constant", "", 1.0, "", Figures(140_000.0)))
    run.add(Cell(1, "hello-ceiling", "raw_constant", "", 1.0, "", Figures(70_000.0)))
    text = summary.render(run)
    assert "constant bytes: 140,000 (140,000 - 140,000) requests/s" in text
    assert "before it is late itself: 70,000 (" in text
    assert "At most: wrk" in page.render(run)


# -- everything on, beside each hello -------------------------------------------------------------


def full(home: Path, **rates: tuple[float, ...]) -> Results:
    """A run of cells, the rates of their rounds by `scenario__target`."""
    by_name = {name.replace("__", "@"): each for name, each in rates.items()}
    run = Results.create(home, "run", Plan(list(by_name), 2, 1, 1, 1), {})
    for name, each in by_name.items():
        scenario, _, target = name.partition("@")
        for number, rate in enumerate(each, 1):
            run.add(Cell(number, scenario, target, "", 1.0, "", Figures(rate)))
    return run


def test_the_gate_in_full_is_told_by_each_hello_round_by_round(tmp_path: Path) -> None:
    run = digest.digest(
        full(
            tmp_path,
            write__tidegate=(30.0, 60.0),
            hello__slow=(10.0, 20.0),
            hello__even=(40.0, 50.0),
            hello__quick=(60.0, 90.0),
            hello__raw_one=(300.0, 300.0),
            hello__tidegate=(50.0, 50.0),
            hello__tidegate_postgres=(50.0, 50.0),
        )
    )
    found = everything.greetings(run)
    # The fastest first; the gate's own hello is none of them.
    assert [(each.target, each.floor) for each in found] == [
        ("raw_one", True),
        ("quick", False),
        ("even", False),
        ("slow", False),
    ]
    assert [each.factors["write"].median for each in found[2:]] == pytest.approx([0.975, 3.0])
    assert all(set(each.factors) == {"write"} for each in found)
    (standing,) = everything.standings(run)
    assert (standing.above, standing.even, standing.below) == (["slow"], ["even"], ["quick"])
    assert list(everything.told(run)) == [
        "`write` with everything on, 45/s: faster than the `hello` of 1 of 3 others in every round, "
        "faster in some rounds than that of 1 (even), slower than 1 (quick)."
    ]


def test_everything_on_stands_in_summary_page_and_plots(run: Results, tmp_path: Path) -> None:
    text = summary.render(run)
    assert "- `latest` with everything on, 60," in text
    assert "/s: faster than the `hello` of 1 of 1 others in every round." in text
    assert "| L1: uvloop + httptools (floor) | " in text
    data = data_of(page.render(run))
    assert [each["target"] for each in data["greetings"]] == [  # type: ignore[attr-defined]
        "raw_httptools",
        "aiohttp_asyncpg",
    ]
    drawn = gallery_files(run, tmp_path)["everything-on.svg"]
    for label in ("Tidegate: write", "Tidegate: latest", "aiohttp + asyncpg: hello"):
        assert label in drawn
    # A floor is no server.
    assert "httptools" not in drawn


def test_without_a_hello_or_a_gate_there_is_nothing_to_tell(tmp_path: Path) -> None:
    for place, rates in enumerate(({"write__tidegate": (1.0,)}, {"hello__other": (1.0,)})):
        home = tmp_path / str(place)
        home.mkdir()
        found = full(home, **rates)
        assert "Everything switched on" not in summary.render(found)
        assert "everything-on.svg" not in gallery_files(found, home / "plots")


# -- the gate on PostgreSQL ----------------------------------------------------------------------


def test_the_gate_on_postgresql_is_beaten_in_a_section_of_its_own_and_never_by_itself(tmp_path: Path) -> None:
    run = full(
        tmp_path,
        write__tidegate=(50.0, 50.0),
        write__tidegate_postgres=(20.0, 20.0),
        write__other=(30.0, 30.0),
    )
    assert beaten.wins(digest.digest(run)) == []
    (win,) = beaten.wins(digest.digest(run), "tidegate_postgres")
    assert (win.target, win.ours, win.theirs) == ("other", "20", "30")
    text = summary.render(run)
    assert "## Where Tidegate is beaten\n\nNowhere in this run." in text
    assert "## Where Tidegate on PostgreSQL is beaten\n\n| scenario" in text
    faster = full(tmp_path / "faster", write__tidegate=(20.0,), write__tidegate_postgres=(50.0,))
    assert beaten.wins(digest.digest(faster)) == []


def test_no_cell_of_the_gate_is_a_measure_of_the_machine(tmp_path: Path) -> None:
    before, after = (
        digest.digest(full(tmp_path / name, write__tidegate_postgres=(1.0, 1.0), write__other=(1.0, 1.0)))
        for name in ("before", "after")
    )
    assert compare.references(before, after) == ["write@other"]


# -- the page ------------------------------------------------------------------------------------


def data_of(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    decoded: dict[str, object] = json.loads(found[1])
    return decoded


def test_the_page_needs_nothing_from_outside(run: Results) -> None:
    text = page.render(run)
    assert not NAME.search(text)
    assert "default-src 'none'" in text
    assert "@@" not in text


def test_the_page_holds_what_was_found(run: Results) -> None:
    data = data_of(page.render(run))
    assert data["titles"] == invented.TITLES
    cells = {cell["name"]: cell for cell in data["cells"]}  # type: ignore[attr-defined]
    assert set(cells) == set(invented.RATES)
    assert [number for number, _ in cells["write@tidegate"]["rates"]] == [1, 2, 3, 4, 5]
    assert len(cells["write@tidegate"]["curve"]) == 6


def test_a_title_ends_no_element_of_the_page(tmp_path: Path) -> None:
    run = invented.results(tmp_path)
    hostile = "</script><script>alert(1)</script>\u2028"
    facts = msgspec.structs.replace(run.facts["quick_one"], title=hostile)
    run.keep_facts({**run.facts, "quick_one": facts})
    text = page.render(run)
    assert "alert(1)</script>" not in text
    assert data_of(text)["titles"]["quick_one"] == hostile  # type: ignore[index]


# -- the plots -----------------------------------------------------------------------------------


def test_the_plots_are_the_same_each_time_and_hold_no_date(run: Results, tmp_path: Path) -> None:
    first, second = (gallery_files(run, tmp_path / name) for name in ("first", "second"))
    assert first == second
    assert {"throughput-latest.svg", "latency-write.svg", "floor.svg", "memory.svg", "cpu.svg"} <= set(first)
    assert not any("<dc:date>" in text for text in first.values())
    assert "Quick &lt;one&gt; &amp; co." in first["throughput-latest.svg"]


def test_a_plot_of_curves_has_a_colour_for_each_and_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    names = ["tidegate", "tidegate_postgres", *(f"peer_{n}" for n in range(11))]
    run = Results.create(
        tmp_path, "run", Plan([f"write@{name}" for name in names], 1, 1, 1, 1, ["write"]), {}
    )
    for place, name in enumerate(names):
        step = invented.opened(500, 1.0 + place)
        run.add(Cell(1, "write", name, "", 1.0, "", Figures(1000.0 - place, curve=[step])))
    text = gallery_files(run, tmp_path / "plots")["latency-write.svg"]
    assert "(the 8 fastest of 11 others)" in text
    assert [name for name in names if f">{name}<" in text] == names[:10]


def gallery_files(run: Results, home: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in plots.draw(run, home)}


def test_a_plot_that_is_no_more_goes(run: Results, tmp_path: Path) -> None:
    (tmp_path / "throughput-gone.svg").write_text("<svg/>")
    assert "throughput-gone.svg" not in {path.name for path in plots.draw(run, tmp_path)}
    assert not (tmp_path / "throughput-gone.svg").exists()


def test_without_matplotlib_there_is_a_page_and_a_word(run: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    gallery.keep(run, said.append)
    assert (run.directory / gallery.PAGE).exists()
    assert "matplotlib is not installed" in said[0]


def test_plots_that_cannot_be_drawn_spoil_no_run(run: Results) -> None:
    (run.directory / gallery.PLOTS).write_text("in the way of a directory")
    said: list[str] = []
    gallery.keep(run, said.append)
    assert said[0].startswith("no plots: ")
    assert "FileExistsError" in said[0]


# -- two runs ------------------------------------------------------------------------------------


def verdicts(before: Results, after: Results) -> dict[str, str]:
    found = compare.differences(digest.digest(before), digest.digest(after))
    return {each.name: each.verdict for each in found}


def test_two_runs_of_the_same_differ_by_noise_alone(tmp_path: Path) -> None:
    news, cells = 0, 0
    for seed in range(1, 21, 2):
        before, after = (invented.results(tmp_path, str(n), seed=n) for n in (seed, seed + 1))
        found = verdicts(before, after)
        news += sum(each in ("WORSE", "BETTER") for each in found.values())
        cells += len(found)
    # A peer's cell counts by three others here, whose noise is its own too; in a full run they are many.
    assert (cells, news <= 0.05 * cells) == (70, True)


@pytest.mark.parametrize(("factor", "verdict"), [(0.9, "WORSE"), (1.1, "BETTER")])
def test_what_really_changed_is_shown(tmp_path: Path, factor: float, verdict: str) -> None:
    before = invented.results(tmp_path, "before", seed=1)
    after = invented.results(tmp_path, "after", seed=2, factor=factor)
    found = verdicts(before, after)
    assert (found["latest@tidegate"], found["write@tidegate"]) == (verdict, verdict)
    assert found["latest@aiohttp_asyncpg"] not in ("WORSE", "BETTER")
    text = compare.render(before, after)
    assert "7 cells in both runs; " in text
    assert "The machine, by 5 cells of the peers: " in text
    change = next(each.change for each in compare.differences(digest.digest(before), digest.digest(after)))
    assert change.possible


def test_a_slower_machine_is_no_slower_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = invented.results(tmp_path, "before", seed=1)
    monkeypatch.setattr(invented, "RATES", {name: rate * 0.7 for name, rate in invented.RATES.items()})
    after = invented.results(tmp_path, "after", seed=2)
    assert not {"WORSE", "BETTER"} & set(verdicts(before, after).values())
    assert "The machine, by 5 cells of the peers: 0.70" in compare.render(before, after)


def test_a_gate_without_peers_is_compared_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invented, "RATES", {"write@tidegate": 1000.0})
    before, after = (invented.results(tmp_path, str(n), seed=n, factor=n) for n in (1, 2))
    assert "| write@tidegate * | 2.0" in compare.render(before, after)


def test_a_peer_that_lacks_a_round_is_no_measure(tmp_path: Path) -> None:
    before, after = (invented.results(tmp_path, str(n), seed=n) for n in (1, 2))
    after.add(Cell(3, "write", "aiohttp_asyncpg", "", 1.0, "it hung up"))
    names = compare.references(digest.digest(before), digest.digest(after))
    assert names == [
        "hello@raw_httptools",
        "hello@aiohttp_asyncpg",
        "latest@aiohttp_asyncpg",
        "latest@quick_one",
    ]


def test_too_few_rounds_tell_nothing(tmp_path: Path) -> None:
    before, after = (invented.results(tmp_path, str(n), rounds=3, factor=n) for n in (1, 2))
    assert verdicts(before, after)["write@tidegate"] == "too few rounds to tell"


def test_another_machine_is_said_to_be_one(tmp_path: Path) -> None:
    before, after = (invented.results(tmp_path, str(n)) for n in (1, 2))
    after.environment["cpu"] = "a slow one"
    text = compare.render(before, after)
    assert "**Not the same cpu:** a fast one before, a slow one now." in text


def test_cells_of_one_run_alone_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = invented.results(tmp_path, "before")
    kept = {name: rate for name, rate in invented.RATES.items() if "quick_one" not in name}
    monkeypatch.setattr(invented, "RATES", kept | {"hello@new_one": 5.0})
    text = compare.render(before, invented.results(tmp_path, "after"))
    assert "## Only before\n\n- latest@quick_one" in text
    assert "## Only now\n\n- hello@new_one" in text


def test_an_open_loop_of_an_older_run_has_no_histogram() -> None:
    text = b'{"planned":1,"rate":1,"requests":1,"p50_ms":1,"p90_ms":1,"p99_ms":1,"p999_ms":1,"max_ms":1,'
    found = msgspec.json.decode(text + b'"lag_p99_ms":0,"waited":0,"idle":0}', type=Open)
    assert found.histogram == {}
