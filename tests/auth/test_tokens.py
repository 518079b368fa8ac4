import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from auth.keys import ConfigurationError, Key, KeyRing, secret_key
from auth.principal import Scope
from auth.tokens import TOKEN_MAX, TokenError, TokenIssuer, TokenVerifier
from storage.models import Client
from tests.auth.doubles import AUDIENCE, ISSUER, SECRET, Gate, claims, sign
from tests.clock import NOW, Clock

OTHER = secret_key("another secret of at least 32 bytes")


def refusal(verifier: TokenVerifier, token: str) -> str:
    """The code that a token is refused with; it must stay refused, and the reason fit into a header."""
    for _ in range(2):
        with pytest.raises(TokenError) as caught:
            verifier.verify(token)
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()
    return caught.value.code


def encoded(part: dict[str, Any] | bytes) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], secret: Any = SECRET.signing) -> str:
    """A token with a good HMAC by SHA-256, whatever its header says."""
    text = f"{encoded(header)}.{encoded(claims())}"
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(text.encode(), secret)
    return f"{text}.{encoded(mac)}"


# -- what a good token says -----------------------------------------------------------------------


def test_a_good_token_tells_who_may_do_what_where_and_until_when(gate: Gate) -> None:
    principal = gate.verifier.verify(sign(claims()))
    assert (principal.subject, principal.issuer, principal.token_id) == ("boiler", ISSUER, "one")
    assert principal.scopes == Scope.READINGS_WRITE | Scope.READINGS_READ
    assert principal.grants.allow("acme.plant7")
    assert not principal.grants.allow("beta.plant7")
    assert (principal.issued, principal.expires) == (NOW, NOW + 60)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["other", AUDIENCE]},
        {"jti": None},
        {"nbf": NOW - 1.5},
        {"iat": NOW + 30, "nbf": NOW + 30},
        {"extra": {"nested": [1, None]}},
        {"sub": "x" * 256},
    ],
)
def test_optional_and_unknown_claims_do_no_harm(gate: Gate, changes: dict[str, Any]) -> None:
    assert gate.verifier.verify(sign(claims(**changes))).issuer == ISSUER


def test_unknown_scopes_are_ignored_and_a_token_without_devices_has_none(gate: Gate) -> None:
    principal = gate.verifier.verify(sign(claims(scope="profile admin  admin_", devices=None)))
    assert principal.scopes == Scope.ADMIN
    assert not principal.grants.allow("acme")
    assert gate.verifier.verify(sign(claims(scope=None))).scopes == Scope.NONE


@pytest.mark.parametrize("typ", ["", "JWT", "jwt", "at+jwt", "application/at+jwt", "Application/AT+JWT"])
def test_the_types_of_access_tokens_are_accepted(gate: Gate, typ: str) -> None:
    assert gate.verifier.verify(sign(claims(), typ=typ)).subject == "boiler"


# -- RFC 8725, one refusal each -------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NonE", "NONE", "", None, ["HS256"], 1])
def test_a_token_without_a_signature_algorithm_is_refused(gate: Gate, alg: Any) -> None:
    head = encoded({"alg": alg, "kid": SECRET.kid})
    assert refusal(gate.verifier, f"{head}.{encoded(claims())}.") == "token_malformed"
    for signature in ("AAAA", sign(claims()).rpartition(".")[2]):
        assert refusal(gate.verifier, f"{head}.{encoded(claims())}.{signature}") == "token_invalid"


def test_the_public_key_is_no_secret(keys: dict[str, Key]) -> None:
    key = keys["RS256"]
    assert not isinstance(key.verifying, bytes)
    for form in (Encoding.PEM, Encoding.DER):
        public = key.verifying.public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
        token = by_hand({"alg": "HS256", "kid": key.kid}, public)
        assert refusal(Gate(key).verifier, token) == "token_invalid"


@pytest.mark.parametrize("alg", ["HS384", "HS512", "RS256", "ES256", "EdDSA"])
def test_a_key_is_used_with_its_own_algorithm_only(gate: Gate, keys: dict[str, Key], alg: str) -> None:
    signing = keys[alg].signing if alg in keys else SECRET.signing
    assert signing is not None
    token = jwt.PyJWS().encode(json.dumps(claims()).encode(), signing, alg, {"kid": SECRET.kid})
    gate.verifier.replace_keys(KeyRing([SECRET, *keys.values()]))
    assert refusal(gate.verifier, token) == "token_invalid"


