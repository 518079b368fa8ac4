"""A canary: one and the same short cell, measured now and then. When it changes, the machine has.

What a cell found between two canaries of which one is off is in doubt, and the report says so.
"""

import statistics
from collections.abc import Callable, Sequence

from bench.results import Cell

# Share by which it may differ from the median of all.
OFF = 0.05
# How often it is asked again at once while it is off, before the run goes on all the same.
ATTEMPTS = 3
# Fewer are no norm.
_ENOUGH = 3


def rate(cell: Cell) -> float:
    """What it found; 0 if it is void."""
    return cell.figures.rate if cell.figures is not None else 0.0


def norm(canaries: Sequence[Cell]) -> float:
    """The median of what they found; 0 of none."""
    rates = [rate(each) for each in canaries if rate(each)]
    return statistics.median(rates) if rates else 0.0


def is_off(cell: Cell, canaries: Sequence[Cell]) -> bool:
    """Whether it differs too much from the others, as far as they can tell."""
    usual = norm(canaries)
    return len(canaries) >= _ENOUGH and abs(rate(cell) / usual - 1) > OFF if usual else False


def sing(ask: Callable[[], Cell], known: Sequence[Cell], say: Callable[[str], None]) -> list[Cell]:
    """Ask it, again while it is off; all that it said."""
    found: list[Cell] = []
    for _ in range(ATTEMPTS):
        found.append(ask())
        every = [*known, *found]
        if not is_off(found[-1], every):
            break
        say(f"the canary is off by {rate(found[-1]) / norm(every) - 1:+.0%}: the machine is noisy")
    return found


def doubtful(cells: Sequence[Cell], canaries: Sequence[Cell]) -> list[Cell]:
    """The cells whose canary, the last before or the first after, is off."""
    songs = sorted(canaries, key=lambda each: each.started)
    found = []
    for cell in cells:
        before = [each for each in songs if each.started <= cell.started][-1:]
        after = [each for each in songs if each.started > cell.started][:1]
        if any(is_off(each, songs) for each in (*before, *after)):
            found.append(cell)
    return found
