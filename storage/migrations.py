"""Numbered SQL files beside an engine: `0001_initial.sql`, `0002_...`, applied in order, once."""

import hashlib
import re
from importlib import resources

from msgspec import Struct

from storage.errors import StorageError

_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql", re.ASCII)


class MigrationError(StorageError):
    """The database and the migrations of this version do not fit together."""


class Migration(Struct, frozen=True):
    """One step of the schema. `checksum`: of its text, to notice an edited file."""

    number: int
    name: str
    sql: str
    checksum: str


def load(package: str) -> list[Migration]:
    """The migrations in the folder `migrations` of a package, numbered from 1 without a gap."""
    found = []
    for file in sorted(resources.files(package).joinpath("migrations").iterdir(), key=lambda f: f.name):
        named = _NAME.fullmatch(file.name)
        if named is None:
            continue
        sql = file.read_text("utf-8")
        found.append(Migration(int(named[1]), file.name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"the migrations of {package} are not numbered from 0001 without a gap")
    return found


def outstanding(known: list[Migration], applied: dict[int, str]) -> list[Migration]:
    """Those not applied yet. `applied`: checksum by number, as the database remembers them."""
    for migration in known:
        checksum = applied.get(migration.number)
        if checksum is not None and checksum != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it had been applied to this database")
    newest = max(applied, default=0)
    if newest > len(known):
        raise MigrationError(
            f"this database is at migration {newest}, this version of tidegate knows {len(known)}: "
            "run a newer version"
        )
    return known[newest:]
