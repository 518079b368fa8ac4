"""Opening SQLite as the gate wants it, and its errors in our words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from storage import errors, migrations

# How long a statement waits for another process that holds the database, a shell maybe.
BUSY_MILLISECONDS = 5_000
# The file is not mapped: a disk that fails under a mapped page kills the process.
_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA mmap_size = 0",
    "PRAGMA cache_size = -32768",
)
# Without these two an answer would promise more than is true, so they are read back. A commit waits
# for the device (FULL is 2).
_VITAL = (("journal_mode", "WAL", "wal"), ("synchronous", "FULL", 2))
# The WAL-reset corruption (fixed in 3.51.3) needs several connections in WAL mode: as here.
_SAFE_VERSION = 3_051_003


def open_writer(path: Path, vfs: str | None = None) -> apsw.Connection:
    """The one connection that writes; makes the file if there is none. `vfs`: of SQLite, its own if None."""
    if apsw.SQLITE_VERSION_NUMBER < _SAFE_VERSION:
        raise errors.StorageError(
            f"SQLite {apsw.sqlite_lib_version()} may corrupt a WAL database; 3.51.3 or newer is needed"
        )
    with contextlib.ExitStack() as stack:
        try:
            connection = apsw.Connection(str(path), vfs=vfs)
            stack.callback(connection.close, True)
            _configure(connection)
            for name, wanted, confirmed in _VITAL:
                connection.execute(f"PRAGMA {name} = {wanted}")
                if connection.execute(f"PRAGMA {name}").get != confirmed:
                    raise errors.StorageError(f"SQLite cannot have {name} {wanted} on {path}")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        except apsw.Error as error:
            raise translate(error) from error
        stack.pop_all()
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """A connection that cannot write. It joins the WAL at once, since the pragmas need the schema.

    While one is in, a writer that opens anew takes the WAL as the last commit left it; only the
    first one in recovers it, and might bring back a commit whose writers were told that it failed.
    """
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        _configure(connection)
        connection.execute("PRAGMA query_only = ON")
    except apsw.Error as error:
        raise translate(error) from error
    return connection


def _configure(connection: apsw.Connection) -> None:
    # Plans by the statement alone. Else the planner (built with STAT4) looks at what is bound, though
    # there are no statistics, and compiles a statement anew for each new binding: 4 us each time.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def migrate(connection: apsw.Connection) -> list[str]:
    """Apply what is outstanding, each file in a transaction of its own; the names of those applied."""
    names = []
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT"
        )
        rows: list[Any] = connection.execute("SELECT number, checksum FROM migrations").fetchall()
        for migration in migrations.outstanding(migrations.load("storage.sqlite"), dict(rows)):
            with transaction(connection):
                connection.execute(migration.sql)
                connection.execute(
                    "INSERT INTO migrations VALUES (?, ?, ?)",
                    (migration.number, migration.name, migration.checksum),
                )
            names.append(migration.name)
    except apsw.Error as error:
        raise translate(error) from error
    return names


@contextlib.contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """All that is done inside, or nothing. Errors go out as they are."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, a full disk among them, SQLite may have rolled back by itself.
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("ROLLBACK")
        raise


def transact(connection: apsw.Connection, *statements: tuple[str, tuple[object, ...]]) -> int:
    """Run the statements in one transaction; how many rows the first of them changed."""
    changes = []
    with transaction(connection):
        for sql, bindings in statements:
            connection.execute(sql, bindings)
            changes.append(connection.changes())
    return changes[0]


def is_doubtful(error: Exception) -> bool:
    """Whether after this error a connection may believe something else than what is on disk."""
    return isinstance(error, apsw.IOError | apsw.CorruptError | apsw.CantOpenError | apsw.NotADBError)


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
