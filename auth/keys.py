"""The gate's own keys: which one signs tokens, and which ones verify them.

Every key has one algorithm (RFC 8725, 3.1), bound by its type and never by what a token says.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Struct

SECRET_MIN = 32
# Bits. Below, a key is weak (RFC 8725, 3.5); above, one signature costs milliseconds.
RSA_MIN = 2048
RSA_MAX = 8192

_JWK: dict[str, type[Algorithm]] = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm, "RS256": RSAAlgorithm}

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey


class ConfigurationError(ValueError):
    """A key, an issuer or a limit cannot be used as configured; the message says what was expected."""


class Key(Struct, frozen=True, eq=False):
    """A key with the one algorithm it is for. `signing`: None if it only verifies."""

    kid: str
    algorithm: str
    verifying: PublicKey | bytes
    signing: PrivateKey | bytes | None = None


class KeyRing:
    """An immutable set of keys by kid, of which one signs.

    `signing`: the kid of that one; by default the last key that can. ConfigurationError if there is
    none, or if two keys share a kid.
    """

    __slots__ = ("keys", "signing")

    def __init__(self, keys: Iterable[Key], signing: str | None = None) -> None:
        found: dict[str, Key] = {}
        for key in keys:
            if found.setdefault(key.kid, key) is not key:
                raise ConfigurationError(f"two keys have the id {key.kid!r}; expected each id once")
        able = [key for key in found.values() if key.signing is not None and signing in (None, key.kid)]
        if not able:
            wanted = "a key that signs" if signing is None else f"a key that signs with the id {signing!r}"
            raise ConfigurationError(f"expected {wanted} among the keys {sorted(found)}")
        self.keys: Mapping[str, Key] = MappingProxyType(found)
        self.signing = able[-1]

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """The public keys as a JWK set (RFC 7517, 5); secrets have no public part and are left out."""
        return {"keys": [_jwk(key) for key in self.keys.values() if key.algorithm != "HS256"]}


def secret_key(secret: str) -> Key:
    """An HS256 key of at least 32 bytes (RFC 7518, 3.2); its kid is taken from its hash."""
    data = secret.encode()
    if len(data) < SECRET_MIN:
        raise ConfigurationError(f"a secret of {len(data)} bytes; expected at least {SECRET_MIN} random ones")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(data)
    except jwt.InvalidKeyError as error:
        raise ConfigurationError(f"expected a random secret: {error}") from error
    kid = hashlib.sha256(b"tidegate kid " + data).hexdigest()[:16]
    return Key(kid, "HS256", data, data)


def load_secret(path: Path) -> Key:
    """The HS256 key kept in a file, which is made if it does not exist, readable by its owner only."""
    try:
        with suppress(FileExistsError):
            if not path.exists():
                _create(path, secrets.token_urlsafe(48))
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: expected a file with a secret: {error}") from error
    try:
        return secret_key(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def load_directory(path: Path) -> list[Key]:
    """The keys of all `*.pem` files in order of their names; the kid is the name without the ending.

    A private key signs and verifies, a public one verifies. Ed25519 is for EdDSA, P-256 for ES256,
    RSA of 2048 to 8192 bits for RS256; anything else is a ConfigurationError that names the file.
    """
    try:
        files = [(file, file.read_bytes()) for file in sorted(path.iterdir()) if file.suffix == ".pem"]
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a directory of key files: {error}") from error
    if not files:
        raise ConfigurationError(f"{path}: expected at least one *.pem file")
    return [_pem_key(file, data) for file, data in files]


def _create(path: Path, text: str) -> None:
    """Write a new file, whole or not at all; FileExistsError if another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a secret that tokens are signed with already.
        os.link(draft, path)
    finally:
        os.unlink(draft)


def _pem_key(path: Path, data: bytes) -> Key:
    try:
        private = load_pem_private_key(data, None) if b"PRIVATE KEY-----" in data else None
        public = private.public_key() if private is not None else load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path}: expected a public or an unencrypted private key: {error}"
        ) from error
    algorithm = _algorithm(public)
    if algorithm is None or not isinstance(public, PublicKey) or not isinstance(private, PrivateKey | None):
        raise ConfigurationError(
            f"{path}: expected an Ed25519, a P-256 or an RSA key of {RSA_MIN} to {RSA_MAX} bits"
        )
    return Key(path.stem, algorithm, public, private)


def _algorithm(public: object) -> str | None:
    match public:
        case Ed25519PublicKey():
            return "EdDSA"
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return "ES256"
        case RSAPublicKey(key_size=bits) if RSA_MIN <= bits <= RSA_MAX:
            return "RS256"
    return None


def _jwk(key: Key) -> dict[str, Any]:
    parameters = _JWK[key.algorithm].to_jwk(key.verifying, as_dict=True)
    # Beside "use" it says the same again (RFC 7517, 4.3).
    parameters.pop("key_ops", None)
    return {**parameters, "kid": key.kid, "alg": key.algorithm, "use": "sig"}
