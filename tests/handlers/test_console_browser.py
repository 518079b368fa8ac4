"""The console in a real browser, before a real gate: readings, tokens, hostile input."""

import json
import signal
from pathlib import Path

import pytest

from tests.browser import KEYS, Browser
from tests.handlers.console import LOOK, charts_all, link, live, now, value
from tests.running import ROOT, GateProcess, run_process
from tests.server.commands import environment, run

pytestmark = pytest.mark.system

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
    await browser.open(link(process, "d", "m", process.token(LOOK, ttl=8)))
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
    script = "const one = document.createElement('script'); one.text = 'pwned = 1'; document.body.append(one)"
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
