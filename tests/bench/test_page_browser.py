"""The page of a run in a real browser: a reader picks scenarios, peers and views, from a file and offline."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import page
from tests.bench import invented
from tests.browser import Browser, run_browser

pytestmark = pytest.mark.system

BARS = "return document.querySelectorAll('#chart rect').length"


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with run_browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
async def shown(tmp_path: Path, browser: Browser) -> Browser:
    """The page of an invented run, opened as a file."""
    run = invented.results(tmp_path)
    path = run.directory / "report.html"
    path.write_text(page.render(run))
    await browser.open(path.as_uri())
    return browser


async def press(browser: Browser, home: str, text: str) -> None:
    """Press the button with this text."""
    found = await browser.run(
        "const one = [...document.querySelectorAll(arguments[0] + ' button')]"
        ".find((each) => each.textContent === arguments[1]);"
        "if (!one || one.disabled) return false; one.click(); return true",
        home,
        text,
    )
    assert found, f"no button {text} in {home}"


async def test_a_reader_picks_scenarios_and_peers(shown: Browser) -> None:
    await shown.shows("#title", "hello: ")
    assert await shown.run(BARS) == 2
    await press(shown, "#scenarios", "latest")
    assert await shown.run(BARS) == 3
    # The best on top: not the gate here.
    assert (
        await shown.run("return document.querySelector('#chart g text').textContent") == "Quick <one> & co."
    )
    await press(shown, "#peers", "Quick <one> & co.")
    assert await shown.run(BARS) == 2
    assert await shown.run("return document.querySelector('#chart g text').textContent") == "Tidegate"
    await press(shown, "#scales", "by Tidegate")
    await shown.shows("#chart .house", "1.00")
    assert await shown.complaints() == []


async def test_a_reader_sees_latency_by_load(shown: Browser) -> None:
    await press(shown, "#scenarios", "write")
    await press(shown, "#views", "Latency by load")
    curves = await shown.run("return document.querySelectorAll('#chart path').length")
    assert curves == 2
    for text in ("p50", "p99.9", "max"):
        await press(shown, "#percentiles", text)
        assert await shown.run("return document.querySelectorAll('#chart path').length") == curves
    # Of the gate 500 to 20,000 a second, of the other one up to 2,000.
    assert await shown.run("return document.querySelectorAll('#table tbody tr').length") == 6 + 3
    assert await shown.complaints() == []


async def test_where_the_gate_is_beaten_stands_there_whatever_is_chosen(shown: Browser) -> None:
    await shown.shows("#beaten", "Quick <one> & co.")
    await press(shown, "main .row", "None")
    await shown.shows("#beaten", "Quick <one> & co.")
    await shown.shows("#chosen", "1 of 4")


async def test_a_choice_can_be_sent_on(shown: Browser) -> None:
    await press(shown, "#scenarios", "latest")
    await press(shown, "#views", "CPU each")
    await press(shown, "#peers", "aiohttp + asyncpg")
    address = await shown.run("return location.href")
    await shown.open("about:blank")
    await shown.open(address)
    await shown.shows("#title", "latest: ")
    await shown.shows("#about", "CPU for each")
    await shown.shows("#chosen", "3 of 4")


async def test_views_without_figures_cannot_be_chosen(shown: Browser) -> None:
    disabled = await shown.run(
        "return [...document.querySelectorAll('#views button')].filter((one) => one.disabled)"
        ".map((one) => one.textContent)"
    )
    # Nobody was asked hello at fixed rates.
    assert disabled == ["Latency by load"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_light_and_in_dark(shown: Browser, scheme: str) -> None:
    shown.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    # WCAG 2.2, 1.4.3: contrast of text and quiet text on the sheet.
    ratios = await shown.run("""
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          const hex = style.getPropertyValue(name).trim();
          const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
          return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const contrast = (one, other) => {
          const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
          return (high + 0.05) / (low + 0.05);
        };
        return [contrast('--text', '--sheet'), contrast('--quiet', '--sheet'), contrast('--text', '--note'),
                contrast('--text', '--house-soft'), contrast('--quiet', '--back')];
    """)
    assert min(ratios) >= 4.5, ratios
