"""Devices and accounts in SQLite: the statements that write them. Done by `Writer.run`, in its thread."""

import apsw

from storage import errors
from storage.accounts import CLIENT_COLUMNS, client_row
from storage.models import Client, Revocation
from storage.sqlite.connection import transact

_PUT_DEVICE = (
    "INSERT INTO devices (device, name, labels, created_at, last_seen, last_offset) "
    "VALUES (?1, ?2, ?3, ?4, 0, 0) ON CONFLICT (device) DO UPDATE SET name = ?2, labels = ?3"
)
_KNOWN_DEVICE = "SELECT 1 FROM devices WHERE device = ?"
_REMOVE_DEVICE = "DELETE FROM devices WHERE device = ?"
_REMOVE_SERIES = "DELETE FROM series WHERE device = ?"
_DOOM = "INSERT INTO doomed (series) SELECT id FROM series WHERE device = ?"
_ADD_CLIENT = f"INSERT INTO clients ({CLIENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_KNOWN_CLIENT = "SELECT 1 FROM clients WHERE id = ?"
_REMOVE_CLIENT = "DELETE FROM clients WHERE id = ?"
_REVOKE = (
    "INSERT INTO revocations (kind, id, cutoff, expires) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (kind, id) DO UPDATE SET "
    "cutoff = max(cutoff, excluded.cutoff), expires = max(expires, excluded.expires)"
)


def put_device(connection: apsw.Connection, device: str, name: str, labels: str, now: int) -> bool:
    """Register a device or change its name and labels (a JSON object); True if it is new."""
    known = connection.execute(_KNOWN_DEVICE, (device,)).get
    transact(connection, (_PUT_DEVICE, (device, name, labels, now)))
    return known is None


def delete_device(connection: apsw.Connection, device: str, readings: bool) -> None:
    """Forget a device, with `readings` also its series, whose rows are swept later. NotFound."""
    known = connection.execute(_KNOWN_DEVICE, (device,)).get
    if known is None:
        raise errors.NotFound(f"there is no device {device}")
    statements: list[tuple[str, tuple[object, ...]]] = [(_REMOVE_DEVICE, (device,))]
    if readings:
        statements += [(_DOOM, (device,)), (_REMOVE_SERIES, (device,))]
    transact(connection, *statements)


def add_client(connection: apsw.Connection, client: Client) -> None:
    """Store a new client; Conflict if the id is taken."""
    if not transact(connection, (_ADD_CLIENT, client_row(client))):
        raise errors.Conflict(f"there is a client {client.id} already")


def remove_client(connection: apsw.Connection, id: str, revocation: Revocation) -> None:
    """Remove a client and end its tokens in one transaction; NotFound if there is none."""
    known = connection.execute(_KNOWN_CLIENT, (id,)).get
    if known is None:
        raise errors.NotFound(f"there is no client {id}")
    transact(connection, (_REMOVE_CLIENT, (id,)), _end(revocation))


def revoke(connection: apsw.Connection, revocation: Revocation) -> None:
    """Remember an end to tokens."""
    transact(connection, _end(revocation))


def _end(revocation: Revocation) -> tuple[str, tuple[object, ...]]:
    return _REVOKE, (revocation.kind, revocation.id, revocation.cutoff, revocation.expires)
