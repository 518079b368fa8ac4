"""What is asked of every target that keeps readings: its paths, its token, its bodies."""

import json
import time

import jwt

SECRET = "bench-secret-of-at-least-32-bytes-0123456789"
ISSUER = AUDIENCE = "tidegate"
SUBJECT = "bench"
SCOPES = "readings:write readings:read"
TOKEN_SECONDS = 4 * 3600

DEVICE = "bench.one"
BATCH_DEVICE = "bench.batch"
PAGE_DEVICE = "bench.page"
READINGS = f"/v1/devices/{DEVICE}/readings"
BATCHES = f"/v1/devices/{BATCH_DEVICE}/readings"
LATEST = f"/v1/devices/{DEVICE}/latest"

BATCH = 1_000
PAGE = 100
# Milliseconds since 1970 from which readings of batches count.
EPOCH = 1_700_000_000_000
PAGES = f"/v1/devices/{PAGE_DEVICE}/readings"
PAGE_QUERY = f"{PAGES}?metric=temperature&from={EPOCH + 200}&to={EPOCH + 900}&limit={PAGE}"

READING = b'{"metric": "temperature", "value": 21.5}'
# Well-formed, but a value is a number, a boolean or a text.
BAD_READING = b'{"metric": "temperature", "value": []}'
# What a GET of the latest values has to show.
LATEST_METRICS = {"temperature": 21.5, "humidity": 40, "door_open": False}


def token() -> str:
    """A token of the bench's device, for every target."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": SUBJECT,
        "iat": now,
        "exp": now + TOKEN_SECONDS,
        "jti": SUBJECT,
        "scope": SCOPES,
        "devices": ["bench.>"],
    }
    return jwt.encode(claims, SECRET, "HS256")


def batch(number: int, size: int = BATCH) -> bytes:
    """Batch number `number`: readings of ten metrics, none of which is in another batch."""
    start = EPOCH + number * size
    return json.dumps(
        [{"metric": f"m{n % 10}", "ts": start + n, "value": 20 + n / 100} for n in range(size)]
    ).encode()


def page_readings() -> bytes:
    """The readings that a page is asked from: one a millisecond, more than the page and its range hold."""
    return json.dumps(
        [{"metric": "temperature", "ts": EPOCH + n, "value": 20 + n / 100} for n in range(BATCH)]
    ).encode()


def latest_readings() -> bytes:
    """The readings that the latest values are asked from."""
    return json.dumps({"values": LATEST_METRICS}).encode()


def request(method: str, target: str, bearer: str, body: bytes = b"", headers: str = "") -> bytes:
    """A request as wrk sends it; `headers`: further lines, each with its line break."""
    lines = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
    if bearer:
        lines += f"Authorization: Bearer {bearer}\r\n"
    lines += headers
    if body:
        lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return lines.encode() + b"\r\n" + body
