import multiprocessing
import stat
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from auth.keys import ConfigurationError, Key, KeyRing, load_directory, load_secret, secret_key
from tests.auth.doubles import SECRET, Gate, claims, sign

Pems = dict[str, tuple[bytes, bytes]]


def test_a_secret_shorter_than_32_bytes_is_refused_and_the_error_says_what_was_expected() -> None:
    with pytest.raises(ConfigurationError, match="a secret of 31 bytes; expected at least 32"):
        secret_key("x" * 31)
    assert secret_key("x" * 32).algorithm == "HS256"


def test_key_material_of_another_kind_is_no_secret(pems: Pems) -> None:
    for text in (pems["RS256"][1].decode(), '{"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"}'):
        with pytest.raises(ConfigurationError, match="expected a random secret"):
            secret_key(text)


def test_the_kid_of_a_secret_is_stable_and_tells_nothing_else() -> None:
    assert secret_key("x" * 32).kid == secret_key("x" * 32).kid
    assert secret_key("x" * 32).kid != secret_key("y" * 32).kid
    assert len(secret_key("x" * 32).kid) == 16


def test_a_secret_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret"
    first = load_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secret(path).verifying == first.verifying
    assert [file.name for file in path.parent.iterdir()] == ["secret"]


def _kid(path: Path) -> str:
    return load_secret(path).kid


def test_processes_that_start_together_agree_on_one_secret(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for turn in range(10):
            assert len(set(pool.map(_kid, [tmp_path / f"secret{turn}"] * 4, chunksize=1))) == 1


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_a_bad_secret_file_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        load_secret(path)


def test_a_secret_path_that_cannot_be_read_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        load_secret(tmp_path)


def test_every_pem_file_is_a_key_with_the_algorithm_of_its_type(tmp_path: Path, pems: Pems) -> None:
    for name, (private, public) in pems.items():
        (tmp_path / f"{name}-private.pem").write_bytes(private)
        (tmp_path / f"{name}-public.pem").write_bytes(public)
    (tmp_path / "README").write_text("not a key")
    found = {key.kid: key for key in load_directory(tmp_path)}
    assert len(found) == 6
    for name in pems:
        assert found[f"{name}-private"].algorithm == found[f"{name}-public"].algorithm == name
        assert found[f"{name}-private"].signing is not None
        assert found[f"{name}-public"].signing is None


@pytest.mark.parametrize("name", ["EdDSA", "ES256", "RS256"])
def test_each_algorithm_signs_tokens_that_verify(keys: dict[str, Key], name: str) -> None:
    assert Gate(keys[name]).verifier.verify(sign(claims(), keys[name])).subject == "boiler"


def test_the_private_key_whose_file_sorts_last_signs_and_the_others_still_verify(
    tmp_path: Path, pems: Pems
) -> None:
    (tmp_path / "2026-01.pem").write_bytes(pems["ES256"][0])
    (tmp_path / "2026-02.pem").write_bytes(pems["EdDSA"][0])
    (tmp_path / "2026-03.pem").write_bytes(pems["RS256"][1])
    keys = load_directory(tmp_path)
    assert KeyRing(keys).signing.kid == "2026-02"
    assert KeyRing(keys, signing="2026-01").signing.kid == "2026-01"
    for key in keys[:2]:
        Gate(*keys).verifier.verify(sign(claims(), key))


def test_a_ring_without_a_key_that_signs_is_refused(tmp_path: Path, pems: Pems) -> None:
    (tmp_path / "only.pem").write_bytes(pems["RS256"][1])
    keys = load_directory(tmp_path)
    with pytest.raises(ConfigurationError, match="expected a key that signs among"):
        KeyRing(keys)
    with pytest.raises(ConfigurationError, match="with the id 'only'"):
        KeyRing([*keys, SECRET], signing="only")


def test_two_keys_with_one_id_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two keys have the id"):
        KeyRing([SECRET, Key(SECRET.kid, "HS256", b"x" * 32, b"x" * 32)])


def test_the_keys_of_a_ring_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        KeyRing([SECRET]).keys["other"] = SECRET  # type: ignore[index]


UNFIT: dict[str, PrivateKeyTypes] = {
    "rsa-1024": rsa.generate_private_key(65537, 1024),
    "p-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "ed448": ed448.Ed448PrivateKey.generate(),
    "x25519": x25519.X25519PrivateKey.generate(),
    "dsa": dsa.generate_private_key(2048),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_key_of_another_type_or_too_short_is_refused_by_file(tmp_path: Path, name: str) -> None:
    pem = UNFIT[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / f"{name}.pem").write_bytes(pem)
    with pytest.raises(ConfigurationError, match=rf"{name}\.pem: expected an Ed25519, a P-256 or an RSA key"):
        load_directory(tmp_path)


def test_a_file_that_is_no_key_or_encrypted_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("-----BEGIN PRIVATE KEY-----\nnothing\n")
    with pytest.raises(
        ConfigurationError, match=r"bad\.pem: expected a public or an unencrypted private key"
    ):
        load_directory(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "bad.pem").write_bytes(pem)
    with pytest.raises(
        ConfigurationError, match=r"bad\.pem: expected a public or an unencrypted private key"
    ):
        load_directory(tmp_path)


def test_a_directory_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected at least one \*\.pem"):
        load_directory(tmp_path)
    with pytest.raises(ConfigurationError, match="expected a directory"):
        load_directory(tmp_path / "nowhere")


def test_the_published_set_holds_public_keys_only_and_verifies_our_tokens(keys: dict[str, Key]) -> None:
    published = KeyRing([SECRET, *keys.values()]).jwks()["keys"]
    assert {jwk["kid"] for jwk in published} == set(keys)
    for jwk in published:
        assert jwk.keys().isdisjoint(("d", "p", "q", "dp", "dq", "qi", "k", "key_ops"))
        assert (jwk["use"], jwk["alg"]) == ("sig", jwk["kid"])
        token = sign(claims(), keys[jwk["kid"]])
        jwt.PyJWS().decode(token, jwt.PyJWK(jwk), [jwk["alg"]])
