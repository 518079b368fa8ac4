"""Clients and revocations: what every engine offers to keep them."""

from typing import Protocol

from storage.models import Client, Revocation


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
