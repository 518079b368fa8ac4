"""The keys of the gate and the tokens that it makes on the spot."""

from pathlib import Path

import jwt
import pytest

from auth.keys import ConfigurationError
from server.identity import SECRET_FILE, key_ring, lifetime, mint
from server.settings import Settings, load

SECRET = "s" * 32


def made(data: Path, **environment: str) -> Settings:
    return load({"TIDEGATE_DATA": str(data)} | {f"TIDEGATE_{name}": v for name, v in environment.items()})


def test_without_any_key_one_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = key_ring(made(data))
    assert (data / SECRET_FILE).stat().st_mode & 0o077 == 0
    assert key_ring(made(data)).signing.kid == first.signing.kid
    assert key_ring(made(tmp_path / "other")).signing.kid != first.signing.kid


def test_a_secret_of_the_settings_is_used_and_no_file_made(tmp_path: Path) -> None:
    token = mint(made(tmp_path, JWT_SECRET=SECRET), "me", ["admin"], ["a.>"], 60)
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="tidegate", issuer="tidegate")
    assert (claims["sub"], claims["scope"], claims["devices"]) == ("me", "admin", ["a.>"])
    assert claims["exp"] - claims["iat"] == 60
    assert not (tmp_path / SECRET_FILE).exists()


def test_issuer_and_audience_are_those_of_the_settings(tmp_path: Path) -> None:
    chosen = made(tmp_path, JWT_SECRET=SECRET, JWT_ISSUER="we", JWT_AUDIENCE="you")
    jwt.decode(mint(chosen, "me", [], [], 60), SECRET, algorithms=["HS256"], audience="you", issuer="we")


def test_a_lifetime_beyond_the_longest_is_refused(tmp_path: Path) -> None:
    chosen = made(tmp_path, TOKEN_TTL_MAX="1h")
    mint(chosen, "me", [], [], 3600)
    with pytest.raises(ValueError, match="lifetime"):
        mint(chosen, "me", [], [], 3601)


def test_revocations_are_kept_for_as_long_as_any_token_may_live(tmp_path: Path) -> None:
    for ttl in ("2h", "400d"):
        chosen = made(tmp_path, TOKEN_TTL_MAX=ttl)
        assert lifetime(chosen) >= chosen.token_ttl_max


def test_a_signing_key_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    chosen = made(tmp_path, JWT_KEYS=str(tmp_path / "keys"), JWT_SIGNING_KEY="nobody")
    with pytest.raises(ConfigurationError):
        key_ring(chosen)
