"""Load on a gate for people who use Locust: devices that write, readers, followers over WebSocket and SSE.

    TIDEGATE_JWT_SECRET=... locust -f bench/locust/locustfile.py --host http://127.0.0.1:8080

Users are weighted: ten devices and two readers for each follower of a kind; name classes on the command line
for others. A device writes its clock as the value, so a follower knows how old a reading is: `deliver` is the
time from before the write until it arrived, in one Locust process, or in many on machines with one clock.

Locust is a closed loop on greenlets: it finds what breaks, and shows a mixed load. How fast a gate is at most
it cannot tell; scripts/bench does.

Settings (environment): TIDEGATE_JWT_SECRET (the gate's) or BENCH_TOKEN (a token with readings:write and
readings:read for locust.>), BENCH_DEVICES (100, whose names users share), BENCH_WAIT (1: seconds between a
user's requests).
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import websocket
from locust import HttpUser, User, between, events, task

DEVICES = int(os.environ.get("BENCH_DEVICES", "100"))
WAIT = float(os.environ.get("BENCH_WAIT", "1"))
METRIC = "sent"
PATTERN = "locust.>"
# Seconds without anything after which a stream is called broken: positions and pings come more often.
SILENCE = 40.0
_RECEIVE = 64 * 1024
TOKEN_SECONDS = 24 * 3600


class Refused(Exception):
    """A stream was not opened, or ended."""


def token() -> str:
    """The token that was given, or one of our own making; RuntimeError without either."""
    if given := os.environ.get("BENCH_TOKEN"):
        return given
    secret = os.environ.get("TIDEGATE_JWT_SECRET")
    if not secret:
        raise RuntimeError("set TIDEGATE_JWT_SECRET to the gate's, or BENCH_TOKEN to a token of it")
    now = int(time.time())
    claims = {
        "iss": os.environ.get("TIDEGATE_JWT_ISSUER", "tidegate"),
        "aud": os.environ.get("TIDEGATE_JWT_AUDIENCE", "tidegate"),
        "sub": "locust",
        "iat": now,
        "exp": now + TOKEN_SECONDS,
        "jti": "locust",
        "scope": "readings:write readings:read",
        "devices": [PATTERN],
    }
    return jwt.encode(claims, secret, "HS256")


TOKEN = token()
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def device() -> str:
    """Any of the devices."""
    # Not for secrets.
    return f"locust.d{random.randrange(DEVICES)}"


class Device(HttpUser):
    """Writes: mostly one reading, now and then what it has kept for a while."""

    weight = 10
    wait_time = between(WAIT / 2, WAIT * 3 / 2)

    @task(20)
    def reading(self) -> None:
        """One reading, whose value is the time it was sent at."""
        body = {"metric": METRIC, "value": time.time()}
        self._write("POST reading", body, 1)

    @task(1)
    def batch(self) -> None:
        """A hundred readings of the last seconds."""
        now = int(time.time() * 1000)
        body = [{"metric": f"m{n % 10}", "ts": now - n, "value": n / 8} for n in range(100)]
        self._write("POST 100 readings", body, len(body))

    def _write(self, name: str, body: object, count: int) -> None:
        path = f"/v1/devices/{device()}/readings"
        with self.client.post(path, json=body, headers=HEADERS, name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"expected 200, got {answer.status_code}: {answer.text[:200]}")
                return
            stored = answer.json()
            # A time that somebody else has used too is a conflict or a duplicate, which is no fault.
            if stored["accepted"] + stored["duplicates"] + stored["rejected_count"] != count:
                answer.failure(f"expected {count} readings in the answer, got {answer.text[:200]}")


class Reader(HttpUser):
    """Looks: the newest values, a page of a series."""

    weight = 2
    wait_time = between(WAIT / 2, WAIT * 3 / 2)

    @task(5)
    def latest(self) -> None:
        """The newest values of a device; 404 as long as nobody has written to it."""
        self._get("GET latest", f"/v1/devices/{device()}/latest", "metrics")

    @task(1)
    def page(self) -> None:
        """The first page of a series."""
        self._get("GET page", f"/v1/devices/{device()}/readings?metric={METRIC}", "items")

    def _get(self, name: str, path: str, wanted: str) -> None:
        with self.client.get(path, headers=HEADERS, name=name, catch_response=True) as answer:
            if answer.status_code == 404:
                answer.success()
            elif answer.status_code != 200 or wanted not in answer.json():
                answer.failure(f"expected 200 with {wanted}, got {answer.status_code}: {answer.text[:200]}")


class Follower(User):
    """Follows all devices; each reading is a row of its own, whose time is that since it was sent."""

    abstract = True
    weight = 1
    kind = ""

    @task
    def follow(self) -> None:
        """Until the stream ends, which is a failure unless the user is stopped."""
        began = time.perf_counter()
        try:
            for item in self.items(began):
                if item.get("metric") == METRIC:
                    self.tell("deliver", (time.time() - item["value"]) * 1000)
        except (OSError, ValueError, KeyError, Refused, websocket.WebSocketException) as error:
            self.tell("end", (time.perf_counter() - began) * 1000, error)
            # A gate that is away is asked again, but not as fast as it can refuse.
            time.sleep(WAIT)

    def items(self, began: float) -> Iterator[dict[str, Any]]:
        """The readings as they come; `began`: when the connection was asked for."""
        raise NotImplementedError

    def tell(self, what: str, milliseconds: float, error: Exception | None = None) -> None:
        """A row of Locust's table."""
        events.request.fire(  # type: ignore[no-untyped-call]
            request_type=self.kind,
            name=what,
            response_time=max(0.0, milliseconds),
            response_length=0,
            exception=error,
            context={},
        )


