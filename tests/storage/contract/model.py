"""The log as its promises describe it, in plain dictionaries."""

from dataclasses import dataclass, field
from typing import Any

from storage.errors import KeyReused
from storage.models import Outcome, Value, Write

Series = tuple[str, str]


def kind(value: Value) -> tuple[str, Value]:
    """Two values are one when their kinds are equal: 1 and 1.0, not 1 and true, not 1 and "1"."""
    if isinstance(value, bool):
        return "boolean", value
    return ("text" if isinstance(value, str) else "number"), value


@dataclass
class Model:
    """What a log must hold and answer. The clock never steps back here."""

    stored: dict[Series, dict[int, tuple[int, Value]]] = field(default_factory=dict)
    devices: dict[str, tuple[int, int]] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[bytes, Outcome]] = field(default_factory=dict)
    head: int = 0
    floor: int = 0

    def append(self, write: Write) -> Outcome | type[KeyReused]:
        """Take in one write."""
        if write.idempotency is None:
            return self._append(write)
        key = write.idempotency.principal, write.idempotency.key
        if key in self.keys:
            digest, outcome = self.keys[key]
            return outcome if digest == write.idempotency.digest else KeyReused
        outcome = self._append(write)
        if not (write.strict and outcome.conflicts):
            self.keys[key] = write.idempotency.digest, outcome
        return outcome

    def _append(self, write: Write) -> Outcome:
        fresh: dict[Series, dict[int, tuple[int, Value]]] = {}
        head, duplicates, conflicts = self.head, 0, []
        for index, (device, metric, wanted, value) in enumerate(write.readings):
            known = {**self.stored.get((device, metric), {}), **fresh.get((device, metric), {})}
            ts = write.received if wanted is None else wanted
            while wanted is None and ts in known:
                ts += 1
            if ts not in known:
                head += 1
                fresh.setdefault((device, metric), {})[ts] = head, value
            elif kind(known[ts][1]) == kind(value):
                duplicates += 1
            else:
                conflicts.append(index)
        if conflicts and write.strict:
            return Outcome(0, duplicates, tuple(conflicts), self.head)
        accepted, self.head = head - self.head, head
        for series, rows in fresh.items():
            self.stored.setdefault(series, {}).update(rows)
            self.devices[series[0]] = write.received, head
        return Outcome(accepted, duplicates, tuple(conflicts), head)

    def delete_device(self, device: str, readings: bool) -> None:
        """Forget a device."""
        del self.devices[device]
        if readings:
            self.stored = {series: rows for series, rows in self.stored.items() if series[0] != device}

    def expire(self, oldest: int) -> None:
        """Retention."""
        for rows in self.stored.values():
            for ts in [ts for ts in rows if ts < oldest]:
                self.floor = max(self.floor, rows.pop(ts)[0])

    def rows(self) -> list[tuple[Any, ...]]:
        """As `Store.rows`, values decoded."""
        return sorted(
            (offset, device, metric, ts, value)
            for (device, metric), rows in self.stored.items()
            for ts, (offset, value) in rows.items()
        )
