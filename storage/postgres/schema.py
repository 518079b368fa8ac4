"""The schema of PostgreSQL: migrations, one process at a time."""

import asyncio

from storage import migrations
from storage.errors import Conflict, StorageError
from storage.postgres.pool import Pool

# Held to the end of a transaction, so that it means the same through pgbouncer ("tidegate" in ASCII).
_LOCK = "SELECT pg_advisory_xact_lock(8388346160146998373)"
_CHECK = (
    "SELECT current_setting('server_encoding'), current_setting('default_transaction_isolation'), "
    "current_setting('server_version_num')::integer"
)
_PREPARED = "SELECT to_regclass('tidegate.migrations') IS NOT NULL"
_PREPARE = (
    f"{_LOCK}; CREATE SCHEMA IF NOT EXISTS tidegate; CREATE TABLE IF NOT EXISTS tidegate.migrations "
    "(number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
)
_APPLIED = "SELECT number, checksum FROM tidegate.migrations ORDER BY number"
_APPLY = f"{_LOCK}; INSERT INTO tidegate.migrations VALUES (%s, %s, %s);"
# The oldest version whose planner and functions are enough.
_VERSION = 130_000


async def migrate(pool: Pool) -> list[str]:
    """Apply what is outstanding, each file in a transaction of its own; the names of those applied here.

    Others may do the same at the same time. StorageError if this database cannot be used.
    """
    encoding, isolation, version = (await pool.fetch(_CHECK))[0]
    if version < _VERSION:
        raise StorageError(f"PostgreSQL {version // 10_000} is too old; 13 or newer is needed")
    if encoding != "UTF8":
        raise StorageError(f"the database has the encoding {encoding}; UTF8 is needed")
    if isolation != "read committed":
        raise StorageError(f"the database's default isolation is {isolation}; read committed is needed")
    if not (await pool.fetch(_PREPARED))[0][0]:
        await pool.fetch(_PREPARE)
    known = await asyncio.to_thread(migrations.load, "storage.postgres")
    names: list[str] = []
    while left := migrations.outstanding(known, dict(await pool.fetch(_APPLIED))):
        step = left[0]
        try:
            sql = _APPLY + step.sql.replace("%", "%%")
            await pool.fetch(sql, (step.number, step.name, step.checksum))
        except Conflict:
            # Another process was faster.
            continue
        names.append(step.name)
    return names
