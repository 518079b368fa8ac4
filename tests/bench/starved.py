"""Real servers on busy cores: one that is starved may answer too late for itself, and that is no finding."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 3


def first(settled: Callable[[T], bool], take: Callable[[], T]) -> T:
    """What is taken, anew until it settles something, but not for ever."""
    found = take()
    for _ in range(TRIES - 1):
        if settled(found):
            break
        found = take()
    return found
