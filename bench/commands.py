"""Programs that the bench starts: whatever interrupts it, each has an owner who ends it."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from bench.environment import LOAD_CORE, ROOT

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
# Seconds that the kernel gets to take away what was killed.
_PATIENCE = 15.0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM count at the end of the block, where the process that it starts has its owner.

    `subprocess` leaves a process to nobody if a handler raises while it starts it.
    """
    if threading.current_thread() is not threading.main_thread():
        # Handlers are called in the main thread only.
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {each: signal.signal(each, lambda *call: came.append(call)) for each in _INTERRUPTS}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number, _ in came:
            signal.raise_signal(number)


def run(
    command: Sequence[str],
    timeout: float,
    stdin: bytes = b"",
    variables: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """A program on the load core, to its end; subprocess.TimeoutExpired, and then it runs no more."""
    with contextlib.ExitStack() as stack:
        with uninterrupted():
            process = subprocess.Popen(
                ["taskset", "--cpu-list", str(LOAD_CORE), *command],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.callback(_end, process)
        said, complained = process.communicate(stdin, timeout)
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(_PATIENCE)
    for each in (process.stdin, process.stdout, process.stderr):
        if each is not None:
            with contextlib.suppress(OSError):
                each.close()
