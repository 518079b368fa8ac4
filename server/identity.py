"""The gate's keys and the tokens it signs with them, as the settings have it."""

from collections.abc import Callable, Iterable

from auth.keys import KeyRing, load_directory, load_secret, secret_key
from auth.revocation import LIFETIME_MAX
from auth.tokens import TokenIssuer
from server.settings import Settings

SECRET_FILE = "jwt.secret"  # noqa: S105  (its name)


def key_ring(settings: Settings) -> KeyRing:
    """The keys: those of TIDEGATE_JWT_KEYS, of TIDEGATE_JWT_SECRET, else the one of the data directory.

    Reads files. ConfigurationError if one of them cannot be used.
    """
    keys = [secret_key(settings.jwt_secret)] if settings.jwt_secret else []
    if settings.jwt_keys is not None:
        keys += load_directory(settings.jwt_keys)
    if not keys:
        keys = [load_secret(settings.data / SECRET_FILE)]
    return KeyRing(keys, settings.jwt_signing_key or None)


def lifetime(settings: Settings) -> int:
    """Seconds that a token may live at most, whoever signed it with our key."""
    return max(LIFETIME_MAX, settings.token_ttl_max)


def token_issuer(
    settings: Settings, ring: KeyRing, cutoff: Callable[[str], int] = lambda _: 0
) -> TokenIssuer:
    """Signs the gate's tokens with the ring's signing key."""
    return TokenIssuer(
        ring.signing,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        lifetime=settings.token_ttl_max,
        cutoff=cutoff,
    )


def mint(settings: Settings, subject: str, scopes: Iterable[str], devices: Iterable[str], ttl: int) -> str:
    """A token made on the spot, for the command line. ValueError for a lifetime that is not allowed."""
    return token_issuer(settings, key_ring(settings)).issue(subject, scopes, devices, ttl)[0]
