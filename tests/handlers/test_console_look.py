"""How the console looks, and how it is used."""

import asyncio

import pytest

from tests.browser import KEYS, Browser
from tests.handlers.console import READINGS, charts_all, link, live, now
from tests.running import GateProcess

pytestmark = pytest.mark.system

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
    await browser.until(f"return {READINGS}.length === 1")
    assert await browser.run("return document.documentElement.scrollWidth") <= width
    # As many pixels as the screen has, not as CSS has.
    await browser.until(
        "const one = document.querySelector('canvas');"
        "return Math.abs(one.width / one.getBoundingClientRect().width - 2) < 0.02"
    )


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
    await browser.until(f"return {READINGS}.length === 5")
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