@pytest.mark.parametrize("header", [{"alg": "HS512"}, {"alg": "none"}, {"alg": "hs256"}, {"alg": ""}, {}])
def test_a_good_signature_under_another_algorithm_is_refused(gate: Gate, header: dict[str, str]) -> None:
    assert refusal(gate.verifier, by_hand({**header, "kid": SECRET.kid})) == "token_invalid"


def test_a_signature_of_another_key_is_refused(gate: Gate) -> None:
    assert refusal(gate.verifier, sign(claims(), OTHER, kid=SECRET.kid)) == "token_invalid"


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "iat", "exp"])
def test_a_token_without_a_required_claim_is_refused(gate: Gate, name: str) -> None:
    assert refusal(gate.verifier, sign(claims(**{name: None}))) == "token_invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": ISSUER + "/"},
        {"iss": [ISSUER]},
        {"aud": "other"},
        {"aud": []},
        {"aud": AUDIENCE + "x"},
        {"aud": {AUDIENCE: True}},
        {"sub": ""},
        {"sub": "x" * 257},
        {"sub": "line\nbreak"},
        {"sub": "nul\0"},
        {"sub": 7},
        {"jti": "x" * 257},
        {"jti": 7},
        {"iat": NOW + 31},
        {"iat": str(NOW)},
        {"nbf": NOW + 31},
        {"nbf": "soon"},
        {"exp": str(NOW + 60)},
        {"exp": True},
        {"exp": NOW + 400 * 86_400},
        {"scope": ["admin"]},
        {"devices": "acme.>"},
        {"devices": ["acme.>", "not a pattern"]},
        {"devices": ["a"] * 65},
    ],
)
def test_a_token_with_a_bad_claim_is_refused(gate: Gate, changes: dict[str, Any]) -> None:
    assert refusal(gate.verifier, sign(claims(**changes))) == "token_invalid"


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, -1])
def test_an_expired_token_is_refused_without_leeway(gate: Gate, exp: float) -> None:
    assert refusal(gate.verifier, sign(claims(exp=exp))) == "token_expired"


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": True},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/chain.pem"},
        {"x5c": ["MIIB"]},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"b64": True},
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"typ": 1},
    ],
)
def test_a_header_that_brings_keys_or_asks_for_more_is_refused(gate: Gate, header: dict[str, Any]) -> None:
    assert refusal(gate.verifier, by_hand({"alg": "HS256", "kid": SECRET.kid, **header})) == "token_invalid"


def test_an_unencoded_payload_is_refused(gate: Gate) -> None:
    assert isinstance(SECRET.signing, bytes)
    token = jwt.PyJWS().encode(json.dumps(claims()).encode(), SECRET.signing, is_payload_detached=True)
    assert refusal(gate.verifier, token) == "token_malformed"
    head, _, mac = token.split(".")
    assert refusal(gate.verifier, f"{head}.{encoded(claims())}.{mac}") == "token_invalid"


@pytest.mark.parametrize(
    "kid", ["unknown", "", "../../dev/null", "/dev/null", "' OR 1=1 --", SECRET.kid + "\0"]
)
def test_the_kid_picks_from_the_known_keys_and_is_never_a_path(gate: Gate, kid: str) -> None:
    assert refusal(gate.verifier, sign(claims(), kid=kid)) == "token_invalid"


@pytest.mark.parametrize("head", [b"null", b"[]", b'"x"', b'{"typ":1}', b"[" * 2000, b'{"x":' * 500])
def test_a_header_that_is_no_set_of_parameters_is_refused(gate: Gate, head: bytes) -> None:
    assert refusal(gate.verifier, f"{encoded(head)}.{encoded(claims())}.AAAA") in (
        "token_malformed",
        "token_invalid",
    )


@pytest.mark.parametrize("kid", [1, ["x"], {}])
def test_a_kid_that_is_no_text_is_refused(gate: Gate, kid: Any) -> None:
    head = encoded({"alg": "HS256", "kid": kid})
    assert refusal(gate.verifier, f"{head}.{encoded(claims())}.AAAA") == "token_invalid"


def test_a_token_without_kid_is_accepted_only_where_there_is_one_key(gate: Gate) -> None:
    token = sign(claims(), kid=None)
    assert gate.verifier.verify(token).subject == "boiler"
    assert refusal(Gate(SECRET, OTHER).verifier, token) == "token_invalid"


def test_a_key_too_short_for_its_algorithm_verifies_nothing() -> None:
    weak = Key("weak", "HS256", b"short", b"short")
    token = by_hand({"alg": "HS256", "kid": "weak"}, b"short")
    assert refusal(Gate(weak).verifier, token) == "token_invalid"


