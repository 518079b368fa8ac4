"""Latency against offered load: the open loop at fixed rates, the same for all targets.

A target is asked at each rate of the table that it can reach, so that two curves can be read at one load.
"""

from collections.abc import Callable

from bench.load.open_loop import Open

# Requests per second, up to what the open loop's client keeps to by itself on a slow core.
RATES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
# Of the own maximum, the most that is asked for: from there on the queue only grows.
SHARE = 0.9
# A step lasts this share of a closed measurement, but at least a second.
STEP = 1 / 3


def rates(maximum: float) -> list[int]:
    """The rates that a target with this maximum is asked at."""
    return [rate for rate in RATES if rate <= SHARE * maximum]


def step(seconds: int) -> float:
    """Seconds of one rate, in a run whose closed measurements last `seconds`."""
    return max(1.0, seconds * STEP)


def measure(run: Callable[[float, float], Open], maximum: float, seconds: int) -> list[Open]:
    """A curve, slow rates first, so that a collapse spoils no other; `run` loads at a rate for so long."""
    return [run(rate, step(seconds)) for rate in rates(maximum)]
