"""A browser, and a gate that is a process of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser import Browser, run_browser
from tests.running import GateProcess, run_process


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with run_browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[GateProcess]:
    async with run_process(tmp_path / "data") as gate:
        yield gate
