"""What is asked of every target that keeps readings: its paths, its token, its bodies."""

import json
import time

import jwt
from msgspec import Struct

SECRET = "bench-secret-of-at-least-32-bytes-0123456789"
ISSUER = AUDIENCE = "tidegate"
SUBJECT = "bench"
SCOPES = "readings:write readings:read"
TOKEN_SECONDS = 4 * 3600
# Requests per minute of a principal: high, not off; and in the check that they are counted at all.
LIMIT, LOW_LIMIT = 100_000_000, 600

HELLO = "/hello"
DEVICE = "bench.one"
BATCH_DEVICE = "bench.batch"
PAGE_DEVICE = "bench.page"
READINGS = f"/v1/devices/{DEVICE}/readings"
BATCHES = f"/v1/devices/{BATCH_DEVICE}/readings"
LATEST = f"/v1/devices/{DEVICE}/latest"
# Devices that are asked in turn; @ stands for the number.
MANY = 1_000
MANY_DEVICE = "bench.many@"
MANY_READINGS, MANY_LATEST = f"/v1/devices/{MANY_DEVICE}/readings", f"/v1/devices/{MANY_DEVICE}/latest"

BATCH = 1_000
PAGE = 100
# Milliseconds since 1970 from which readings of batches count.
EPOCH = 1_700_000_000_000
PAGES = f"/v1/devices/{PAGE_DEVICE}/readings"
# What pages are asked from, and the range that is asked for: more than one page.
PAGE_READINGS, PAGE_FROM, PAGE_TO = 500, 100, 450
PAGE_QUERY = f"{PAGES}?metric=temperature&from={EPOCH + PAGE_FROM}&to={EPOCH + PAGE_TO}&limit={PAGE}"

READING = b'{"metric": "temperature", "value": 21.5}'
# Well-formed, but a value is a number, a boolean or a text.
BAD_READING = b'{"metric": "temperature", "value": []}'
# Of a device that the token does not grant.
FOREIGN = "/v1/devices/other.one/readings"
# What answers to good tokens carry; those of latest beside them.
HEADERS = ("date", "x-request-id", "ratelimit", "ratelimit-policy")
LATEST_HEADERS = ("etag", "cache-control", "vary")
# A scenario's own token that nobody may accept.
BAD_TOKEN = "*bad"
# What a WebSocket says; it must come back as it is.
ECHO, ECHO_TEXT = "/echo", b'{"type":"echo","id":1,"values":[21.5,40,false]}'
# What a GET of the latest values has to show.
LATEST_METRICS = {"temperature": 21.5, "humidity": 40, "door_open": False}


class Hello(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a target answers a tiny JSON without checks. `body`: to the byte; "" is {"ok": true}."""

    path: str = HELLO
    body: str = ""


def token(seconds: int = TOKEN_SECONDS, subject: str = SUBJECT, scopes: str = SCOPES) -> str:
    """A token of the bench's device, for every target; a negative lifetime is over."""
    return jwt.encode({**_claims(seconds), "sub": subject, "scope": scopes}, SECRET, "HS256")


def bad_tokens() -> dict[str, str]:
    """Tokens that nobody may accept, by what is wrong; "" is none."""
    return {
        "no token": "",
        "a token with a wrong signature": forged_token(),
        "an expired token": token(-3600),
        "an unsigned token": jwt.encode(_claims(TOKEN_SECONDS), "", "none"),
    }


def forged_token() -> str:
    """A token whose signature is wrong in one place."""
    good = token()
    place = good.rindex(".") + 10
    other = "A" if good[place] != "A" else "B"
    return good[:place] + other + good[place + 1 :]


def _claims(seconds: int) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": SUBJECT,
        "iat": min(now, now + seconds),
        "exp": now + seconds,
        "jti": SUBJECT,
        "scope": SCOPES,
        "devices": ["bench.>"],
    }


def batch(number: int, size: int = BATCH) -> bytes:
    """Batch number `number`: readings of ten metrics, none of which is in another batch."""
    start = EPOCH + number * size
    return json.dumps(
        [{"metric": f"m{n % 10}", "ts": start + n, "value": 20 + n / 100} for n in range(size)]
    ).encode()


def page_value(number: int) -> float:
    """The value of a reading that pages are asked from."""
    return 20.5 + number / 128


def page_reading(number: int) -> bytes:
    """Reading `number` of those that pages are asked from: one a millisecond, more than a page holds."""
    return json.dumps({"metric": "temperature", "ts": EPOCH + number, "value": page_value(number)}).encode()


def bad_readings() -> dict[str, bytes]:
    """Readings that are well-formed, but nobody may accept, by what is wrong."""
    reading = {"metric": "temperature", "value": 21.5}
    bad = {
        "a metric with a blank": {**reading, "metric": "a b"},
        "a number beyond 2**53": {**reading, "value": 2**53 + 2},
        "a text of 1,025 characters": {**reading, "value": "x" * 1025},
        "an unknown field": {**reading, "unit": "K"},
        "a time before 1970": {**reading, "ts": -1},
        "no value": {"metric": "temperature"},
    }
    return {"a value that is an array": BAD_READING} | {
        why: json.dumps(each).encode() for why, each in bad.items()
    }


def latest_readings(number: int = 0) -> bytes:
    """The readings that the latest values are asked from; `number`: of a device."""
    return json.dumps({"values": latest_values(number)}).encode()


def latest_values(number: int) -> dict[str, float]:
    """The latest values of the device with this number."""
    return {**LATEST_METRICS, "humidity": LATEST_METRICS["humidity"] + number}


def request(method: str, target: str, bearer: str, body: bytes = b"", headers: str = "") -> bytes:
    """A request as wrk sends it; `headers`: further lines, each with its line break."""
    lines = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
    if bearer:
        lines += f"Authorization: Bearer {bearer}\r\n"
    lines += headers
    if body:
        lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return lines.encode() + b"\r\n" + body
