"""Which storage engine the settings ask for."""

import time

from server.settings import Settings
from storage.engine import Engine
from storage.postgres.engine import PostgresEngine
from storage.sqlite.engine import SqliteEngine


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


async def open_engine(settings: Settings) -> Engine:
    """The engine of the settings, its schema up to date. StorageError if it cannot be used."""
    if not settings.database_url:
        return await SqliteEngine.open(settings.data, wall_clock)
    return await PostgresEngine.open(
        settings.database_url,
        wall_clock,
        synchronous=settings.database_synchronous,
        daily=settings.database_partitions == "day",
    )