class WebSocketFollower(Follower):
    """Over GET /v1/stream."""

    kind = "WS"

    def items(self, began: float) -> Iterator[dict[str, Any]]:
        """See Follower."""
        url = (self.host or "").replace("http", "ws", 1) + "/v1/stream"
        connection = websocket.create_connection(url, header=HEADERS, timeout=SILENCE)
        try:
            connection.send(json.dumps({"type": "subscribe", "id": 1, "match": [PATTERN]}))
            while True:
                text = connection.recv()
                if not text:
                    raise Refused("the gate closed the stream")
                frame = json.loads(text)
                if frame["type"] == "subscribed":
                    self.tell("subscribe", (time.perf_counter() - began) * 1000)
                elif frame["type"] == "error":
                    raise Refused(frame["detail"])
                elif frame["type"] == "reading":
                    yield frame
        finally:
            connection.close()


class SseFollower(Follower, HttpUser):
    """Over GET /v1/events."""

    kind = "SSE"

    def items(self, began: float) -> Iterator[dict[str, Any]]:
        """See Follower."""
        answer = self.client.get(
            "/v1/events",
            params={"match": PATTERN},
            headers={**HEADERS, "Accept": "text/event-stream"},
            name="GET events",
            stream=True,
            timeout=SILENCE,
        )
        try:
            if answer.status_code != 200:
                raise Refused(f"expected 200, got {answer.status_code}")
            event = ""
            for line in _lines(answer.raw.read1):
                if line.startswith("event:"):
                    event = line.removeprefix("event:").strip()
                    if event == "recovery":
                        self.tell("subscribe", (time.perf_counter() - began) * 1000)
                elif line.startswith("data:") and event == "reading":
                    yield json.loads(line.removeprefix("data:"))
        finally:
            answer.close()
        raise Refused("the gate closed the stream")


def _lines(read: Callable[[int], bytes]) -> Iterator[str]:
    """The lines of a stream, each as soon as it is there; requests' own wait for a buffer to be full."""
    rest = b""
    while data := read(_RECEIVE):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode().rstrip("\r")
