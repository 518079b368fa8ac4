"""What all tests share: the event loop, the watch over it, a gate."""

import asyncio
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import cast

import hypothesis
import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx

from server.settings import load
from server.sockets import trusting
from tests.certificates import certificate
from tests.running import DEFAULTS, TRUST, Running, drop_databases, run_gate

_CERTIFICATE = pytest.StashKey[str]()

pytest_plugins = ("tests.servers.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of scripts/test."""
    parser.addoption("--system", action="store_true", help="also what needs installed programs or root")
    parser.addoption("--common-lane", action="store_true", help="run gates without the fast lane")
    parser.addoption("--tls", action="store_true", help="run gates with TLS")
    parser.addoption("--postgres", action="store_true", help="run gates on PostgreSQL")
    parser.addoption("--pgbouncer", action="store_true", help="run gates on PostgreSQL through pgbouncer")
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
    if config.getoption("--tls"):
        directory = Path(config.stash.setdefault(_CERTIFICATE, tempfile.mkdtemp(prefix="tidegate-tls-")))
        DEFAULTS["TLS_CERT"], DEFAULTS["TLS_KEY"] = map(str, certificate(directory))
        settings = load({f"TIDEGATE_{name}": text for name, text in DEFAULTS.items()})
        TRUST.append(cast("ssl.SSLContext", trusting(settings)))
    config.addinivalue_line("markers", "system: needs installed programs or root")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if _CERTIFICATE in config.stash:
        shutil.rmtree(config.stash[_CERTIFICATE])


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


@pytest.fixture(scope="session", autouse=True)
def database_of_gates(request: pytest.FixtureRequest) -> None:
    """The server that the command line asks for; each gate gets a database of its own there."""
    for option in ("postgres", "pgbouncer"):
        if request.config.getoption(f"--{option}"):
            DEFAULTS["DATABASE_URL"] = request.getfixturevalue(f"{option}_server").database_url("{}")


@pytest.fixture(autouse=True)
def databases_dropped(database_of_gates: None) -> Iterator[None]:
    """What the gates of a test have stored is gone after it."""
    yield
    drop_databases()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether full counts are wanted."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate in this process with the default settings."""
    async with run_gate(tmp_path / "data") as running:
        yield running
