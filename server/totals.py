"""The figures of several processes as one: sums that do not fall when a process ends."""

import operator
from collections.abc import Callable, Iterable
from enum import Enum

from msgspec import Struct

WORKER = "worker"


class Merge(Enum):
    """What becomes of a figure that several workers have: their sum, the greatest, the least, or one each,
    labelled.
    """

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    WORKER = "worker"


class Sample(Struct, frozen=True, array_like=True, gc=False):
    """One value, as Prometheus has it."""

    name: str
    labels: dict[str, str]
    value: float


class Family(Struct, frozen=True, array_like=True):
    """The values under one name. `kind`: counter, gauge, histogram."""

    name: str
    kind: str
    help: str
    merge: Merge
    samples: list[Sample]

    @property
    def lasting(self) -> bool:
        """Whether what a process has counted still counts when it has ended."""
        return self.kind != "gauge" and self.merge is Merge.SUM


_MERGES: dict[Merge, Callable[[float, float], float]] = {
    Merge.SUM: operator.add,
    Merge.MAX: max,
    Merge.MIN: min,
    # Labelled they are alone, but for the one before in the same slot, which is not asked for them.
    Merge.WORKER: max,
}


class Totals:
    """Adds up the figures of processes."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(self, families: Iterable[Family], worker: str = "") -> None:
        """Add those of one process. `worker`: what labels those of its own, "" leaves them out."""
        for family in families:
            each = family.merge is Merge.WORKER
            if each and not worker:
                continue
            self._families.setdefault(family.name, family)
            values = self._values.setdefault(family.name, {})
            label = ((WORKER, worker),) if each else ()
            for sample in family.samples:
                key = sample.name, (*sample.labels.items(), *label)
                values[key] = (
                    _MERGES[family.merge](values[key], sample.value) if key in values else sample.value
                )

    def families(self) -> list[Family]:
        """The figures of all."""
        return [
            Family(
                family.name,
                family.kind,
                family.help,
                # They carry their labels already.
                Merge.SUM if family.merge is Merge.WORKER else family.merge,
                [
                    Sample(name, dict(labels), value)
                    for (name, labels), value in self._values[family.name].items()
                ],
            )
            for family in self._families.values()
        ]
