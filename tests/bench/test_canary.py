"""A machine that changes is noticed, and what was measured meanwhile is in doubt."""

from bench import canary
from bench.results import Cell, Figures


def song(rate: float, minute: int = 0, *, void: str = "") -> Cell:
    started = f"2026-11-21T08:{minute:02}:00+00:00"
    return Cell(0, "hello", "raw_httptools", started, 2.0, void, None if void else Figures(rate))


def test_a_steady_machine_is_asked_once() -> None:
    said: list[str] = []
    assert canary.sing(lambda: song(101.0), [song(100.0)] * 5, said.append) == [song(101.0)]
    assert said == []


def test_a_noisy_machine_is_asked_again_but_not_for_ever() -> None:
    rates = iter([80.0, 99.0])
    said: list[str] = []
    found = canary.sing(lambda: song(next(rates)), [song(100.0)] * 5, said.append)
    assert [canary.rate(each) for each in found] == [80.0, 99.0]
    assert said == ["the canary is off by -20%: the machine is noisy"]
    assert len(canary.sing(lambda: song(50.0), [song(100.0)] * 9, said.append)) == canary.ATTEMPTS


def test_the_first_songs_are_no_norm() -> None:
    assert not canary.is_off(song(50.0), [song(100.0), song(50.0)])


def test_a_void_canary_is_off() -> None:
    songs = [song(100.0, 1), song(100.0, 2), song(0.0, 3, void="it hung up")]
    assert canary.norm(songs) == 100.0
    assert canary.is_off(songs[2], songs)
    assert not canary.is_off(songs[0], songs)


def test_cells_beside_a_canary_that_is_off_are_in_doubt() -> None:
    songs = [song(100.0, 0), song(100.0, 10), song(80.0, 20), song(100.0, 30), song(100.0, 40)]
    cells = [
        Cell(1, "write", "tidegate", f"2026-11-21T08:{minute}:00+00:00", 5.0) for minute in (5, 15, 25, 35)
    ]
    assert [cell.started[14:16] for cell in canary.doubtful(cells, songs)] == ["15", "25"]
    assert canary.doubtful(cells, []) == []
