"""Verification: a target is measured only after it has shown that it does what the contract says.

Each check asks a fresh server. What it finds wrong is Unverified, in words that say what was expected.
"""

import contextlib
import json
from collections.abc import Callable
from datetime import datetime
from http.client import HTTPException
from typing import Any

from msgspec import Struct

from bench import contract
from bench.client import Answer, Client

# Number of a batch that no load sends; before all others, since readings that come out of order cost more.
_APART = -1
# Writes of a check, the X-Request-ID they carry, and requests that a low limit lets through at once.
_WRITES, _ID, _BURST_MIN = 3, "bench-verify-1", 20


def _no_faults() -> list[str]:
    return []


def _nothing_pending() -> bool:
    return False


class Subject(Struct, frozen=True):
    """A target that is checked. `rows` counts those that are committed in its database.

    `faults`: what is wrong with the durability of its database; `pending`: whether something that was
    committed is not on the disk yet. `hello`: where it says hello, and how.
    """

    client: Client
    rows: Callable[[], int]
    url: str = ""
    faults: Callable[[], list[str]] = _no_faults
    pending: Callable[[], bool] = _nothing_pending
    hello: contract.Hello = contract.Hello()


class Unverified(Exception):
    """A target does not keep the contract."""


def answers(subject: Subject) -> None:
    """Anything at all."""
    subject.client.ask("GET", contract.HELLO, token="")


def hello(subject: Subject) -> None:
    """GET /hello: 200 with {"ok": true}, or as the target names it, on a connection that stays open."""
    client, wanted = subject.client, subject.hello
    for _ in range(3):
        answer = client.ask("GET", wanted.path, token="")
        _expect(answer, 200, f"for GET {wanted.path}")
        if wanted.body and answer.body != wanted.body.encode():
            raise Unverified(f"expected the body {wanted.body} to the byte: {answer}")
        if not wanted.body and _json(answer) != {"ok": True}:
            raise Unverified(f'expected the body {{"ok": true}}: {answer}')
        kind = answer.headers.get("content-type", "")
        if kind.partition(";")[0].strip() != "application/json":
            raise Unverified(f"expected Content-Type: application/json, found {kind!r}")
    if client.reopened:
        raise Unverified("expected a connection that stays open (keep-alive)")


def write(subject: Subject) -> None:
    """POST of one reading: it is in the database when 200 comes; bad tokens and bad values store nothing."""
    client = subject.client
    before, pending = subject.rows(), 0
    for number in range(1, _WRITES + 1):
        answer = client.ask("POST", contract.READINGS, contract.READING, headers={"X-Request-ID": _ID})
        pending += subject.pending()
        _accepted(answer, 1)
        _named(answer)
        if (found := answer.headers["x-request-id"]) != _ID:
            raise Unverified(f"expected the X-Request-ID {_ID} that was sent, found {found}")
        _stored(subject, before + number, "after a write was answered")
    if faults := subject.faults():
        raise Unverified(f"expected a durable database, found {', '.join(faults)}")
    # One may be what the database writes for itself.
    if pending > 1:
        raise Unverified("expected each commit on the disk when its write is answered (synchronous_commit)")
    _guarded(client, "POST", contract.READINGS, contract.READING)
    reader = contract.token(scopes="readings:read")
    _expect(
        client.ask("POST", contract.READINGS, contract.READING, token=reader), 403, "without readings:write"
    )
    _expect(client.ask("POST", contract.FOREIGN, contract.READING), 403, "for a device that is not granted")
    for why, body in contract.bad_readings().items():
        _expect(client.ask("POST", contract.READINGS, body), 422, f"for {why}")
    _stored(subject, before + _WRITES, "after writes that were refused")


