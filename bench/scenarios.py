"""What is asked: a table of scenarios. A target's description names those that it takes part in."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from bench import contract, verify
from bench.load import echo
from bench.load.wrk import Ask

# closed: wrk, for throughput. open: at half of the own maximum, for latency. ceiling: of the open loop's
# client itself. echo: WebSockets, closed. memory: what the server holds, idle, or as loaded as by closed.
# start: until it is ready. size: of what is installed.
Load = Literal["closed", "open", "ceiling", "echo", "memory", "memory-loaded", "start", "size"]
_UNITS: dict[Load, str] = {
    "echo": "messages/s",
    "memory": "MiB",
    "memory-loaded": "MiB",
    "start": "ms",
    "size": "MiB",
}


class Scenario(Struct, frozen=True):
    """One thing to ask.

    `check` verifies a target for it, and leaves it with what the load needs. `readings`: that an
    answer stands for; they are counted instead of requests where there are more than one. `stores`:
    whether they must be in the database afterwards.
    """

    name: str
    title: str
    ask: Ask
    check: Callable[[verify.Subject], None]
    load: Load = "closed"
    connections: int = 64
    readings: int = 1
    stores: bool = False

    @property
    def unit(self) -> str:
        """What is counted."""
        return _UNITS.get(self.load, "requests/s" if self.readings == 1 else "readings/s")

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.load in ("memory", "memory-loaded", "start", "size")


_HELLO = Ask(path=contract.HELLO)
_LATEST = Ask(path=contract.LATEST, token="*")
_MANY = Ask(path=contract.MANY_LATEST, token="*", devices=contract.MANY)
_WRITE = Ask("POST", contract.READINGS, contract.READING, "*")
_PAGE = Ask(path=contract.PAGE_QUERY, token="*")
_BATCH = Ask("POST", contract.BATCHES, token="*", batches=True)


_BAD_TOKEN = Ask("POST", contract.READINGS, contract.READING, contract.BAD_TOKEN, status=401)
_BAD_BODY = Ask("POST", contract.READINGS, contract.BAD_READING, "*", status=422)
_NEW = Ask(path=contract.HELLO, closes=True)
_NONE = Ask()


def _cold(ask: Ask) -> Ask:
    return Ask(ask.method, ask.path, ask.body, ask.token, cold=True)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("hello", "GET a tiny JSON, no checks (of the gate: /livez)", _HELLO, verify.hello),
        Scenario("hello-cold", "the same, a head of its own each", _cold(_HELLO), verify.hello),
        Scenario("latest", "GET latest values, from memory; JWT, limit", _LATEST, verify.latest),
        Scenario("latest-cold", "the same, a head of its own each", _cold(_LATEST), verify.latest),
        Scenario(
            "latest-many", "the same of 1,000 devices in turn, from PostgreSQL or Redis", _MANY, verify.many
        ),
        Scenario(
            "write",
            "POST one reading, 200 after its durable commit; JWT, limit, validation",
            _WRITE,
            verify.write,
            stores=True,
        ),
        Scenario("write-cold", "the same, a head of its own each", _cold(_WRITE), verify.write, stores=True),
        Scenario(
            "write-256",
            "write on 256 connections",
            _WRITE,
            verify.write,
            connections=256,
            stores=True,
        ),
        Scenario(
            "batch",
            "POST 1,000 readings as JSON, 200 after their durable commit",
            _BATCH,
            verify.batch,
            readings=contract.BATCH,
            stores=True,
        ),
        Scenario("page", "GET a range page of 100 readings", _PAGE, verify.page),
        Scenario("rejected-token", "POST with a token of a wrong signature, 401", _BAD_TOKEN, verify.write),
        Scenario(
            "rejected-body", "POST of a value that is an array, 422; JWT, limit", _BAD_BODY, verify.write
        ),
        Scenario("hello-new", "hello, a connection for each request", _NEW, verify.hello),
        Scenario("ws-echo", "a WebSocket that gives back each text of 47 bytes", _NONE, echo.check, "echo"),
        Scenario("memory-idle", "memory (PSS) of a server that is ready", _NONE, verify.answers, "memory"),
        Scenario(
            "memory-loaded", "memory (PSS) under the load of write", _WRITE, verify.write, "memory-loaded"
        ),
        Scenario(
            "start", "from the start of the process to its first answer", _NONE, verify.answers, "start"
        ),
        Scenario("size", "what is installed to run it, less the interpreter", _NONE, verify.answers, "size"),
        Scenario("hello-open", "hello at half of the own maximum", _HELLO, verify.hello, "open"),
        Scenario("latest-open", "latest at half of the own maximum", _LATEST, verify.latest, "open"),
        Scenario("write-open", "write at half of the own maximum", _WRITE, verify.write, "open", stores=True),
        Scenario(
            "hello-ceiling",
            "the highest rate that the open loop's client keeps to",
            _HELLO,
            verify.hello,
            "ceiling",
        ),
    )
}
