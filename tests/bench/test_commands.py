"""Whatever interrupts the bench, no program that it started is left to nobody."""

import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench import commands


@dataclass
class Watch:
    """The programs that were started; `signals` come while one starts, before its owner has it."""

    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    signals: list[signal.Signals] = field(default_factory=list)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, popen = Watch(), subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*arguments, **options)
        watch.started.append(process)
        for each in watch.signals:
            os.kill(os.getpid(), each)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return watch


def test_a_program_says_what_it_found() -> None:
    done = commands.run(["cat"], 30, b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello", b"")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_program_starts_ends_it(how: signal.Signals, watch: Watch) -> None:
    watch.signals.append(how)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(how, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.run(["sleep", "60"], 30)
    finally:
        signal.signal(how, before[how])
    assert [each.returncode for each in watch.started] == [-signal.SIGKILL]
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_program_that_is_late_is_ended(watch: Watch) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        commands.run(["sleep", "60"], 0.1)
    assert [each.returncode for each in watch.started] == [-signal.SIGKILL]


def test_a_program_may_be_started_beside_the_main_thread() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(commands.run(["true"], 30).returncode))
    thread.start()
    thread.join(30)
    assert found == [0]