def limited(subject: Subject) -> None:
    """Under LOW_LIMIT a principal is refused with 429 and Retry-After, and nobody else is."""
    client, accepted = subject.client, 0
    before, token = subject.rows(), contract.token(subject="limited")
    for _ in range(contract.LOW_LIMIT):
        answer = client.ask("POST", contract.READINGS, contract.READING, token=token)
        if answer.status != 200:
            break
        accepted += 1
    _expect(answer, 429, f"within {contract.LOW_LIMIT} requests under a limit of as many a minute")
    if accepted < _BURST_MIN:
        raise Unverified(f"expected {_BURST_MIN} requests before the limit, found {accepted}")
    if not answer.headers.get("retry-after", "").isdigit():
        raise Unverified(f"expected Retry-After in seconds beside 429, found {sorted(answer.headers)}")
    _stored(subject, before + accepted, "after a write that was over the limit")
    other = contract.token(subject="another")
    _expect(
        client.ask("POST", contract.READINGS, contract.READING, token=other), 200, "for another principal"
    )


def batch(subject: Subject) -> None:
    """POST of 1,000 readings: all of them stored; sent again all duplicates; one bad item is named."""
    client = subject.client
    before = subject.rows()
    body = contract.batch(_APART)
    _accepted(client.ask("POST", contract.BATCHES, body), contract.BATCH)
    _stored(subject, before + contract.BATCH, "after a batch was answered")
    again = client.ask("POST", contract.BATCHES, body)
    _expect(again, 200, "for a batch that was sent before")
    if (found := _json(again).get("duplicates")) != contract.BATCH:
        raise Unverified(f"expected {contract.BATCH} duplicates of a batch sent again, found {found}")
    mixed = b"[" + contract.BAD_READING + b", " + contract.READING + b"]"
    answer = client.ask("POST", contract.BATCHES, mixed)
    _accepted(answer, 1)
    pointers = [fault["pointer"] for fault in _json(answer)["rejected"]]
    if len(pointers) != 1 or not pointers[0].startswith("/0"):
        raise Unverified(f"expected the first item to be rejected, found {pointers}")
    _stored(subject, before + contract.BATCH + 1, "after a batch with one bad item")
    # A short one: servers may hang up on a long one before it has come.
    _guarded(client, "POST", contract.BATCHES, mixed)


def latest(subject: Subject) -> None:
    """GET of the latest values: those that were written last, at once, and for good tokens only."""
    client = subject.client
    answer = client.ask("POST", contract.READINGS, contract.latest_readings())
    _accepted(answer, len(contract.LATEST_METRICS))
    for value in (22.5, 23.5, contract.LATEST_METRICS["temperature"]):
        body = json.dumps({"metric": "temperature", "value": value}).encode()
        _accepted(client.ask("POST", contract.READINGS, body), 1)
        answer = client.ask("GET", contract.LATEST)
        _expect(answer, 200, "for GET latest")
        _named(answer, contract.LATEST_HEADERS)
        metrics = _json(answer)["metrics"]
        found = {name: metric["value"] for name, metric in metrics.items()}
        if found != {**contract.LATEST_METRICS, "temperature": value}:
            raise Unverified(f"expected the temperature {value} right after it was written, found {found}")
    known = {"If-None-Match": answer.headers["etag"]}
    _expect(client.ask("GET", contract.LATEST, headers=known), 304, "for an ETag that is still good")
    _guarded(client, "GET", contract.LATEST)


def many(subject: Subject) -> None:
    """As `latest`; then many devices are written, each with a value of its own, and asked for it."""
    latest(subject)
    client = subject.client
    for number in range(contract.MANY):
        # Not all by one principal, whose limit may be low.
        token = contract.token(subject=f"many-{number // (_BURST_MIN // 2)}")
        path, body = _numbered(contract.MANY_READINGS, number), contract.latest_readings(number)
        _accepted(client.ask("POST", path, body, token=token), len(contract.LATEST_METRICS))
        answer = client.ask("GET", _numbered(contract.MANY_LATEST, number), token=token)
        _expect(answer, 200, f"for GET latest of device {number}")
        found = {name: metric["value"] for name, metric in _json(answer)["metrics"].items()}
        if found != contract.latest_values(number):
            raise Unverified(f"expected the values of device {number} of many, found {found}")


