from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from auth.keys import Key, PrivateKey, load_directory
from tests.auth.doubles import Gate


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="session")
def pems() -> dict[str, tuple[bytes, bytes]]:
    """By algorithm: a private and its public key in PEM. Made once, an RSA key takes long."""
    made: dict[str, PrivateKey] = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    return {
        name: (
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        )
        for name, key in made.items()
    }


@pytest.fixture(scope="session")
def keys(pems: dict[str, tuple[bytes, bytes]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    """A key that signs, by algorithm."""
    path: Path = tmp_path_factory.mktemp("keys")
    for name, (private, _) in pems.items():
        (path / f"{name}.pem").write_bytes(private)
    return {key.algorithm: key for key in load_directory(path)}
