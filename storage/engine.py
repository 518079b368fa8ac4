"""What a storage engine offers: the log, the devices, the accounts, and the upkeep of them all."""

from typing import Protocol

from storage.accounts import Accounts
from storage.commit import Appender
from storage.devices import Devices
from storage.log import Log


class Engine(Log, Devices, Accounts, Appender, Protocol):
    """One database. `migrated`: names of the migrations that opening it applied.

    Made by the `open` of each engine; used on one event loop.
    """

    migrated: list[str]

    async def sweep(self, oldest: int) -> None:
        """Remove readings of deleted devices, and those with a ts before `oldest` (0: none)."""

    async def ping(self) -> None:
        """Whether reading and writing are possible at all: Unavailable, Timeout."""

    async def close(self) -> None:
        """Finish what was submitted and let go of the database."""
