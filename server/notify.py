"""Telling systemd how the service is: sd_notify(3), a datagram to the socket that it names."""

import asyncio
import socket
import time
from contextlib import suppress

from server.settings import Supervisor


class Notifier:
    """Without a supervisor it does nothing."""

    def __init__(self, supervisor: Supervisor) -> None:
        # A first @ stands for the abstract namespace.
        self._address = supervisor.address.replace("@", "\0", 1)
        self._watchdog = supervisor.watchdog

    def ready(self, status: str) -> None:
        """Started, or reloaded."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload has begun, which `ready` ends."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1", "STATUS=closing")

    def status(self, text: str) -> None:
        """A line for a person."""
        self._send(f"STATUS={text}")

    async def watch(self) -> None:
        """Say that the loop turns, as often as the supervisor wants to hear it."""
        while self._watchdog:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if self._address:
            # Whoever does not listen misses it.
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)
