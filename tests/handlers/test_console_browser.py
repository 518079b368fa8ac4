"""The console in a real browser, before a real gate."""

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.browser import KEYS, Browser, run_browser
from tests.handlers.wire import all_items
from tests.running import ROOT, GateProcess, run_process
from tests.server.commands import environment, run

pytestmark = pytest.mark.system

LOOK = ("readings:read", "devices:read")
SECRET = "a secret that several gates share, long enough for HS256"
READINGS = "return document.querySelector('#chart').points.readings"
DAY = 86_400_000


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with run_browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[GateProcess]:
    async with run_process(tmp_path / "data") as gate:
        yield gate


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
        " && row.dataset.metric === arguments[1] && row.querySelector('.value').textContent === arguments[2])",
        device,
        metric,
        text,
    )


async def stored(gate: GateProcess, device: str, metric: str) -> dict[int, Any]:
    """All readings of a series by time in microseconds."""
    items = await all_items(gate, f"/v1/devices/{device}/readings?metric={metric}&time=us&limit=1000")
    return {item["ts"]: item["value"] for item in items}


async def charted(browser: Browser) -> dict[int, Any]:
    readings = await browser.run(READINGS)
    found = {reading["t"]: reading["value"] for reading in readings}
    assert len(found) == len(readings), "a reading is there twice"
    assert list(found) == sorted(found)
    return found


async def charts_all(browser: Browser, gate: GateProcess, device: str, metric: str) -> None:
    """Wait until the chart has as many readings as the gate; then they must be the same."""
    there = await stored(gate, device, metric)
    await browser.until(f"{READINGS}.length >= arguments[0]", len(there))
    assert await charted(browser) == there


# -- what devices write ------------------------------------------------------------------------


async def test_what_a_device_writes_appears(browser: Browser, process: GateProcess) -> None:
    await browser.open(link(process, "demo.kitchen", "temperature"))
    await live(browser)
    await process.write("demo.kitchen", {"values": {"temperature": 21.5, "door_open": False, "mode": "eco"}})
    await value(browser, "demo.kitchen", "temperature", "21.5")
    await value(browser, "demo.kitchen", "door_open", "false")
    await value(browser, "demo.kitchen", "mode", "eco")
    await process.write("demo.kitchen", {"values": {"temperature": -3.25, "door_open": True, "mode": "away"}})
    await value(browser, "demo.kitchen", "temperature", "\N{MINUS SIGN}3.25")
    await value(browser, "demo.kitchen", "door_open", "true")
    await value(browser, "demo.kitchen", "mode", "away")
    await browser.shows("#now", "\N{MINUS SIGN}3.25")
    await charts_all(browser, process, "demo.kitchen", "temperature")
    # Of a device that nobody knew yet there was no history.
    assert [text for text in await browser.complaints() if "404 (Not Found)" not in text] == []


@pytest.mark.parametrize(
    ("metric", "values"), [("door", [True, False, True]), ("mode", ["eco", "away", "eco"])]
)
async def test_truth_values_and_texts_have_a_chart_too(
    browser: Browser, process: GateProcess, metric: str, values: list[object]
) -> None:
    begin = now() - 60_000
    for n, one in enumerate(values):
        await process.write("d", {"metric": metric, "value": one, "ts": begin + n * 10_000})
    await browser.open(link(process, "d", metric))
    await browser.until("return document.querySelector('#chart').columns.length === 3")
    drawn = await browser.run("return document.querySelector('#chart').columns.map((one) => one.value)")
    assert drawn == values
    assert await browser.complaints() == []


async def test_the_chart_starts_with_its_history_over_many_pages(
    browser: Browser, process: GateProcess
) -> None:
    begin = now() - 280_000
    batch = [{"metric": "m", "value": n % 97, "ts": begin + n * 100} for n in range(2500)]
    await process.write("d", *batch)
    await browser.open(link(process, "d", "m"))
    await live(browser)
    await charts_all(browser, process, "d", "m")
    await process.write("d", {"metric": "m", "value": 5}, {"metric": "m", "value": 6, "ts": begin + 50})
    await charts_all(browser, process, "d", "m")


