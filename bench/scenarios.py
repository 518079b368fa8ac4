"""What is asked: a table of scenarios. A target's description names those that it takes part in."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from bench import contract, verify
from bench.load.wrk import Ask

# closed: wrk, for throughput. open: at half of the own maximum, for latency. ceiling: of the open loop's
# client itself.
Load = Literal["closed", "open", "ceiling"]


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
        """What is counted per second."""
        return "requests/s" if self.readings == 1 else "readings/s"


_HELLO = Ask(path="/hello")
_LATEST = Ask(path=contract.LATEST, token="*")
_WRITE = Ask("POST", contract.READINGS, contract.READING, "*")
_PAGE = Ask(path=contract.PAGE_QUERY, token="*")
_BATCH = Ask("POST", contract.BATCHES, token="*", batches=True)


def _cold(ask: Ask) -> Ask:
    return Ask(ask.method, ask.path, ask.body, ask.token, cold=True)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("hello", 'GET {"ok":true}, no checks', _HELLO, verify.hello),
        Scenario("hello-cold", "the same, a head of its own each", _cold(_HELLO), verify.hello),
        Scenario("latest", "GET latest values, cached; JWT, limit, metrics", _LATEST, verify.latest),
        Scenario("latest-cold", "the same, a head of its own each", _cold(_LATEST), verify.latest),
        Scenario(
            "write",
            "POST one reading, 200 after its durable commit; JWT, limit, validation, metrics",
            _WRITE,
            verify.write,
            stores=True,
        ),
        Scenario("write-cold", "the same, a head of its own each", _cold(_WRITE), verify.write, stores=True),
        Scenario(
            "batch",
            "POST 1,000 readings as JSON, 200 after their durable commit",
            _BATCH,
            verify.batch,
            readings=contract.BATCH,
            stores=True,
        ),
        Scenario("page", "GET a range page of 100 readings", _PAGE, verify.page),
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
