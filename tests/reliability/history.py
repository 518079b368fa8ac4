"""What was sent and answered, what is stored, and where the two contradict each other."""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct


class Stored(Struct, frozen=True):
    """A reading of the log as the gate gives it."""

    offset: int
    device: str
    metric: str
    ts: int
    value: int


class Batch(Struct):
    """Readings of one request: a value that no other reading has per time. `acked`: answered with 200."""

    device: str
    values: dict[int, int]
    acked: bool = False


def faults(batches: Iterable[Batch], log: list[Stored], metric: str = "m") -> list[str]:
    """Every contradiction between what was promised and what is stored; [] if all is well.

    Batches of one device stand in the order in which they were sent, one after the other was answered.
    """
    found = []
    if [reading.offset for reading in log] != list(range(1, len(log) + 1)):
        found.append("the offsets are not contiguous from 1")
    for (device, ts), count in Counter((reading.device, reading.ts) for reading in log).items():
        if count > 1:
            found.append(f"{device} {ts} is stored {count} times")
    for value, count in Counter(reading.value for reading in log).items():
        if count > 1:
            found.append(f"the value {value} is stored {count} times")
    stored = {(reading.device, reading.ts): reading for reading in log}
    newest: dict[str, int] = {}
    sent: set[tuple[str, int]] = set()
    for batch in batches:
        there = [stored.get((batch.device, ts)) for ts in batch.values]
        sent.update((batch.device, ts) for ts in batch.values)
        missing = there.count(None)
        if missing and (batch.acked or missing < len(there)):
            found.append(f"{missing} of {len(there)} are missing of {batch}")
        for (ts, value), reading in zip(batch.values.items(), there, strict=True):
            if reading is None:
                continue
            if (reading.value, reading.metric) != (value, metric):
                found.append(f"{reading} should have the value {value}")
            if reading.offset <= newest.get(batch.device, 0):
                found.append(f"{reading} stands before what was stored earlier")
            newest[batch.device] = reading.offset
            assert ts == reading.ts
    found += [f"{reading} was never sent" for key, reading in stored.items() if key not in sent]
    return found