async def test_more_readings_than_pixels_are_drawn_with_their_lowest_and_highest(
    browser: Browser, process: GateProcess
) -> None:
    begin, step = now() - 20 * 3_600_000, 8_000
    readings = [{"metric": "m", "value": n % 100, "ts": begin + n * step} for n in range(9_000)]
    readings[4321]["value"], readings[7654]["value"] = 500, -500
    await process.write("d", *readings)
    await browser.open(link(process, "d", "m"))
    await browser.run("document.querySelector('#windows input[value=\"86400\"]').click()")
    await browser.until("return document.querySelector('#chart').points.buckets.length > 100")
    points = await browser.run("return document.querySelector('#chart').points")
    assert sum(one["count"] for one in points["buckets"]) + len(points["readings"]) >= 9_000
    assert min(one["low"] for one in points["buckets"]) == -500
    assert max(one["high"] for one in points["buckets"]) == 500
    columns = await browser.until(
        "const all = document.querySelector('#chart').columns; return all.length > 100 && all"
    )
    assert len(columns) <= 1280
    assert (min(one["low"] for one in columns), max(one["high"] for one in columns)) == (-500, 500)
    await browser.shows("#figure-max", "500")


async def test_an_empty_window_leads_to_where_the_readings_are(
    browser: Browser, process: GateProcess
) -> None:
    await process.write("d", *({"metric": "m", "value": n, "ts": 1_500_000_000_000 + n} for n in range(10)))
    await browser.open(link(process, "d", "m"))
    await browser.shows(".message", "No readings in this window")
    await browser.run("document.querySelector('.message button').click()")
    await charts_all(browser, process, "d", "m")
    await browser.until("return document.querySelector('#chart').columns.length === 10")


# -- the network comes and goes ----------------------------------------------------------------


@asynccontextmanager
async def writing(gate: GateProcess, begin: int, count: int) -> AsyncIterator[None]:
    """Writes readings one after the other meanwhile, until the gate does not take them any more."""

    async def write() -> None:
        for n in range(count):
            try:
                await gate.write("d", {"metric": "m", "value": n, "ts": begin + n})
            except OSError:
                return

    task = asyncio.create_task(write())
    yield
    await task


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_of_the_gate_is_survived_and_no_reading_is_missing(
    tmp_path: Path, browser: Browser, end: signal.Signals
) -> None:
    port, begin = "0", now() - 60_000
    for attempt in range(3):
        async with run_process(tmp_path / "data", PORT=port) as gate:
            if attempt == 0:
                port = str(gate.port)
                await browser.open(link(gate, "d", "m"))
                await live(browser)
            # Before the page is back: what it has missed must come from the log.
            await gate.write("d", *({"metric": "m", "value": n, "ts": begin - n - 1} for n in range(50)))
            begin -= 50
            async with writing(gate, begin + 10_000 * (attempt + 1), 400):
                await live(browser)
                await browser.until(f"return ({READINGS.removeprefix('return ')}).length > arguments[0]", 20)
            await charts_all(browser, gate, "d", "m")
            async with writing(gate, begin + 10_000 * (attempt + 1) + 5_000, 10_000):
                await browser.until(
                    f"return ({READINGS.removeprefix('return ')}).length > arguments[0]",
                    len(await charted(browser)) + 20,
                )
                gate.signal(end)
                await gate.ended()
            await browser.until("return document.querySelector('#state').dataset.kind !== 'live'")
    verdicts = await browser.run(
        "return [...document.querySelectorAll('#journal li')].map((one) => [one.dataset.stream, one.dataset.verdict])"
    )
    assert sorted(map(tuple, verdicts)) == [
        ("Chart", "live"),
        ("Chart", "recovered"),
        ("Chart", "recovered"),
        ("Devices", "live"),
        ("Devices", "recovered"),
        ("Devices", "recovered"),
    ]


