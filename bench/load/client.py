"""Clients of the bench's own: modules that are run in a process on the load core and print JSON."""

import sys
from typing import TypeVar

import msgspec

from bench import commands
from bench.load.wrk import Void

T = TypeVar("T")


def run(module: str, arguments: list[str], timeout: float, answer: type[T], stdin: bytes = b"") -> T:
    """What the module found; Void with the last line of its complaint if an answer was bad."""
    done = commands.run([sys.executable, "-m", module, *arguments], timeout, stdin)
    if done.returncode:
        raise Void(done.stderr.decode().strip().rpartition("\n")[2])
    return msgspec.json.decode(done.stdout, type=answer)
