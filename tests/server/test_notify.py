"""What systemd is told, by the very datagrams of sd_notify(3)."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.notify import Notifier
from server.settings import Supervisor, supervisor
from tests.running import run_process
from tests.server.crowd import run_crowd, until


class Manager:
    """Stands in for systemd."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)
        self.heard: list[dict[str, str]] = []

    def take(self) -> list[dict[str, str]]:
        """Everything that was said."""
        while True:
            try:
                lines = self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in lines))

    def said(self, name: str) -> int:
        """How often."""
        return sum(name in message for message in self.take())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    yield manager
    manager.close()


def test_a_watchdog_for_another_process_is_none_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert supervisor() == Supervisor("/run/x", 3.0)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert supervisor() == Supervisor("/run/x", 3.0)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert supervisor() == Supervisor("/run/x", 0.0)


def test_names_without_a_file_are_meant_by_an_at_sign() -> None:
    manager = Manager(f"@tidegate-test-{os.getpid()}")
    Notifier(Supervisor(manager.address, 0.0)).ready("a status")
    assert manager.take() == [{"READY": "1", "STATUS": "a status"}]
    manager.close()


async def test_nobody_to_be_told_is_no_error(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nowhere")):
        notifier = Notifier(Supervisor(address, 0.0))
        notifier.ready("x")
        notifier.stopping()
        await notifier.watch()


async def test_one_process_says_when_it_is_ready_alive_and_stopping(tmp_path: Path, manager: Manager) -> None:
    async with run_process(tmp_path / "data") as gate:
        await until(lambda: manager.said("WATCHDOG") >= 3)
        assert manager.heard[0] == {"READY": "1", "STATUS": f"serving on {gate.url}"}
        gate.signal(signal.SIGTERM)
        assert await gate.ended() == 0
    assert manager.said("STOPPING") == 1


async def test_the_parent_alone_speaks_for_all_workers(
    tmp_path: Path, postgres_url: str, manager: Manager
) -> None:
    async with run_crowd(tmp_path, postgres_url) as crowd:
        await until(lambda: manager.said("WATCHDOG") >= 3)
        first = next(message for message in manager.heard if {"READY", "WATCHDOG"} & set(message))
        assert first == {"READY": "1", "STATUS": f"2 of 2 workers serve on {crowd.gate.url}"}
        assert manager.said("READY") == 1
        before = set(crowd.pids())
        crowd.gate.signal(signal.SIGHUP)
        await until(lambda: manager.said("READY") == 2)
        (reloading,) = [message for message in manager.heard if "RELOADING" in message]
        assert int(reloading["MONOTONIC_USEC"]) > 0
        # Who is on the way out may go without a word.
        await until(lambda: not before & set(crowd.pids()))
        heard = len(manager.take())
        os.kill(crowd.pids()[0], signal.SIGKILL)
        for state in ("1 of 2 workers serve", "2 of 2 workers serve"):
            await until(lambda state=state, heard=heard: state in str(manager.take()[heard:]))
            heard = next(n for n, message in enumerate(manager.heard) if n >= heard and state in str(message))
        crowd.gate.signal(signal.SIGTERM)
        assert await crowd.gate.ended() == 0
    await asyncio.sleep(0)
    assert manager.said("STOPPING") == 1
