"""The bodies of answers, as objects that any JSON encoder takes, and the cache of latest values."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

# Latest values are read from the database each time.
UNCACHED = os.environ.get("BENCH_UNCACHED") == "1"


class Written(NamedTuple):
    """What became of readings: how many were stored, and the last row's id (0 if none)."""

    count: int
    last: int


class Latest:
    """Per device the latest values as they were read last, until something is written to it."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._writes: dict[str, int] = {}

    def get(self, device: str) -> dict[str, Any] | None:
        """What is known."""
        return self._known.get(device)

    def writes(self, device: str) -> int:
        """How often it was written; what is read before another write is not kept."""
        return self._writes.get(device, 0)

    def keep(self, device: str, writes: int, body: dict[str, Any]) -> None:
        """Keep what was read when `writes` were done."""
        if self.writes(device) == writes and not UNCACHED:
            self._known[device] = body

    def forget(self, device: str) -> None:
        """It was written."""
        self._writes[device] = self.writes(device) + 1
        self._known.pop(device, None)


def written(rows: int, stored: Written, rejected: list[dict[str, str]]) -> dict[str, Any]:
    """Of a write of `rows` rows."""
    return {
        "accepted": stored.count,
        "duplicates": rows - stored.count,
        "rejected_count": len(rejected),
        "rejected": rejected[:100],
        "position": str(stored.last),
    }


def latest(device: str, rows: Iterable[tuple[str, int, int, Any]]) -> dict[str, Any]:
    """Of rows of metric, microseconds, id and value."""
    metrics = {
        metric: {"ts": rfc3339(ts), "value": value, "offset": offset} for metric, ts, offset, value in rows
    }
    position = max((each["offset"] for each in metrics.values()), default=0)
    return {"device": device, "metrics": metrics, "position": str(position)}


def etag(body: dict[str, Any]) -> str:
    """Of latest values."""
    return f'W/"{body["position"]}"'


def page(metric: str, limit: int, rows: list[tuple[int, int, Any]]) -> dict[str, Any]:
    """Of rows of id, microseconds and value: up to `limit`, and one more if there are more."""
    items = [
        {"offset": offset, "metric": metric, "ts": rfc3339(ts), "value": value}
        for offset, ts, value in rows[:limit]
    ]
    return {"items": items, "next": str(rows[limit][1]) if len(rows) > limit else None}


def link(url: str, body: dict[str, Any]) -> dict[str, str]:
    """The header that names the next page of `url`, which may have a cursor already."""
    if body["next"] is None:
        return {}
    base = "&".join(part for part in url.split("&") if not part.startswith("cursor="))
    return {"Link": f'<{base}&cursor={body["next"]}>; rel="next"'}


def rfc3339(microseconds: int) -> str:
    """In UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat().replace("+00:00", "Z")
