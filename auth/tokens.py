"""Bearer tokens: JWTs (RFC 7519) in the compact form, verified as RFC 8725 asks, and issued."""

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import or_

import jwt
import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from auth.clients import DEVICES_MAX
from auth.grants import Grants
from auth.issuers import ALGORITHMS, Issuer
from auth.keys import ConfigurationError, Key, KeyRing
from auth.principal import SCOPES, Principal, Scope
from auth.revocation import LIFETIME_MAX, Revocations
from storage.patterns import InvalidPattern, parse_pattern

TOKEN_MAX = 4096
NAME_MAX = 256
# Seconds that the clock of an issuer may be ahead. Nothing lengthens a token's life, though.
LEEWAY = 30

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES = frozenset(("", "jwt", "at+jwt"))

_jws = jwt.PyJWS(sorted(ALGORITHMS | {"HS256"}))
# PyJWT signs and verifies. A token is taken apart here, once: the key depends on what it claims, so PyJWT's
# decoder would read it twice, and character by character, which makes it dear to refuse a wrong one.
_ALGORITHMS = {name: _jws.get_algorithm_by_name(name) for name in _jws.get_algorithms()}


class TokenError(Exception):
    """The token is not accepted.

    `code`: token_malformed, token_invalid, token_expired or token_revoked. `detail`: why, in plain
    ASCII and without a word of the token, so that it may stand in a header.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class KeyUnknown(Exception):
    """The key is not known yet: fetch those of `issuer`, then verify again."""

    def __init__(self, issuer: str) -> None:
        super().__init__(f"a key of {issuer} is not known yet")
        self.issuer = issuer


class Claims(Struct, frozen=True):
    """The claims that count (RFC 7519, 4.1; RFC 8693, 4.2); times in seconds since 1970."""

    iss: str
    aud: str | list[str]
    sub: str
    iat: float
    exp: float
    nbf: float | UnsetType = UNSET
    jti: str = ""
    scope: str = ""
    devices: tuple[str, ...] = ()


class _Refused(Struct):
    """Parameters that bring their own key, change how the rest is read, or must be understood.

    RFC 8725, 3.10.
    """

    b64: Raw | UnsetType = UNSET
    crit: Raw | UnsetType = UNSET
    jku: Raw | UnsetType = UNSET
    jwk: Raw | UnsetType = UNSET
    x5c: Raw | UnsetType = UNSET
    x5u: Raw | UnsetType = UNSET


class _Header(_Refused):
    """Parameters that count, beside those that are refused whatever they say."""

    alg: str = ""
    typ: str = ""
    kid: str | None = None

    @property
    def refused(self) -> bool:
        """Whether one of those is there."""
        return any(getattr(self, name) is not UNSET for name in _Refused.__struct_fields__)


class _Parts(Struct, frozen=True):
    """A token taken apart. `signed`: the bytes that `signature` is for."""

    header: _Header
    payload: bytes
    signed: bytes
    signature: bytes


class _Origin(Struct):
    iss: str


_decode_claims = msgspec.json.Decoder(Claims).decode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_origin = msgspec.json.Decoder(_Origin).decode
_encode = msgspec.json.Encoder().encode


class TokenVerifier:
    """Tells who holds a token.

    `issuer`, `audience`: the gate's own. `issuers`: whose tokens count besides. `clock`: seconds
    since 1970. `size`: how many verified tokens are remembered. `generation` grows with every change
    of keys or revocations: what was made of a token under an older one deserves a second look.
    """

    def __init__(
        self,
        ring: KeyRing,
        revocations: Revocations,
        *,
        issuer: str,
        audience: str,
        issuers: Iterable[Issuer] = (),
        clock: Callable[[], float] = time.time,
        size: int = 10_000,
    ) -> None:
        self.generation = 0
        self.hits = self.misses = self.evictions = 0
        self._ring = ring
        self._revocations = revocations
        self._issuer = issuer
        self._audience = audience
        self._issuers = {other.name: other for other in issuers}
        self._clock = clock
        self._size = size
        self._known: dict[str, tuple[Principal, int, Key]] = {}
        for other in self._issuers.values():
            other.changed = self.invalidate
        if issuer in self._issuers:
            raise ConfigurationError(f"the outside issuer {issuer!r} has the name of the gate's own")

    def verify(self, token: str) -> Principal:
        """Who holds this token. TokenError if nobody may; KeyUnknown if `fetch` may tell."""
        known = self._known.get(token)
        if known is not None and known[1] == self.generation and known[0].expires > self._clock():
            self.hits += 1
            return known[0]
        return self._verify_again(token)

    def invalidate(self) -> None:
        """Look twice at every token: keys or revocations have changed."""
        self.generation += 1

    def replace_keys(self, ring: KeyRing) -> None:
        """Accept the tokens of these keys, and of no others any more."""
        self._ring = ring
        self.invalidate()

    async def fetch(self, issuer: str) -> None:
        """Get the keys of an outside issuer, within 5 s and its cool-down. Never fails."""
        await self._issuers[issuer].fetch()

    async def refresh(self) -> None:
        """Renew the keys of outside issuers that are past their max age; to be called regularly."""
        await asyncio.gather(*(issuer.fetch() for issuer in self._issuers.values() if issuer.stale))

    async def close(self) -> None:
        """End what is being fetched."""
        await asyncio.gather(*(issuer.close() for issuer in self._issuers.values()))

    def _verify_again(self, token: str) -> Principal:
        now = self._clock()
        known = self._known.pop(token, None)
        # What was checked once holds for good, but for the time, the key and revocations.
        if known is not None and known[0].expires > now and self._keeps(known[0].issuer, known[2]):
            self.hits += 1
            principal, _, key = known
        else:
            self.misses += 1
            principal, key = self._check(token, now)
        if self._revocations.is_revoked(principal):
            raise TokenError("token_revoked", "the token was revoked")
        if len(self._known) >= self._size:
            del self._known[next(iter(self._known))]
            self.evictions += 1
        self._known[token] = (principal, self.generation, key)
        return principal

    def _keeps(self, issuer: str, key: Key) -> bool:
        return self._trust(issuer)[0].get(key.kid) is key

    def _trust(self, issuer: str) -> tuple[Mapping[str, Key], str]:
        """The keys and the audience that the tokens of an issuer must have."""
        if issuer == self._issuer:
            return self._ring.keys, self._audience
        other = self._issuers.get(issuer)
        if other is None:
            raise TokenError("token_invalid", "the issuer is not known here")
        return other.keys, other.audience

    def _check(self, token: str, now: float) -> tuple[Principal, Key]:
        parts = _parse(token)
        issuer, kid = _issuer(parts.payload), parts.header.kid
        keys, audience = self._trust(issuer)
        if kid is None and len(keys) == 1:
            kid = next(iter(keys))
        key = None if kid is None else keys.get(kid)
        if key is None:
            if issuer in self._issuers and self._issuers[issuer].rested:
                raise KeyUnknown(issuer)
            raise TokenError("token_invalid", "the key is not known here")
        claims = _open(parts, key)
        if audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise TokenError("token_invalid", "the audience is another one")
        if issuer == self._issuer and claims.exp - claims.iat > self._revocations.lifetime:
            raise TokenError("token_invalid", "the token lives longer than a revocation")
        return _principal(claims, now, self._issuer), key


class TokenIssuer:
    """Signs tokens of the gate.

    `lifetime`: the longest that one may live, in seconds. `cutoff`: up to which second those of a
    subject are revoked. `clock`: seconds since 1970.
    """

    def __init__(
        self,
        key: Key,
        *,
        issuer: str,
        audience: str,
        lifetime: int = LIFETIME_MAX,
        cutoff: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if key.signing is None:
            raise ConfigurationError(f"the key {key.kid!r} only verifies; expected one that signs")
        self._key = key
        self._signing = key.signing
        self._issuer = issuer
        self._audience = audience
        self._lifetime = lifetime
        self._cutoff = cutoff
        self._clock = clock

    def issue(
        self,
        subject: str,
        scopes: Iterable[str],
        devices: Iterable[str],
        ttl: float,
        token_id: str | None = None,
    ) -> tuple[str, Claims]:
        """A token for `ttl` seconds, cut to whole ones, and what it says.

        ValueError for a lifetime of less than a second or more than the longest, and for so many
        devices that the token would be longer than the gate accepts.
        """
        if not 1 <= ttl <= self._lifetime:
            raise ValueError(f"a lifetime of {ttl} s; expected 1 to {self._lifetime} s")
        # A subject that was removed and made again must not get tokens that are born revoked.
        issued = max(int(self._clock()), self._cutoff(subject) + 1)
        claims = Claims(
            iss=self._issuer,
            aud=self._audience,
            sub=subject,
            iat=issued,
            exp=issued + int(ttl),
            jti=secrets.token_hex(16) if token_id is None else token_id,
            scope=" ".join(scopes),
            devices=tuple(devices),
        )
        token = _jws.encode(_encode(claims), self._signing, self._key.algorithm, {"kid": self._key.kid})
        if len(token) > TOKEN_MAX:
            raise ValueError(f"the token has {len(token)} bytes; expected at most {TOKEN_MAX}")
        return token, claims


def _parse(token: str) -> _Parts:
    """What a token says, not yet true: enough to find the key."""
    if len(token) > TOKEN_MAX or not _COMPACT.fullmatch(token):
        raise TokenError("token_malformed", f"expected a compact JWT of at most {TOKEN_MAX} bytes")
    head, payload, signature = token.split(".")
    try:
        parts = _Parts(
            _decode_header(_decode_segment(head)),
            _decode_segment(payload),
            f"{head}.{payload}".encode(),
            _decode_segment(signature),
        )
    except msgspec.ValidationError as error:
        raise TokenError("token_invalid", "the header is not acceptable") from error
    except (ValueError, RecursionError) as error:
        raise TokenError("token_malformed", "expected base64url and JSON inside") from error
    if parts.header.typ.lower().removeprefix("application/") not in _TYPES:
        raise TokenError("token_invalid", "the token is of another type")
    if parts.header.refused:
        raise TokenError("token_invalid", "the header has a parameter that is refused")
    return parts


def _issuer(payload: bytes) -> str:
    """Who claims to have issued a token."""
    try:
        return _decode_origin(payload).iss
    except msgspec.ValidationError as error:
        raise TokenError("token_invalid", "the issuer is missing") from error
    except (ValueError, RecursionError) as error:
        raise TokenError("token_malformed", "expected base64url and JSON inside") from error


def _decode_segment(segment: str) -> bytes:
    """Base64url without padding, in the one form that is canonical (RFC 4648, 3.5); ValueError."""
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode():
        raise ValueError("expected canonical base64url")
    return data


def _open(parts: _Parts, key: Key) -> Claims:
    """The claims of a token that this key has signed."""
    algorithm = _ALGORITHMS[key.algorithm]
    if (
        parts.header.alg != key.algorithm
        or algorithm.check_key_length(key.verifying)
        or not algorithm.verify(parts.signed, key.verifying, parts.signature)
    ):
        raise TokenError("token_invalid", "the signature does not fit")
    try:
        return _decode_claims(parts.payload)
    except msgspec.DecodeError as error:
        raise TokenError("token_invalid", "a claim is missing or of the wrong type") from error


def _principal(claims: Claims, now: float, own: str) -> Principal:
    if not _is_name(claims.sub) or (claims.jti and not _is_name(claims.jti)):
        raise TokenError("token_invalid", f"sub and jti have at most {NAME_MAX} printable characters")
    if claims.iat > now + LEEWAY or (claims.nbf is not UNSET and claims.nbf > now + LEEWAY):
        raise TokenError("token_invalid", "the token is not valid yet")
    if len(claims.devices) > DEVICES_MAX:
        raise TokenError("token_invalid", f"more than {DEVICES_MAX} device patterns")
    try:
        grants = Grants(tuple(map(parse_pattern, claims.devices)))
    except InvalidPattern as error:
        raise TokenError("token_invalid", "a device pattern is invalid") from error
    if claims.exp <= now:
        raise TokenError("token_expired", "the token has expired")
    scopes = reduce(or_, (SCOPES.get(name, Scope.NONE) for name in claims.scope.split(" ")))
    # No printable name has a line break: an outside account is never one of ours.
    account = claims.sub if claims.iss == own else f"{claims.iss}\n{claims.sub}"
    return Principal(claims.sub, claims.iss, account, scopes, grants, claims.jti, claims.iat, claims.exp)


def _is_name(text: str) -> bool:
    """Whether it can stand in a log, a header of ours and a database."""
    return 0 < len(text) <= NAME_MAX and text.isprintable()
