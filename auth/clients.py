"""Machine accounts: an id and a secret that earn tokens with certain scopes and devices."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence

from auth.principal import SCOPES
from auth.revocation import LIFETIME_MAX
from storage.accounts import Accounts
from storage.models import Client
from storage.patterns import InvalidPattern, parse_pattern

DEVICES_MAX = 64
# Characters of all patterns together, so that they fit into a token of 4 KiB beside the rest.
DEVICES_SIZE_MAX = 1536

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# What the secret of an unknown client is compared with: no secret has this hash.
_NOBODY = bytes(32)


class InvalidClient(ValueError):
    """A client cannot be like this. `pointer`: the place in its description (RFC 6901)."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


class Credentials:
    """Makes clients and recognises them.

    `lifetime`: the longest that a token of theirs may live, in seconds. `clock`: seconds since 1970.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        lifetime: int = LIFETIME_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._accounts = accounts
        self._lifetime = lifetime
        self._clock = clock

    async def create(
        self, scopes: Sequence[str], devices: Sequence[str], id: str | None = None, ttl: int = 0
    ) -> tuple[Client, str]:
        """A new client and its secret, which nobody can find out later.

        `id`: made up if None. `ttl`: lifetime of its tokens in seconds, 0 for the default.
        InvalidClient; Conflict if the id is taken, and the other errors of storage.
        """
        if id is None:
            id = f"client-{secrets.token_hex(8)}"
        elif not _ID.fullmatch(id):
            raise InvalidClient(
                "/id", "expected 1 to 128 letters, digits, '.', '_' and '-', a letter or digit first"
            )
        _check_scopes(scopes)
        _check_devices(devices)
        if not 0 <= ttl <= self._lifetime:
            raise InvalidClient("/ttl", f"expected 0 to {self._lifetime} seconds")
        secret = secrets.token_urlsafe(32)
        client = Client(
            id=id,
            secret_hash=_hash(secret),
            scopes=tuple(dict.fromkeys(scopes)),
            devices=tuple(dict.fromkeys(devices)),
            ttl=ttl,
            created_at=int(self._clock() * 1_000_000),
        )
        await self._accounts.add_client(client)
        return client, secret

    async def authenticate(self, id: str, secret: str) -> Client | None:
        """The client whose id and secret these are. Errors of storage.

        The time it takes does not tell whether there is such a client.
        """
        if not _ID.fullmatch(id):
            return None
        client = await self._accounts.client(id)
        expected = _NOBODY if client is None else client.secret_hash
        return client if hmac.compare_digest(_hash(secret), expected) else None


def _hash(secret: str) -> bytes:
    # Fast on purpose: 256 random bits cannot be guessed, a slow hash would only serve an overload.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _check_scopes(scopes: Sequence[str]) -> None:
    for index, scope in enumerate(scopes):
        if scope not in SCOPES:
            raise InvalidClient(f"/scopes/{index}", f"expected one of {', '.join(SCOPES)}")


def _check_devices(devices: Sequence[str]) -> None:
    if len(devices) > DEVICES_MAX or sum(map(len, devices)) > DEVICES_SIZE_MAX:
        raise InvalidClient(
            "/devices", f"expected at most {DEVICES_MAX} patterns of {DEVICES_SIZE_MAX} characters together"
        )
    for index, device in enumerate(devices):
        try:
            parse_pattern(device)
        except InvalidPattern as error:
            raise InvalidClient(f"/devices/{index}", str(error)) from error