async def test_a_log_that_was_replaced_is_told_and_loaded_anew(tmp_path: Path, browser: Browser) -> None:
    async with run_process(tmp_path / "one", JWT_SECRET=SECRET) as gate:
        port = str(gate.port)
        await gate.write("d", {"metric": "m", "value": 1})
        await browser.open(link(gate, "d", "m"))
        await live(browser)
        await charts_all(browser, gate, "d", "m")
        gate.signal(signal.SIGTERM)
        await gate.ended()
    async with run_process(tmp_path / "two", JWT_SECRET=SECRET, PORT=port) as gate:
        await gate.write("d", {"metric": "m", "value": 2})
        await browser.shows("#journal li[data-verdict='not recovered']", "unknown_epoch")
        await browser.shows("#journal li[data-verdict='not recovered']", "the log of the gate was replaced")
        await value(browser, "d", "m", "2")
        there = await stored(gate, "d", "m")
        await browser.until(f"{READINGS}.some((one) => one.t === arguments[0])", *there)


class Wire:
    """What lies between browser and gate; it can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, inner_writer))
                    group.create_task(self._pass(inner_reader, writer))
            finally:
                inner_writer.transport.abort()
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_what_was_written_while_the_network_was_away_is_made_up_for(
    browser: Browser, process: GateProcess
) -> None:
    wire = Wire(process.port)
    await wire.mend()
    try:
        begin = now() - 100_000
        await browser.open(link(process, "d", "m").replace(process.url, f"http://127.0.0.1:{wire.port}"))
        await live(browser)
        await process.write("d", {"metric": "m", "value": 1, "ts": begin})
        await charts_all(browser, process, "d", "m")
        await wire.cut()
        await browser.shows("#state", "Away, again in")
        await process.write("d", *({"metric": "m", "value": n, "ts": begin + n} for n in range(1, 3000)))
        await wire.mend()
        await charts_all(browser, process, "d", "m")
        for stream in ("Chart", "Devices"):
            await browser.shows(
                f"#journal [data-stream={stream}][data-verdict=recovered]", "Nothing was missed."
            )
        await value(browser, "d", "m", "2999")
    finally:
        await wire.cut()


# -- tokens and errors -------------------------------------------------------------------------


async def test_a_token_of_the_address_is_taken_out_of_it_and_kept_in_the_tab_alone(
    browser: Browser, process: GateProcess
) -> None:
    token = process.token(LOOK)
    await browser.open(link(process, token=token))
    await live(browser)
    places = "return [location.href, document.documentElement.outerHTML, document.cookie, {...localStorage}]"
    assert token not in json.dumps(await browser.run(places))
    assert await browser.run("return {...sessionStorage}") == {"tidegate.token": token}
    # It is nowhere in the history to go back to, and a reload does not ask for it.
    assert await browser.run("return history.length") <= 2
    await browser.run("location.reload()")
    await live(browser)
    await browser.run("document.querySelector('#leave').click()")
    assert await browser.run("return {...sessionStorage}") == {}
    await browser.shows("#token-form", "Paste a token")


async def test_a_pasted_token_opens_the_console(browser: Browser, process: GateProcess) -> None:
    await browser.open(process.url + "/")
    await browser.shows("#token-form", "Paste a token")
    await browser.press("Bearer " + process.token(LOOK, subject="pasted"), KEYS.ENTER)
    await live(browser)
    await browser.shows("#subject", "pasted")


@pytest.mark.parametrize("token", ["wrong", "a\u00fc b", "eyJhbGciOiJub25lIn0.e30."])
async def test_a_wrong_token_is_told_in_plain_words(
    browser: Browser, process: GateProcess, token: str
) -> None:
    await browser.open(link(process, token=token))
    await browser.shows("#alert", "The gate does not accept this token. Check that it was copied whole")
    await browser.shows("#token-form", "Paste a token")


async def test_a_token_that_ends_is_told_and_another_goes_on(browser: Browser, process: GateProcess) -> None:
    await process.write("d", {"metric": "m", "value": 1})
    await browser.open(link(process, "d", "m", process.token(LOOK, ttl=2)))
    await live(browser)
    await browser.shows("#alert", "The token has expired. Make a new one and paste it.")
    await browser.press(process.token(LOOK), KEYS.ENTER)
    await live(browser)
    await charts_all(browser, process, "d", "m")


async def test_what_a_token_may_not_is_told_in_plain_words(browser: Browser, process: GateProcess) -> None:
    await browser.open(link(process, token=process.token(("readings:write",))))
    await browser.shows("#alert", "This token may not read. Use one with the scope readings:read.")
    await browser.shows("#state", "Stopped")
    await browser.open("about:blank")
    await browser.open(link(process, "other.d", "m", process.token(LOOK, ("demo.>",))))
    await browser.shows("#alert", "This token has no grant for these devices.")


async def test_a_limit_is_told_and_waited_for(browser: Browser, tmp_path: Path) -> None:
    async with run_process(tmp_path / "data", RATE_LIMIT="10") as gate:
        await gate.write("d", {"metric": "m", "value": 1})
        await browser.open(link(gate, "d", "m"))
        await browser.shows("#alert", "Too many requests with this token.")
        await browser.shows("#state", "Away, again in")


async def test_a_gate_that_is_gone_is_told(browser: Browser, process: GateProcess) -> None:
    await browser.open(link(process))
    await live(browser)
    process.signal(signal.SIGKILL)
    await process.ended()
    await browser.shows("#alert", "The gate cannot be reached.")
    await browser.shows("#state", "Away, again in")


async def test_who_has_nothing_yet_is_told_how_to_send_the_first_reading(
    browser: Browser, process: GateProcess
) -> None:
    token = process.token(LOOK, ("acme.*.boiler",))
    await browser.open(link(process, token=token))
    await browser.shows("#empty", "Waiting for the first reading")
    command: str = await browser.run("return document.querySelector('#curl').textContent")
    first, _, curl = command.partition("\n")
    assert process.url in curl
    assert first.startswith("TOKEN=$(.venv/bin/tidegate token ")
    writer = process.token(("readings:write",), ("acme.>",))
    wrote = await run("bash", "-c", f"TOKEN={writer}\n{curl}", env=environment(), cwd=ROOT)
    assert json.loads(wrote.out)["accepted"] == 1, wrote
    await value(browser, "acme.demo.boiler", "temperature", "21.5")
    await browser.until("return document.querySelector('#empty').hidden")


# -- hostile input -----------------------------------------------------------------------------

HOSTILE = (
    '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script><b class=hostile>\'&amp;\u202etxet'
)


async def test_hostile_names_labels_and_values_are_text(browser: Browser, process: GateProcess) -> None:
    described = await process.call("PUT", "/v1/devices/d", {"name": HOSTILE, "labels": {HOSTILE: HOSTILE}})
    assert described.status == 201
    await process.write("d", {"metric": "a:/%-", "value": HOSTILE}, {"metric": "b", "value": "javascript:1"})
    await browser.open(link(process, "d", "a:/%25-", process.token(LOOK)))
    await value(browser, "d", "a:/%-", HOSTILE)
    await browser.shows(".name", HOSTILE)
    await browser.shows(".labels", HOSTILE)
    await browser.shows("#now", HOSTILE)
    # What the address says is no less hostile.
    await browser.open("about:blank")
    await browser.open(f"{process.url}/#device={HOSTILE}&metric={HOSTILE}")
    await browser.shows("#series-title", "<img src=x")
    assert await browser.run("return [window.pwned, document.querySelectorAll('img, .hostile').length]") == [
        None,
        0,
    ]
    assert [text for text in await browser.complaints() if "rror" not in text] == []


async def test_the_policy_stops_markup_even_if_the_page_had_a_hole(
    browser: Browser, process: GateProcess
) -> None:
    await browser.open(process.url + "/")
    hole = "try { document.body.innerHTML = arguments[0] } catch (error) { return error.name }"
    assert await browser.run(hole, HOSTILE) == "TypeError"
    script = "const one = document.createElement('script'); one.text = 'window.pwned = 1'; document.body.append(one)"
    assert await browser.run(f"try {{ {script} }} catch (error) {{ return error.name }}") == "TypeError"
    assert await browser.run("return window.pwned") is None


async def test_the_page_asks_nobody_but_its_gate(browser: Browser, process: GateProcess) -> None:
    await process.write("d", {"metric": "m", "value": 1})
    await browser.open(link(process, "d", "m"))
    await live(browser)
    await charts_all(browser, process, "d", "m")
    asked = await browser.run("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert [url for url in asked if not url.startswith((process.url + "/", "data:"))] == []


# -- how it looks and how it is used -----------------------------------------------------------

# How bright a picture is on average, 0 to 1; arguments[0]: a PNG in base64.
BRIGHTNESS = """
const done = arguments[arguments.length - 1];
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
createImageBitmap(new Blob([bytes])).then((bitmap) => {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext('2d');
  pen.drawImage(bitmap, 0, 0);
  const { data } = pen.getImageData(0, 0, bitmap.width, bitmap.height);
  let sum = 0;
  for (let n = 0; n < data.length; n += 4) sum += data[n] + data[n + 1] + data[n + 2];
  done(sum / (data.length / 4) / 3 / 255);
});
"""
# Contrast of text with what lies behind it (WCAG 2.2), the lowest over everything that can be seen.
CONTRAST = """
const part = (one) => { one /= 255; return one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4 };
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const color = numbers(getComputedStyle(one).backgroundColor);
    if (color.length < 4 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
const found = [];
for (const one of document.querySelectorAll('body *')) {
  const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !one.checkVisibility() || one.closest('.unseen')) continue;
  const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), one.className || one.id || one.tagName]);
}
return found.sort((x, y) => x[0] - y[0])[0];
"""


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
async def test_it_is_light_or_dark_as_the_system_is_and_can_be_read_either_way(
    browser: Browser, process: GateProcess, scheme: str, *, dark: bool
) -> None:
    await browser.command(
        "Emulation.setEmulatedMedia",
        features=[
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ],
    )
    await process.call("PUT", "/v1/devices/d", {"name": "A name", "labels": {"site": "Lyon"}})
    begin = now() - 60_000
    await process.write("d", *({"metric": "m", "value": n % 7, "ts": begin + n * 500} for n in range(100)))
    await browser.open(link(process, "d", "m"))
    await live(browser)
    await charts_all(browser, process, "d", "m")
    await browser.shows(".labels", "Lyon")
    brightness = await asyncio.to_thread(
        browser.driver.execute_async_script, BRIGHTNESS, await browser.screenshot()
    )
    assert (brightness < 0.2) if dark else (brightness > 0.8), brightness
    contrast, where = await browser.run(CONTRAST)
    assert contrast >= 4.5, where
    await browser.run("document.querySelector('#leave').click()")
    contrast, where = await browser.run(CONTRAST)
    assert contrast >= 4.5, where


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_it_fits_any_width(browser: Browser, process: GateProcess, width: int) -> None:
    device = "a" * 100 + ".b" * 14
    assert (await process.write(device, {"metric": "m" * 64, "value": "x" * 1000})).status == 200
    await browser.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=2, mobile=width < 600
    )
    await browser.open(link(process, device, "m" * 64))
    await live(browser)
    await browser.until(f"{READINGS}.length === 1")
    assert await browser.run("return document.documentElement.scrollWidth") <= width
    # As many pixels as the screen has, not as CSS has.
    scale = (
        "const one = document.querySelector('canvas'); return one.width / one.getBoundingClientRect().width"
    )
    assert abs(await browser.run(scale) - 2) < 0.02


async def test_it_can_be_used_without_a_mouse(browser: Browser, process: GateProcess) -> None:
    begin = now() - 30_000
    for metric in ("alpha", "beta"):
        await process.write("d", *({"metric": metric, "value": n, "ts": begin + n * 1000} for n in range(5)))
    await browser.open(link(process))
    await live(browser)
    await browser.shows("#series-title", "alpha")
    await browser.press("/", *"beta")
    await browser.until("return document.querySelectorAll('.row').length === 1")
    await browser.press(*[KEYS.BACKSPACE] * 4)
    await browser.until("return document.querySelectorAll('.row').length === 2")
    await browser.press(KEYS.TAB, KEYS.ARROW_DOWN, KEYS.ENTER)
    await browser.shows("#series-title", "beta")
    await browser.until(f"{READINGS}.length === 5")
    await browser.until("return document.querySelector('#chart').columns.length === 5")
    await browser.run("document.querySelector('#chart').focus()")
    await browser.press(KEYS.HOME)
    await browser.shows("#chart [role=status]", "0, ")
    await browser.press(KEYS.ARROW_RIGHT, KEYS.ARROW_RIGHT)
    await browser.shows("#chart [role=status]", "2, ")
    await browser.shows(".reader", "2")
    await browser.press(KEYS.ESCAPE)
    await browser.until("return document.querySelector('.reader').hidden")


async def test_a_pattern_in_the_filter_follows_only_what_matches(
    browser: Browser, process: GateProcess
) -> None:
    for device in ("acme.a.b1", "acme.b.b1", "acme.a.b2", "other.a.b1"):
        await process.write(device, {"metric": "m", "value": 1})
    await browser.open(link(process))
    await browser.until("return document.querySelectorAll('.row').length === 4")
    await browser.press("/", *"acme.*.b1")
    rows = "return [...document.querySelectorAll('.row')].map((row) => row.dataset.device).join(' ')"
    await browser.until(f"{rows} === 'acme.a.b1 acme.b.b1'")
    await live(browser)
    await process.write("acme.c.b1", {"metric": "m", "value": 1})
    await browser.until(f"{rows} === 'acme.a.b1 acme.b.b1 acme.c.b1'")


# -- the parser of event streams ---------------------------------------------------------------

Event = tuple[str, str | None, str]


def reference(stream: bytes) -> list[Event]:
    """The events of a whole stream, by the letter of the HTML standard: type, data, last event id."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events: list[Event] = []
    data: list[str] = []
    kind, last = "", ""
    for line in lines:
        name, colon, content = line.partition(":")
        content = content.removeprefix(" ")
        if not line:
            events.append((kind or "message", "\n".join(data) if data else None, last))
            data, kind = [], ""
        elif colon and not name:
            continue
        elif name == "data":
            data.append(content)
        elif name == "event":
            kind = content
        elif name == "id" and "\0" not in content:
            last = content
    return events


