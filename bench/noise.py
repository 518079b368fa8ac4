"""Is a difference more than noise? Statistics of a few rounds, pure and seeded.

Speeds differ by factors, so everything is done with logarithms. Two tests, both without any assumption about
how rounds are distributed: the exact permutation test of the difference of means (Fisher 1935; every split of
the rounds into two groups), and the percentile bootstrap of the factor (Efron 1979). Rounds are few, so the
least p that is possible is said too: with three rounds each nothing can be shown at 5 %.
"""

import itertools
import math
import random
import statistics
from collections.abc import Sequence

from msgspec import Struct

LEVEL = 0.05
RESAMPLES = 4_000
# Beyond these splits they are drawn, not all tried.
SPLITS = 20_000


class Change(Struct, frozen=True):
    """From some values to others: the factor between their geometric means, its 95 % interval, p.

    `least_p`: what p can be at best with so few rounds.
    """

    factor: float
    low: float
    high: float
    p: float
    least_p: float

    @property
    def shown(self) -> bool:
        """Whether it is more than noise: both tests say so."""
        return self.p <= LEVEL and not self.low <= 1.0 <= self.high

    @property
    def possible(self) -> bool:
        """Whether so many rounds could show anything at all."""
        return self.least_p <= LEVEL


def change(before: Sequence[float], after: Sequence[float], seed: int = 1) -> Change | None:
    """What changed; None unless there are positive values on both sides."""
    if not before or not after or min(*before, *after) <= 0:
        return None
    old, new = [math.log(each) for each in before], [math.log(each) for each in after]
    found = statistics.fmean(new) - statistics.fmean(old)
    # Not for secrets: the same rounds have to give the same answer.
    draw = random.Random(seed)
    low, high = bootstrap(old, new, draw)
    p, least = permutation(old, new, draw)
    return Change(math.exp(found), math.exp(low), math.exp(high), p, least)


def bootstrap(old: Sequence[float], new: Sequence[float], draw: random.Random) -> tuple[float, float]:
    """The 95 % interval of the difference of the means."""
    found = sorted(
        statistics.fmean(draw.choices(new, k=len(new))) - statistics.fmean(draw.choices(old, k=len(old)))
        for _ in range(RESAMPLES)
    )
    edge = int(LEVEL / 2 * RESAMPLES)
    return found[edge], found[-edge - 1]


def permutation(old: Sequence[float], new: Sequence[float], draw: random.Random) -> tuple[float, float]:
    """The two-sided p of the difference of the means, and the least that is possible."""
    every, count = [*old, *new], len(old)
    total, observed = math.fsum(every), abs(statistics.fmean(new) - statistics.fmean(old))

    def difference(chosen: Sequence[float]) -> float:
        first = math.fsum(chosen)
        return abs((total - first) / (len(every) - count) - first / count)

    splits = math.comb(len(every), count)
    # Sums in another order differ in the last digit.
    limit = observed - 1e-12
    if splits <= SPLITS:
        among = itertools.combinations(every, count)
        p = sum(difference(chosen) >= limit for chosen in among) / splits
    else:
        drawn = sum(difference(draw.sample(every, count)) >= limit for _ in range(SPLITS))
        p = (drawn + 1) / (SPLITS + 1)
    return p, (2 if len(old) == len(new) else 1) / splits
