"""The unit for systemd, as systemd itself reads it."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from server.serving import EXIT_WITHIN
from server.settings import PREFIX, load
from tests.running import ROOT

UNIT = ROOT / "deploy" / "tidegate.service"
COMMAND = "/opt/tidegate/bin/tidegate"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there: verify looks for it."""
    path = tmp_path / UNIT.name
    assert f"ExecStart={COMMAND} serve\n" in UNIT.read_text()
    path.write_text(UNIT.read_text().replace(COMMAND, sys.executable))
    return path


@pytest.mark.system
def test_systemd_has_nothing_to_complain_of(unit: Path) -> None:
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.system
def test_the_service_is_locked_up(unit: Path) -> None:
    """An exposure of 1.4 of 10, as systemd counts; without the hardening it is 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stdout


def test_it_fits_what_the_gate_does() -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(UNIT.read_text())
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"].endswith("-HUP $MAINPID")
    # Promise 10 has its time before systemd kills.
    assert float(service["TimeoutStopSec"].removesuffix("s")) > EXIT_WITHIN
    # The parent ends the workers itself.
    assert service["KillMode"] == "mixed"
    name, value = service["Environment"].split("=")
    assert name.startswith(PREFIX)
    assert load({name: value}).data == Path("/var/lib/tidegate")
    assert int(service["LimitNOFILE"]) > load({}).max_connections
