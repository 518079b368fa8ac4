"""No path takes more instructions unseen: counts are held to the record, and the record to its past."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from bench.micro import regression
from bench.micro.callgrind import CallgrindError
from bench.micro.instructions import counted
from bench.micro.paths import PATHS
from bench.micro.regression import Entry, Interpreter, Record

HERE = Interpreter("3.11.7", "GCC 12", dict.fromkeys(regression.LIBRARIES, "1.0"))
RECORD = Record(HERE, {name: Entry(1000 * n) for n, name in enumerate(PATHS, 1)})
EXACT = {name: float(entry.instructions) for name, entry in RECORD.paths.items()}


def verdicts(found: dict[str, float], *, same: bool = True) -> tuple[str, bool]:
    lines, grown = regression.compared(RECORD, found, same)
    return "\n".join(lines), grown


def test_what_takes_as_much_as_recorded_is_good() -> None:
    text, grown = verdicts({name: count * 1.029 for name, count in EXACT.items()})
    assert (text.count("good"), grown) == (len(PATHS), False)


def test_a_path_that_grew_by_more_than_three_percent_fails() -> None:
    text, grown = verdicts(EXACT | {"write": EXACT["write"] * 1.031})
    assert grown
    assert "+3.1%  GREW by more than 3%" in text
    assert text.count("good") == len(PATHS) - 1


def test_a_path_that_shrank_is_told_so_that_it_can_be_kept() -> None:
    text, grown = verdicts(EXACT | {"write": EXACT["write"] * 0.9})
    assert not grown
    assert "less than recorded" in text


def test_a_path_that_nobody_recorded_fails() -> None:
    lines, grown = regression.compared(Record(HERE, {}), {"write": 5.0}, True)
    assert grown
    assert "NOT RECORDED" in lines[0]


# -- other interpreters --------------------------------------------------------------------------


def test_another_build_moves_all_paths_and_one_of_them_is_found_beside_the_others() -> None:
    # What Debian's 3.11.2 takes of what pyenv's 3.11.7 does, as measured.
    factors = {
        "latest": 0.933,
        "latest-cold": 0.922,
        "write": 0.942,
        "write-cold": 0.915,
        "batch": 0.918,
        "page": 0.96,
    }
    found = {name: EXACT[name] * factors[name] for name in PATHS}
    assert verdicts(found, same=False)[1] is False
    found["batch"] *= 1.09
    text, grown = verdicts(found, same=False)
    assert grown
    assert "GREW by more than 6%" in text


def test_another_build_needs_paths_to_compare() -> None:
    with pytest.raises(CallgrindError, match="needs 3 paths"):
        verdicts({"write": 1.0}, same=False)


def test_builds_of_the_same_python_are_told_apart() -> None:
    assert regression.comparable(HERE, HERE)
    patch = msgspec.structs.replace(HERE, python="3.11.2", build="GCC 13")
    assert not regression.comparable(HERE, patch)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (msgspec.structs.replace(HERE, python="3.12.7"), "with Python 3.11, this is 3.12"),
        (
            msgspec.structs.replace(HERE, libraries=HERE.libraries | {"aiohttp": "2.0"}),
            "with aiohttp 1.0, this is 2.0",
        ),
    ],
)
def test_another_python_or_library_is_refused(other: Interpreter, complaint: str) -> None:
    with pytest.raises(CallgrindError, match=complaint):
        regression.comparable(HERE, other)


# -- the record ----------------------------------------------------------------------------------


def test_the_file_is_read_as_it_was_written() -> None:
    strange = Record(HERE, {"write": Entry(5, 'a "reason" \\ of \n two lines')})
    assert regression.read(regression.written(strange)) == strange


@pytest.mark.parametrize("text", ["paths = 3", "[paths.write]\ninstructions = 'many'", "not toml"])
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CallgrindError, match="cannot be read"):
        regression.read(text)


def raised(count: int, why: str) -> Record:
    return Record(HERE, RECORD.paths | {"write": Entry(count, why)})


@pytest.mark.parametrize(
    ("old", "new", "complaints"),
    [
        (raised(1000, ""), raised(1001, ""), 1),
        (raised(1000, "TLS"), raised(1001, "TLS"), 1),
        (raised(1000, "TLS"), raised(1001, "more headers"), 0),
        (raised(1000, "TLS"), raised(999, "TLS"), 0),
        (raised(1000, "TLS"), raised(1000, "TLS"), 0),
    ],
)
def test_a_figure_rises_only_with_a_reason_of_its_own(old: Record, new: Record, complaints: int) -> None:
    found = regression.unexplained(new, old)
    assert len(found) == complaints
    assert all("raised from 1,000 to 1,001" in each for each in found)


def test_the_first_record_needs_no_reason() -> None:
    assert regression.unexplained(RECORD, None) == []


def test_small_rises_do_not_add_up() -> None:
    record = RECORD
    for _ in range(10):
        record = regression.updated(record, HERE, {"write": EXACT["write"] * 1.02}, "")
    assert record == RECORD


def test_less_is_kept_and_more_needs_a_reason() -> None:
    found = {"write": EXACT["write"] * 0.8}
    less = regression.updated(RECORD, HERE, found, "")
    assert less.paths["write"].instructions == EXACT["write"] * 0.8
    more = {"write": EXACT["write"] * 1.5}
    with pytest.raises(CallgrindError, match=r"write grew from .*: say why, with --why"):
        regression.updated(RECORD, HERE, more, "")
    assert regression.updated(RECORD, HERE, more, "TLS").paths["write"].why == "TLS"


def test_another_interpreter_is_recorded_with_all_paths_or_not_at_all() -> None:
    other = msgspec.structs.replace(HERE, python="3.13.1")
    with pytest.raises(CallgrindError, match="record all paths together"):
        regression.updated(RECORD, other, {"write": 1.0}, "Python 3.13")
    found = {name: count * 1.01 for name, count in EXACT.items()}
    again = regression.updated(RECORD, other, found, "Python 3.13")
    assert again.interpreter == other
    assert {entry.why for entry in again.paths.values()} == {"Python 3.13"}


def test_the_record_before_is_that_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.micro.regression.ROOT", tmp_path)
    path = tmp_path / "instructions.toml"
    assert regression.before(path) is None

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.invalid")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for count in (1000, 2000):
        path.write_text(regression.written(raised(count, "")))
        git("add", ".")
        git("commit", "-m", "x")
    (tmp_path / "other").write_text("a commit that leaves the record alone")
    git("add", ".")
    git("commit", "-m", "x")
    # Nothing changed since: the last change is what is looked at.
    assert regression.before(path) == raised(1000, "")
    path.write_text(regression.written(raised(3000, "")))
    assert regression.before(path) == raised(2000, "")


def test_every_path_is_recorded() -> None:
    assert set(regression.read(regression.RECORD.read_text()).paths) == set(PATHS)


# -- counting ------------------------------------------------------------------------------------


@pytest.mark.system
def test_no_path_takes_more_instructions_than_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    code = regression.check(list(PATHS), jobs=2)
    said = capsys.readouterr()
    assert code == 0, said.out + said.err


@pytest.mark.system
def test_more_work_is_counted_and_fails_the_check() -> None:
    found = dict(counted(["latest", "latest-cold"], 2))
    assert found["latest-cold"] > 1.5 * found["latest"]
    _, grown = regression.compared(
        Record(regression.interpreter(), {"latest": Entry(round(found["latest"] / 1.05))}), found, True
    )
    assert grown


def test_without_valgrind_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("bench.micro.regression.comparable", lambda recorded, here: True)
    assert regression.check(["write"], 1) == 2
    assert "valgrind is not installed" in capsys.readouterr().err
