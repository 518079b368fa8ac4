"""Opening SQLite as the gate wants it, and its errors in our words."""

from pathlib import Path
from typing import Any

import apsw

from storage import errors, migrations

# Commits wait for the device (FULL); readers map a part of the file instead of copying pages.
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA mmap_size = 268435456",
    "PRAGMA cache_size = -32768",
    "PRAGMA journal_size_limit = 67108864",
)
# The WAL-reset corruption (fixed in 3.51.3) needs several connections in WAL mode: as here.
_SAFE_VERSION = 3_051_003


def open_writer(path: Path) -> apsw.Connection:
    """The one connection that writes; makes the file if there is none."""
    if apsw.SQLITE_VERSION_NUMBER < _SAFE_VERSION:
        raise errors.StorageError(
            f"SQLite {apsw.sqlite_lib_version()} may corrupt a WAL database; 3.51.3 or newer is needed"
        )
    try:
        connection = apsw.Connection(str(path))
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except apsw.Error as error:
        raise translate(error) from error
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """A connection that cannot write."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        for pragma in _PRAGMAS[2:6]:
            connection.execute(pragma)
        connection.execute("PRAGMA query_only = ON")
    except apsw.Error as error:
        raise translate(error) from error
    return connection


def migrate(connection: apsw.Connection) -> list[str]:
    """Apply what is outstanding, each file in a transaction of its own; the names of those applied."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations "
        "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT"
    )
    rows: list[Any] = connection.execute("SELECT number, checksum FROM migrations").fetchall()
    applied: dict[int, str] = dict(rows)
    names = []
    for migration in migrations.outstanding(migrations.load("storage.sqlite"), applied):
        with connection:
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO migrations VALUES (?, ?, ?)",
                (migration.number, migration.name, migration.checksum),
            )
        names.append(migration.name)
    return names


def transact(connection: apsw.Connection, *statements: tuple[str, tuple[object, ...]]) -> int:
    """Run the statements in one transaction; how many rows the first of them changed."""
    changes = []
    try:
        with connection:
            for sql, bindings in statements:
                connection.execute(sql, bindings)
                changes.append(connection.changes())
    except Exception as error:
        raise translate(error) from error
    return changes[0]


def translate(error: Exception) -> errors.StorageError:
    """The storage error that says the same as an error of SQLite."""
    match error:
        case apsw.FullError():
            return errors.Full("no space left for the database")
        case apsw.InterruptError():
            return errors.Timeout("the database did not answer within its deadline")
        case apsw.ConstraintError() | apsw.TooBigError() | apsw.MismatchError() | apsw.RangeError():
            return errors.Refused(f"the database refuses the value: {error}")
        case UnicodeEncodeError() | OverflowError() | TypeError():
            return errors.Refused(f"the database cannot hold the value: {error}")
        case _:
            return errors.Unavailable(f"the database failed: {error}")
