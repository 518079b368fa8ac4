"""A real browser for tests: Chromium without a window, driven by selenium."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.running import PATIENCE

T = TypeVar("T")

_BROWSERS = ("chromium", "google-chrome", "chromium-browser")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--window-size=1280,800",
)
KEYS = Keys


class Browser:
    """One browser with one page. Whatever takes time is done beside the event loop."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    async def _beside(self, work: Callable[..., T], *arguments: Any) -> T:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.to_thread(work, *arguments)

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        await self._beside(self.driver.get, url)

    async def run(self, script: str, *arguments: Any) -> Any:
        """What a function body gives in the page."""
        return await self._beside(self.driver.execute_script, script, *arguments)

    async def until(self, script: str, *arguments: Any, within: float = PATIENCE) -> Any:
        """Wait until a function body gives something true; that."""
        given: Any = None
        try:
            async with asyncio.timeout(within):
                while not (given := await self.run(script, *arguments)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.run("return document.body.innerText")
            raise AssertionError(f"never true: {script}\n{arguments}\nthe page shows:\n{text}") from None
        return given

    async def shows(self, selector: str, text: str) -> None:
        """Wait until an element that can be seen has this text in it."""
        await self.until(
            "return [...document.querySelectorAll(arguments[0])].some("
            "(one) => one.checkVisibility() && one.textContent.includes(arguments[1]))",
            selector,
            text,
        )

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""

        def press() -> None:
            chain = ActionChains(self.driver)
            for key in keys:
                chain.send_keys(key)
            chain.perform()

        await self._beside(press)

    async def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return await self._beside(self.driver.execute_cdp_cmd, name, parameters)

    async def hasten(self) -> None:
        """From the next page on: once its `window.hastened` is true, timers of minutes take an instant."""
        script = (
            "const wait = window.setTimeout;"
            "window.setTimeout = (run, delay, ...rest) =>"
            " wait(run, window.hastened && delay >= 40000 ? 300 : delay, ...rest)"
        )
        await self.command("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def screenshot(self) -> str:
        """The page as it looks, a PNG in base64."""
        return await self._beside(self.driver.get_screenshot_as_base64)

    async def complaints(self) -> list[str]:
        """What the browser has logged since it was asked last."""
        log: list[dict[str, Any]] = await self._beside(self.driver.get_log, "browser")
        return [entry["message"] for entry in log]


@asynccontextmanager
async def run_browser(profile: Path) -> AsyncIterator[Browser]:
    """A browser of its own; `profile`: a directory that it may fill."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    assert browser, "no Chromium here; on Debian: apt install chromium chromium-driver"
    assert chromedriver, "no chromedriver here; on Debian: apt install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Named, so that selenium looks for nothing by itself, least of all elsewhere.
    service = Service(chromedriver)
    async with asyncio.timeout(3 * PATIENCE):
        driver = await asyncio.to_thread(webdriver.Chrome, options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        await asyncio.to_thread(driver.quit)
