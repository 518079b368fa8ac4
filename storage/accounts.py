"""Clients and revocations: what every engine offers to keep them."""

from typing import Any, Protocol

from storage.models import Client, Revocation

# The columns of a client, in the order of its row.
CLIENT_COLUMNS = "id, secret_hash, scopes, devices, ttl, created_at"


def client_row(client: Client) -> tuple[str, bytes, str, str, int, int]:
    """A client as its columns hold it: scopes and devices are words."""
    scopes, devices = " ".join(client.scopes), " ".join(client.devices)
    return client.id, client.secret_hash, scopes, devices, client.ttl, client.created_at


def read_client(row: tuple[Any, ...]) -> Client:
    """The client of a row."""
    id, secret_hash, scopes, devices, ttl, created_at = row
    # PostgreSQL's driver gives a memoryview.
    return Client(id, bytes(secret_hash), tuple(scopes.split()), tuple(devices.split()), ttl, created_at)


class Accounts(Protocol):
    """Machine accounts and ended tokens. Every call has a deadline; errors: Unavailable, Timeout, Full."""

    async def add_client(self, client: Client) -> None:
        """Store a new client; Conflict if the id is taken."""

    async def client(self, id: str) -> Client | None:
        """The client with this id."""

    async def clients(self, after: str, limit: int) -> list[Client]:
        """Clients with an id greater than `after`, in order of id."""

    async def remove_client(self, id: str, revocation: Revocation) -> None:
        """Remove a client and end its tokens in one transaction; NotFound if there is none."""

    async def revoke(self, revocation: Revocation) -> None:
        """Remember an end to tokens; a second one of the same kind and id keeps the later cutoff."""

    async def revocations(self) -> list[Revocation]:
        """All that have not expired."""
