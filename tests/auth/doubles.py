"""What the tests of auth share: a clock that stands still, accounts in memory, tokens made by hand."""

from typing import Any

import jwt
import msgspec

from auth.keys import Key, KeyRing, secret_key
from auth.revocation import Revocations
from auth.tokens import TokenVerifier
from storage.errors import Conflict, NotFound
from storage.models import Client, Revocation
from tests.clock import NOW, Clock

ISSUER = "https://gate.example"
AUDIENCE = "tidegate"
SECRET = secret_key("a secret for tests, long enough for HS512 too: at least 64 bytes")


class MemoryAccounts:
    """Accounts as an engine keeps them, shared by the workers of a test."""

    def __init__(self) -> None:
        self.kept: dict[str, Client] = {}
        self.ended: dict[tuple[str, str], Revocation] = {}

    async def add_client(self, client: Client) -> None:
        if client.id in self.kept:
            raise Conflict(client.id)
        self.kept[client.id] = client

    async def client(self, id: str) -> Client | None:
        return self.kept.get(id)

    async def clients(self, after: str, limit: int) -> list[Client]:
        return [self.kept[id] for id in sorted(self.kept) if id > after][:limit]

    async def remove_client(self, id: str, revocation: Revocation) -> None:
        if self.kept.pop(id, None) is None:
            raise NotFound(id)
        await self.revoke(revocation)

    async def revoke(self, revocation: Revocation) -> None:
        self.ended[revocation.kind, revocation.id] = revocation

    async def revocations(self) -> list[Revocation]:
        return list(self.ended.values())


class Gate:
    """A verifier with its revocations, wired as the server wires them."""

    def __init__(self, *keys: Key, accounts: MemoryAccounts | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.ring = KeyRing(keys or (SECRET,))
        self.accounts = accounts or MemoryAccounts()
        self.revocations = Revocations(
            self.accounts, lambda: self.verifier.invalidate(), issuer=ISSUER, clock=self.clock
        )
        self.verifier = TokenVerifier(
            self.ring, self.revocations, issuer=ISSUER, audience=AUDIENCE, clock=self.clock, **options
        )


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, changed; `None` leaves one out."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "boiler",
        "iat": int(NOW),
        "exp": int(NOW) + 60,
        "jti": "one",
        "scope": "readings:write readings:read",
        "devices": ["acme.>"],
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def sign(payload: dict[str, Any] | bytes, key: Key = SECRET, **header: Any) -> str:
    """A token with this key's signature, whatever it says; `kid=None` leaves the kid out."""
    assert key.signing is not None
    named = {"kid": key.kid, **header}
    return jwt.PyJWS().encode(
        payload if isinstance(payload, bytes) else msgspec.json.encode(payload),
        key.signing,
        key.algorithm,
        {name: value for name, value in named.items() if value is not None},
    )