def _numbered(path: str, number: int) -> str:
    return path.replace("@", str(number))


def page(subject: Subject) -> None:
    """GET of a page: the readings of the range asked for, in order, and where the next page begins."""
    client = subject.client
    metric, begin = "temperature", contract.EPOCH
    _fill(client)
    following = _page(client, contract.PAGE_QUERY, contract.PAGE_FROM, contract.PAGE)
    if following is None:
        raise Unverified("expected `next`, since the range holds more than a page")
    _page(client, f"{contract.PAGE_QUERY}&cursor={following}", contract.PAGE_FROM + 100, contract.PAGE)
    other = f"{contract.PAGES}?metric={metric}&from={begin + 3}&to={begin + 10}&limit=100"
    if _page(client, other, 3, 7) is not None:
        raise Unverified("expected no `next` at the end of a range")
    _guarded(client, "GET", contract.PAGE_QUERY)


def _fill(client: Client) -> None:
    """Write what pages are asked from: at once where the target takes arrays, else one by one."""
    readings = [contract.page_reading(n) for n in range(contract.PAGE_READINGS)]
    with contextlib.suppress(OSError, HTTPException):
        answer = client.ask("POST", contract.PAGES, b"[" + b",".join(readings) + b"]")
        if answer.status == 200:
            _accepted(answer, len(readings))
            return
    client.close()
    for n, reading in enumerate(readings):
        # Not all by one principal, whose limit may be low.
        token = contract.token(subject=f"filler-{n // _BURST_MIN}")
        _accepted(client.ask("POST", contract.PAGES, reading, token=token), 1)


def _page(client: Client, path: str, first: int, count: int) -> str | None:
    """Check the items of a page, `count` from number `first` on; where the next one begins."""
    answer = client.ask("GET", path)
    _expect(answer, 200, f"for GET {path}")
    _named(answer)
    items = _json(answer)["items"]
    if len(items) != count:
        raise Unverified(f"expected {count} items of {path}, found {len(items)}")
    for n, item in enumerate(items, first):
        if set(item) != {"offset", "metric", "ts", "value"}:
            raise Unverified(f"expected offset, metric, ts and value in an item, found {item}")
        microseconds = round(datetime.fromisoformat(item["ts"]).timestamp() * 1_000_000)
        wanted = (contract.EPOCH + n) * 1000, contract.page_value(n), "temperature"
        if (microseconds, item["value"], item["metric"]) != wanted:
            raise Unverified(f"expected reading number {n} of the range, found {item}")
    following: str | None = _json(answer)["next"]
    return following


def _guarded(client: Client, method: str, path: str, body: bytes = b"") -> None:
    """Without a good token the answer is 401."""
    for name, token in contract.bad_tokens().items():
        _expect(client.ask(method, path, body, token=token), 401, f"for {name}")


def _named(answer: Answer, wanted: tuple[str, ...] = ()) -> None:
    """It has the headers of the contract."""
    missing = [name for name in (*contract.HEADERS, *wanted) if name not in answer.headers]
    if missing:
        raise Unverified(
            f"expected the headers {', '.join(missing)}, found {', '.join(sorted(answer.headers))}"
        )


def _accepted(answer: Answer, count: int) -> None:
    _expect(answer, 200, "for a good write")
    if (found := _json(answer).get("accepted")) != count:
        raise Unverified(f"expected {count} accepted, found {found}: {answer}")


def _stored(subject: Subject, wanted: int, when: str) -> None:
    if (found := subject.rows()) != wanted:
        raise Unverified(f"expected {wanted} rows in the database {when}, found {found}")


def _expect(answer: Answer, status: int, why: str) -> None:
    if answer.status != status:
        raise Unverified(f"expected {status} {why}: {answer}")


def _json(answer: Answer) -> dict[str, Any]:
    try:
        return dict(answer.json)
    except (ValueError, TypeError) as error:
        raise Unverified(f"expected a JSON object: {answer}") from error