def test_a_token_longer_than_4_kib_is_refused(gate: Gate) -> None:
    def padded(size: int) -> str:
        return sign(claims(extra="x" * size))

    size = next(size for size in range(2000, 4000) if len(padded(size)) > TOKEN_MAX)
    assert gate.verifier.verify(padded(size - 1)).subject == "boiler"
    assert refusal(gate.verifier, padded(size)) == "token_malformed"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "a.b.c.d.e",
        "é.é.é",
        "a b.c.d",
        "AAAA.AAAA.AAAA",
        "!.!.!",
        "e30.e30.AAB",
        "e30.e30.A",
    ],
)
def test_what_is_not_a_compact_jwt_is_malformed(gate: Gate, token: str) -> None:
    assert refusal(gate.verifier, token) == "token_malformed"


@pytest.mark.parametrize("change", ["{}=", "{}\n", " {}", "{}.", "{}A"])
def test_a_token_has_one_spelling(gate: Gate, change: str) -> None:
    token = sign(claims())
    gate.verifier.verify(token)
    assert refusal(gate.verifier, change.format(token)) in ("token_malformed", "token_invalid")


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"{", b'"x"', b"\xff", b"[" * 2000])
def test_a_payload_that_is_no_set_of_claims_is_refused(gate: Gate, payload: bytes) -> None:
    assert refusal(gate.verifier, sign(payload)) in ("token_malformed", "token_invalid")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["iss", "aud", "sub", "iat", "exp", "nbf", "jti", "scope", "devices"])
parameters = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "cty"])


@given(st.dictionaries(parameters, json_values), st.dictionaries(names, json_values), st.binary(max_size=80))
def test_whatever_a_token_says_it_is_refused_with_a_code_unless_it_is_signed(
    header: dict[str, Any], changes: dict[str, Any], signature: bytes
) -> None:
    verifier = Gate().verifier
    head = {"alg": "HS256", "kid": SECRET.kid, **header}
    refusal(verifier, f"{encoded(head)}.{encoded({**claims(), **changes})}.{encoded(signature)}")


@given(st.dictionaries(names, json_values))
def test_signed_claims_of_any_kind_give_a_principal_or_a_code(changes: dict[str, Any]) -> None:
    try:
        principal = Gate().verifier.verify(sign(json.dumps({**claims(), **changes}).encode()))
    except TokenError:
        return
    assert principal.expires > NOW


@given(st.text(max_size=60) | st.from_regex(r"[\w-]+\.[\w-]+\.[\w-]+", fullmatch=True))
def test_any_text_is_refused_with_a_code(text: str) -> None:
    refusal(Gate().verifier, text)


# -- the memory of verified tokens ----------------------------------------------------------------


def test_a_known_token_is_verified_once(gate: Gate) -> None:
    token = sign(claims())
    assert gate.verifier.verify(token) is gate.verifier.verify(token)
    assert (gate.verifier.hits, gate.verifier.misses) == (1, 1)


def test_a_known_token_expires_to_the_second(gate: Gate) -> None:
    token = sign(claims())
    gate.verifier.verify(token)
    gate.clock.now = NOW + 59.999
    gate.verifier.verify(token)
    gate.clock.now = NOW + 60
    assert refusal(gate.verifier, token) == "token_expired"


async def test_a_known_token_ends_with_its_revocation_and_the_others_live_on(gate: Gate) -> None:
    ended, other = sign(claims()), sign(claims(jti="two"))
    principal = gate.verifier.verify(ended)
    gate.verifier.verify(other)
    await gate.revocations.revoke_token(principal.token_id, principal.expires)
    assert refusal(gate.verifier, ended) == "token_revoked"
    gate.verifier.verify(other)


def test_a_known_token_ends_with_its_key(gate: Gate) -> None:
    token = sign(claims())
    gate.verifier.verify(token)
    gate.verifier.replace_keys(KeyRing([OTHER]))
    assert refusal(gate.verifier, token) == "token_invalid"


def test_a_key_of_the_same_name_does_not_inherit_the_known_tokens(gate: Gate) -> None:
    token = sign(claims())
    gate.verifier.verify(token)
    gate.verifier.replace_keys(KeyRing([Key(SECRET.kid, "HS256", OTHER.verifying, OTHER.signing)]))
    assert refusal(gate.verifier, token) == "token_invalid"


