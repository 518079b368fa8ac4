"""What all tests share: the event loop, the watch over it, a gate."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx

from tests.running import DEFAULTS, Running, run_gate

pytest_plugins = ("tests.servers.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of scripts/test."""
    parser.addoption("--system", action="store_true", help="also what needs installed programs or root")
    parser.addoption("--common-lane", action="store_true", help="run gates without the fast lane")
    parser.addoption("--long", action="store_true", help="full counts of fault and load tests")


def pytest_configure(config: pytest.Config) -> None:
    """The markers, and what hypothesis must not complain of."""
    # How long an example takes says more of the machine than of the code.
    hypothesis.settings.register_profile(
        "tidegate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tidegate")
    if config.getoption("--common-lane"):
        DEFAULTS["FAST_LANE"] = "0"
    config.addinivalue_line("markers", "system: needs installed programs or root")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --system the tests that need it are not collected: nothing is ever skipped."""
    if config.getoption("--system"):
        return
    left_out = [item for item in items if item.get_closest_marker("system")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The gate runs on uvloop, so do its tests."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Promise: nothing blocks the event loop. A call that would raises BlockingError."""
    with blockbuster_ctx(["server", "handlers", "auth", "storage"]) as watch:
        yield watch


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether full counts are wanted."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate in this process with the default settings."""
    async with run_gate(tmp_path / "data") as running:
        yield running
