"""What the tests of the console share: what the page shows, and what the gate has."""

import time
from typing import Any

from tests.browser import Browser
from tests.handlers.wire import all_items
from tests.running import GateProcess

LOOK = ("readings:read", "devices:read")
# What the chart has of single readings, as an expression of the page.
READINGS = "document.querySelector('#chart').points.readings"


def link(gate: GateProcess, device: str = "", metric: str = "", token: str | None = None) -> str:
    given = gate.token(LOOK, subject="watcher") if token is None else token
    chosen = f"&device={device}&metric={metric}" if device else ""
    return f"{gate.url}/#token={given}{chosen}"


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def live(browser: Browser) -> None:
    await browser.until("return document.querySelector('#state').dataset.kind === 'live'")


async def value(browser: Browser, device: str, metric: str, text: str) -> None:
    """Wait until the list shows this newest value."""
    await browser.until(
        "return [...document.querySelectorAll('.row')].some((row) => row.dataset.device === arguments[0]"
        " && row.dataset.metric === arguments[1]"
        " && row.querySelector('.value').textContent === arguments[2])",
        device,
        metric,
        text,
    )


async def stored(gate: GateProcess, device: str, metric: str) -> dict[int, Any]:
    """All readings of a series by time in microseconds."""
    items = await all_items(gate, f"/v1/devices/{device}/readings?metric={metric}&time=us&limit=1000")
    return {item["ts"]: item["value"] for item in items}


async def charted(browser: Browser) -> dict[int, Any]:
    readings = await browser.run(f"return {READINGS}")
    found = {reading["t"]: reading["value"] for reading in readings}
    assert len(found) == len(readings), "a reading is there twice"
    assert list(found) == sorted(found)
    return found


async def charts_all(browser: Browser, gate: GateProcess, device: str, metric: str) -> None:
    """Wait until the chart has as many readings as the gate; then they must be the same."""
    there = await stored(gate, device, metric)
    await browser.until(f"return {READINGS}.length >= arguments[0]", len(there))
    assert await charted(browser) == there