PIECES = [
    b"data", b"data:", b"data: ", b"data:  two", b"id", b"id:", b"id: 1-2", b"id: a\0b", b"event: reading",
    b"event:", b": ping", b":", b"retry: 10", b"retry: x", b"other: 1", b"datax: 1", b"data : 1",
    "data: gr\u00fc\u00df \U0001f30a".encode(), b"data: \xff\xfe", b'data: {"a": 1}', b" data: 1", b"\xef\xbb\xbfdata: bom",
]  # fmt: skip
PARSE = """
return arguments[0].map((pieces) => {
  const found = [];
  const parser = new EventParser(({ type, data, id }) => found.push([type, data, id]));
  for (const piece of pieces) parser.feed(Uint8Array.from(piece));
  return found;
});
"""


async def test_event_streams_are_read_as_the_html_standard_says_however_they_are_cut(
    browser: Browser,
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    cases = []
    for _ in range(400):
        lines = (
            chance.choice([*PIECES, b"", b""]) + chance.choice([b"\n", b"\r", b"\r\n"]) for _ in range(20)
        )
        stream = b"".join(lines)
        if stream.endswith(b"\r"):
            # Whether a line feed follows is not known yet: the standard does not say to wait for it.
            stream += b"\n"
        cuts = sorted(chance.sample(range(1, len(stream)), chance.randrange(min(len(stream) - 1, 30))))
        bounds = zip([0, *cuts], [*cuts, len(stream)], strict=True)
        cases.append((stream, [list(stream[a:b]) for a, b in bounds]))
    source = resources.files("handlers").joinpath("web", "events.js").read_text("utf-8")
    await browser.open("about:blank")
    found = await browser.run(source + PARSE, [pieces for _, pieces in cases])
    for (stream, pieces), events in zip(cases, found, strict=True):
        assert [tuple(event) for event in events] == reference(stream), (stream, list(map(len, pieces)))
