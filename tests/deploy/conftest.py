"""What the tests of the deployment share: certificates, a gate behind nginx."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.certificates import certificate
from tests.deploy.nginx import PLAIN, Proxy, run_nginx
from tests.running import Caller, Running, run_gate


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    """A folder with tls.crt and tls.key for this machine, signed by itself."""
    folder = tmp_path / "nginx"
    folder.mkdir(exist_ok=True)
    certificate(folder, "tls")
    return folder


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate in this process that believes its proxy."""
    environment = {"TRUSTED_PROXIES": "127.0.0.1/32", "ACCESS_LOG": "1", "METRICS_TOKEN": "scrape", **PLAIN}
    async with run_gate(tmp_path / "data", **environment) as gate:
        yield gate


@pytest.fixture
async def proxy(tmp_path: Path, trusting: Running) -> AsyncIterator[Proxy]:
    """nginx before that gate."""
    async with run_nginx(tmp_path / "nginx", [trusting.port]) as running:
        yield running


@pytest.fixture
def through(proxy: Proxy, trusting: Running) -> Caller:
    """Requests to that gate by way of nginx."""
    return Caller(proxy.url, trusting.settings, trusting.session, trusting._issuer)
