"""Devices and accounts in PostgreSQL: the statements that write them."""

from storage import errors
from storage.accounts import CLIENT_COLUMNS, client_row
from storage.models import Client, Revocation
from storage.postgres.pool import Pool

_PUT_DEVICE = (
    "INSERT INTO tidegate.devices (device, name, labels, created_at, last_seen, last_offset) "
    "VALUES (%s, %s, %s, %s, 0, 0) "
    "ON CONFLICT (device) DO UPDATE SET name = excluded.name, labels = excluded.labels RETURNING xmax = 0"
)
_FORGET_DEVICE = "SELECT tidegate.forget_device(%s, %s)"
_ADD_CLIENT = (
    f"INSERT INTO tidegate.clients ({CLIENT_COLUMNS}) "
    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id"
)
_KEEP_LATER = (
    "ON CONFLICT (kind, id) DO UPDATE SET cutoff = greatest(r.cutoff, excluded.cutoff), "
    "expires = greatest(r.expires, excluded.expires) RETURNING id"
)
_REMOVE_CLIENT = (
    "WITH gone AS (DELETE FROM tidegate.clients WHERE id = %s RETURNING id) "
    "INSERT INTO tidegate.revocations AS r (kind, id, cutoff, expires) "
    f"SELECT %s, %s, %s, %s FROM gone {_KEEP_LATER}"
)
_REVOKE = (
    f"INSERT INTO tidegate.revocations AS r (kind, id, cutoff, expires) VALUES (%s, %s, %s, %s) {_KEEP_LATER}"
)


async def put_device(pool: Pool, device: str, name: str, labels: str, now: int) -> bool:
    """Register a device or change its name and labels (a JSON object); True if it is new."""
    new: bool = (await pool.fetch(_PUT_DEVICE, (device, name, labels, now)))[0][0]
    return new


async def forget_device(pool: Pool, device: str, *, readings: bool) -> None:
    """Forget a device, with `readings` also its series, whose rows are swept later. NotFound."""
    if not (await pool.fetch(_FORGET_DEVICE, (device, readings)))[0][0]:
        raise errors.NotFound(f"there is no device {device}")


async def add_client(pool: Pool, client: Client) -> None:
    """Store a new client; Conflict if the id is taken."""
    if not await pool.fetch(_ADD_CLIENT, client_row(client)):
        raise errors.Conflict(f"there is a client {client.id} already")


async def remove_client(pool: Pool, id: str, revocation: Revocation) -> None:
    """Remove a client and end its tokens in one transaction; NotFound if there is none."""
    if not await pool.fetch(_REMOVE_CLIENT, (id, *_row(revocation))):
        raise errors.NotFound(f"there is no client {id}")


async def revoke(pool: Pool, revocation: Revocation) -> None:
    """Remember an end to tokens."""
    await pool.fetch(_REVOKE, _row(revocation))


def _row(revocation: Revocation) -> tuple[str, str, int, int]:
    return revocation.kind, revocation.id, revocation.cutoff, revocation.expires
