"""Statistics of a few measurements: medians, spreads, ratios within rounds. Pure."""

import statistics
from collections.abc import Mapping, Sequence

from msgspec import Struct


class Spread(Struct, frozen=True):
    """The median of some values, the least and the greatest, and how many they are."""

    median: float
    least: float
    most: float
    count: int

    @property
    def width(self) -> float:
        """How far apart the least and the greatest are, as a share of the median."""
        return (self.most - self.least) / self.median if self.median else 0.0


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of `values`; None of none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours by theirs, each within its round (rounds that lack one of them are left out).

    Both were measured within minutes then, in the machine's mood of these minutes.
    """
    return [ours[number] / theirs[number] for number in sorted(ours) if theirs.get(number)]
