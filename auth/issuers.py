"""Outside issuers: whose tokens are accepted too, by the keys that they publish (RFC 7517)."""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Raw, Struct

from auth.keys import RSA_MAX, RSA_MIN, ConfigurationError, Key
from storage import tasks

BODY_MAX = 256 * 1024
KEYS_MAX = 64
TIMEOUT = 5.0

# By kty and crv; the first is meant when a key names none. Symmetric keys are nobody's to publish.
_ALGORITHMS = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = frozenset(name for names in _ALGORITHMS.values() for name in names)


class Unusable(Exception):
    """What the issuer gave is not a usable set of keys, or not a usable key."""


class _Jwk(Struct):
    kty: str
    crv: str = ""
    kid: str = ""
    alg: str = ""
    use: str = "sig"
    key_ops: tuple[str, ...] = ("verify",)
    d: Raw | None = None


class _JwkSet(Struct):
    keys: list[Raw]


_decode_set = msgspec.json.Decoder(_JwkSet).decode
_decode_key = msgspec.json.Decoder(_Jwk).decode
_decode_members = msgspec.json.Decoder(dict[str, Any]).decode


class Issuer:
    """An outside issuer and its keys, fetched when needed and kept while it cannot be reached.

    `name`: the `iss` of its tokens. `audience`: what their `aud` must contain. `max_age`: seconds
    after which the keys are fetched anew. `cooldown`: seconds between two fetches at least, so that
    a flood of unknown kids is no flood of fetches. `clock`: monotonic, seconds. `changed`: called when
    other keys than before were fetched; the verifier sets it.
    ConfigurationError for a URL that is not https, unless its host is a loopback one.
    """

    def __init__(
        self,
        name: str,
        jwks_url: str,
        audience: str,
        session: aiohttp.ClientSession,
        *,
        max_age: float = 600.0,
        cooldown: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _is_safe(jwks_url):
            raise ConfigurationError(
                f"the key set URL {jwks_url!r}; expected https://, or http:// to a loopback host"
            )
        self.name = name
        self.audience = audience
        self.keys: Mapping[str, Key] = {}
        self.error = ""
        self.changed: Callable[[], None] = lambda: None
        self._url = jwks_url
        self._session = session
        self._max_age = max_age
        self._cooldown = cooldown
        self._clock = clock
        self._fetched = self._tried = float("-inf")
        self._flight: asyncio.Task[None] | None = None

    @property
    def rested(self) -> bool:
        """Whether a fetch may run: one is under way already, or the last lies long enough back."""
        return self._flight is not None or self._clock() >= self._tried + self._cooldown

    @property
    def stale(self) -> bool:
        """Whether the keys are older than their max age, or were never there."""
        return self._clock() >= self._fetched + self._max_age

    async def fetch(self) -> None:
        """Get the keys, once for all who ask meanwhile.

        Takes 5 s at most. Never fails: `error` says what went wrong the last time ("": nothing),
        the keys stay as they were. Does nothing within the cool-down.
        """
        if not self.rested:
            return
        if self._flight is None:
            self._tried = self._clock()
            self._flight = asyncio.create_task(self._load())
            self._flight.add_done_callback(self._land)
        # Whoever gives up waiting must not take the keys away from the others.
        await asyncio.shield(self._flight)

    async def close(self) -> None:
        """End a fetch under way."""
        if self._flight is not None:
            await tasks.end(self._flight)

    def _land(self, _: asyncio.Task[None]) -> None:
        self._flight = None

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                found = _read_keys(await self._download())
        except (aiohttp.ClientError, OSError, Unusable) as error:
            self.error = f"{type(error).__name__}: {error}"
            return
        self.error = ""
        self._fetched = self._clock()
        before, self.keys = (
            self.keys,
            {
                kid: known if (known := self.keys.get(kid)) is not None and _same(known, key) else key
                for kid, key in found.items()
            },
        )
        # Here and not where somebody waits, for nobody may be left who does.
        if before != self.keys:
            self.changed()

    async def _download(self) -> bytes:
        # A redirect could lead to any host, and a compressed answer to any size.
        request = self._session.get(
            self._url,
            allow_redirects=False,
            auto_decompress=False,
            headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
        )
        async with request as response:
            if response.status != 200:
                raise Unusable(f"status {response.status}; expected 200")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > BODY_MAX:
                    raise Unusable(f"more than {BODY_MAX} bytes")
            return bytes(body)


def _is_safe(url: str) -> bool:
    """Whether nobody on the way can put other keys in place."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return parts.scheme == "https" and host != ""


def _read_keys(body: bytes) -> dict[str, Key]:
    """The usable keys of a set by kid ("" for one without); Unusable if there are none."""
    try:
        members = _decode_set(body).keys
    except msgspec.DecodeError as error:
        raise Unusable(f"not a key set: {error}") from error
    if len(members) > KEYS_MAX:
        raise Unusable(f"{len(members)} keys; expected at most {KEYS_MAX}")
    found: dict[str, Key] = {}
    for member in members:
        try:
            key = _read_key(member)
        except Unusable:
            # A set may hold keys for others (RFC 7517, 5); those do not spoil the rest.
            continue
        found.setdefault(key.kid, key)
    if not found:
        raise Unusable(f"none of the {len(members)} keys can be used")
    return found


def _read_key(member: Raw) -> Key:
    try:
        jwk = _decode_key(member)
        algorithms = _ALGORITHMS.get((jwk.kty, jwk.crv), ())
        algorithm = jwk.alg or next(iter(algorithms), "")
        if algorithm not in algorithms:
            raise Unusable(f"algorithm {jwk.alg!r} with key type {jwk.kty!r}, curve {jwk.crv!r}")
        if jwk.use != "sig" or "verify" not in jwk.key_ops or jwk.d is not None:
            raise Unusable("not a public key that verifies signatures")
        public = jwt.PyJWK(_decode_members(member), algorithm).key
    except (jwt.PyJWTError, msgspec.DecodeError, UnsupportedAlgorithm, ValueError, OverflowError) as error:
        raise Unusable(str(error)) from error
    if isinstance(public, RSAPublicKey) and not RSA_MIN <= public.key_size <= RSA_MAX:
        raise Unusable(f"an RSA key of {public.key_size} bits; expected {RSA_MIN} to {RSA_MAX}")
    return Key(jwk.kid, algorithm, public)


def _same(known: Key, key: Key) -> bool:
    return known.algorithm == key.algorithm and known.verifying == key.verifying