def test_keys_rotate_without_refusing_the_tokens_of_the_old_one(gate: Gate) -> None:
    old, new = sign(claims()), sign(claims(), OTHER)
    gate.verifier.verify(old)
    gate.verifier.replace_keys(KeyRing([SECRET, OTHER]))
    gate.verifier.verify(old)
    gate.verifier.verify(new)
    gate.verifier.replace_keys(KeyRing([OTHER]))
    assert refusal(gate.verifier, old) == "token_invalid"
    gate.verifier.verify(new)


def test_every_change_of_keys_or_revocations_changes_the_generation(gate: Gate) -> None:
    before = gate.verifier.generation
    gate.verifier.replace_keys(gate.ring)
    assert gate.verifier.generation > before


def test_an_older_entry_is_looked_at_again_once(gate: Gate) -> None:
    token = sign(claims())
    gate.verifier.verify(token)
    gate.verifier.invalidate()
    gate.verifier.verify(token)
    assert gate.verifier._known[token][1] == gate.verifier.generation


def test_the_memory_is_bounded_and_the_oldest_goes_first() -> None:
    verifier = Gate(size=3).verifier
    tokens = [sign(claims(jti=str(number))) for number in range(5)]
    for token in tokens:
        verifier.verify(token)
    assert list(verifier._known) == tokens[2:]
    assert (verifier.misses, verifier.evictions) == (5, 2)
    verifier.verify(tokens[4])
    assert verifier.hits == 1


def test_failures_are_never_remembered(gate: Gate) -> None:
    refusal(gate.verifier, sign(claims(exp=NOW - 1)))
    refusal(gate.verifier, sign(claims(), OTHER))
    assert not gate.verifier._known


# -- issuing --------------------------------------------------------------------------------------


def issuer(key: Key = SECRET, **options: Any) -> TokenIssuer:
    return TokenIssuer(key, issuer=ISSUER, audience=AUDIENCE, clock=Clock(NOW + 0.7), **options)


@pytest.mark.parametrize("name", ["HS256", "EdDSA", "ES256", "RS256"])
def test_an_issued_token_verifies_and_says_what_was_asked_for(keys: dict[str, Key], name: str) -> None:
    key = {"HS256": SECRET, **keys}[name]
    token, said = issuer(key).issue("boiler", ["readings:read", "admin"], ["acme.>"], 60.9)
    principal = Gate(key).verifier.verify(token)
    assert (principal.subject, principal.scopes) == ("boiler", Scope.READINGS_READ | Scope.ADMIN)
    assert principal.grants.allow("acme.x")
    assert (principal.token_id, principal.expires) == (said.jti, said.exp)
    assert jwt.get_unverified_header(token) == {"alg": name, "kid": key.kid, "typ": "JWT"}
    payload = jwt.decode(token, options={"verify_signature": False})
    assert payload == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "boiler",
        "iat": int(NOW),
        "exp": int(NOW) + 60,
        "jti": said.jti,
        "scope": "readings:read admin",
        "devices": ["acme.>"],
    }
    assert isinstance(payload["exp"], int)


def test_token_ids_are_unique_unless_they_are_given() -> None:
    assert len({issuer().issue("x", [], [], 60)[1].jti for _ in range(100)}) == 100
    assert issuer().issue("x", [], [], 60, token_id="mine")[1].jti == "mine"


async def test_a_client_made_again_gets_tokens_that_are_not_born_revoked(gate: Gate) -> None:
    tokens = TokenIssuer(
        SECRET, issuer=ISSUER, audience=AUDIENCE, cutoff=gate.revocations.cutoff, clock=gate.clock
    )
    for _ in range(3):
        await gate.accounts.add_client(Client("boiler", b"", (), (), 0, 0))
        token, _ = tokens.issue("boiler", [], [], 60)
        gate.verifier.verify(token)
        await gate.revocations.remove_client("boiler")
        assert refusal(gate.verifier, token) == "token_revoked"


@pytest.mark.parametrize("ttl", [0, 0.5, -1, 101])
def test_a_lifetime_out_of_range_is_refused(ttl: float) -> None:
    with pytest.raises(ValueError, match="expected 1 to 100 s"):
        issuer(lifetime=100).issue("x", [], [], ttl)


def test_a_token_too_long_for_the_gate_is_not_issued() -> None:
    with pytest.raises(ValueError, match=f"expected at most {TOKEN_MAX}"):
        issuer().issue("x", [], ["a" * 128] * 64, 60)


def test_a_public_key_cannot_issue(keys: dict[str, Key]) -> None:
    public = Key("public", "EdDSA", keys["EdDSA"].verifying)
    with pytest.raises(ConfigurationError, match="'public' only verifies"):
        issuer(public)
