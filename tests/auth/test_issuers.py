import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from auth.issuers import BODY_MAX, KEYS_MAX, Issuer
from auth.keys import ConfigurationError, Key, KeyRing
from auth.tokens import KeyUnknown, TokenError
from tests.auth.doubles import AUDIENCE, SECRET, Gate, claims, sign
from tests.clock import NOW, Clock
from tests.raw import until
from tests.running import PATIENCE

OUTSIDE = "https://id.example"


class KeyServer:
    """Publishes keys on a loopback port; counts who asks, and can be silent or ill."""

    def __init__(self) -> None:
        self.asked = 0
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.body = b'{"keys": []}'
        self.status = 200
        self.headers: dict[str, str] = {}
        self.url = ""

    def publish(self, *keys: Key | dict[str, Any]) -> None:
        found = [KeyRing([key]).jwks()["keys"][0] if isinstance(key, Key) else key for key in keys]
        self.body = json.dumps({"keys": found}).encode()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        await self.speaks.wait()
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    runner = web.ServerRunner(web.Server(server.answer), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks.json"
    yield server
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def ticks() -> Clock:
    return Clock(1000.0)


@pytest.fixture
async def issuer(server: KeyServer, session: aiohttp.ClientSession, ticks: Clock) -> AsyncIterator[Issuer]:
    issuer = Issuer(OUTSIDE, server.url, "theirs", session, clock=ticks)
    yield issuer
    await issuer.close()


@pytest.fixture
def gate(issuer: Issuer) -> Gate:
    return Gate(issuers=[issuer])


def token(key: Key, **changes: Any) -> str:
    return sign(claims(**{"iss": OUTSIDE, "aud": "theirs", **changes}), key)


def public(**changes: Any) -> dict[str, Any]:
    """A good EC key as it is published, changed; `None` leaves a member out."""
    key = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    good = {**jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True), "kid": "one", **changes}
    return {name: value for name, value in good.items() if value is not None}


async def verified(gate: Gate, text: str) -> str:
    """What a caller does: verify, fetch where that helps, verify again."""
    try:
        return gate.verifier.verify(text).subject
    except KeyUnknown as unknown:
        await gate.verifier.fetch(unknown.issuer)
        return gate.verifier.verify(text).subject


async def code(gate: Gate, text: str) -> str:
    with pytest.raises(TokenError) as caught:
        await verified(gate, text)
    return caught.value.code


# -- tokens of an outside issuer ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EdDSA", "ES256", "RS256"])
async def test_a_token_of_an_outside_issuer_is_accepted_after_its_keys_were_fetched(
    gate: Gate, server: KeyServer, keys: dict[str, Key], name: str
) -> None:
    server.publish(keys[name])
    text = token(keys[name])
    with pytest.raises(KeyUnknown) as caught:
        gate.verifier.verify(text)
    assert caught.value.issuer == OUTSIDE
    assert await verified(gate, text) == "boiler"
    gate.verifier.verify(text)
    assert server.asked == 1
    assert gate.verifier.hits == 1


async def test_the_keys_and_the_audience_of_one_issuer_do_not_serve_another(
    gate: Gate, server: KeyServer, keys: dict[str, Key]
) -> None:
    key = keys["EdDSA"]
    server.publish(key)
    assert await verified(gate, token(key)) == "boiler"
    assert await code(gate, token(key, aud=AUDIENCE)) == "token_invalid"
    assert await code(gate, sign(claims(), key)) == "token_invalid"
    assert await code(gate, sign(claims(iss=OUTSIDE, aud="theirs"), SECRET)) == "token_invalid"


async def test_a_kid_that_the_issuer_does_not_have_is_refused(
    gate: Gate, server: KeyServer, keys: dict[str, Key]
) -> None:
    server.publish(keys["EdDSA"])
    assert await code(gate, token(keys["ES256"])) == "token_invalid"


async def test_a_flood_of_unknown_kids_is_no_flood_of_fetches(
    gate: Gate, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    server.publish(keys["EdDSA"])
    flood = [sign(claims(iss=OUTSIDE, aud="theirs"), keys["EdDSA"], kid=f"kid{n}") for n in range(50)]
    assert await asyncio.gather(*(code(gate, text) for text in flood)) == ["token_invalid"] * 50
    assert [await code(gate, text) for text in flood] == ["token_invalid"] * 50
    assert server.asked == 1
    ticks.now += 30
    await code(gate, flood[0])
    assert server.asked == 2


async def test_a_new_key_is_found_after_the_cool_down(
    gate: Gate, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    server.publish(keys["EdDSA"])
    await verified(gate, token(keys["EdDSA"]))
    server.publish(keys["EdDSA"], keys["ES256"])
    assert await code(gate, token(keys["ES256"])) == "token_invalid"
    ticks.now += 30
    assert await verified(gate, token(keys["ES256"])) == "boiler"


async def test_a_token_without_kid_needs_an_issuer_with_one_key(
    gate: Gate, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    key = keys["EdDSA"]
    text = sign(claims(iss=OUTSIDE, aud="theirs"), key, kid=None)
    server.publish(key)
    assert await verified(gate, text) == "boiler"
    server.publish(key, keys["ES256"])
    ticks.now += 600
    await gate.verifier.refresh()
    other = sign(claims(iss=OUTSIDE, aud="theirs", jti="two"), key, kid=None)
    assert await code(gate, other) == "token_invalid"


async def test_a_key_that_its_issuer_took_back_ends_known_tokens_after_its_max_age(
    gate: Gate, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    old = token(keys["EdDSA"])
    server.publish(keys["EdDSA"])
    await verified(gate, old)
    server.publish(keys["ES256"])
    ticks.now += 599
    await gate.verifier.refresh()
    assert await verified(gate, old) == "boiler"
    ticks.now += 1
    await gate.verifier.refresh()
    assert await code(gate, old) == "token_invalid"


async def test_keys_that_did_not_change_change_no_generation(
    gate: Gate, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    server.publish(*keys.values())
    await gate.verifier.refresh()
    before = gate.verifier.generation
    ticks.now += 600
    await gate.verifier.refresh()
    assert server.asked == 2
    assert gate.verifier.generation == before


async def test_an_outside_issuer_cannot_have_our_name(issuer: Issuer) -> None:
    issuer.name = "https://gate.example"
    with pytest.raises(ConfigurationError, match="has the name of the gate's own"):
        Gate(issuers=[issuer])


async def test_an_outside_token_may_live_longer_than_ours(
    gate: Gate, server: KeyServer, keys: dict[str, Key]
) -> None:
    server.publish(keys["EdDSA"])
    assert await verified(gate, token(keys["EdDSA"], exp=NOW + 10 * 366 * 86_400)) == "boiler"


async def test_keys_count_even_if_nobody_waited_for_them_to_the_end(
    gate: Gate, issuer: Issuer, server: KeyServer, keys: dict[str, Key], ticks: Clock
) -> None:
    old = token(keys["EdDSA"])
    server.publish(keys["EdDSA"])
    await verified(gate, old)
    server.publish(keys["ES256"])
    server.speaks.clear()
    ticks.now += 600
    refreshing = asyncio.create_task(gate.verifier.refresh())
    await until(lambda: server.asked == 2)
    refreshing.cancel()
    await asyncio.wait((refreshing,))
    server.speaks.set()
    await until(lambda: keys["ES256"].kid in issuer.keys)
    assert await code(gate, old) == "token_invalid"


# -- fetching -------------------------------------------------------------------------------------


async def test_all_who_ask_at_once_share_one_fetch(issuer: Issuer, server: KeyServer) -> None:
    server.publish(public())
    server.speaks.clear()
    fetching = asyncio.gather(*(issuer.fetch() for _ in range(20)))
    await until(lambda: server.asked)
    server.speaks.set()
    await fetching
    assert server.asked == 1
    assert list(issuer.keys) == ["one"]


async def test_whoever_gives_up_does_not_take_the_keys_from_the_others(
    issuer: Issuer, server: KeyServer
) -> None:
    server.publish(public())
    server.speaks.clear()
    first, second = asyncio.create_task(issuer.fetch()), asyncio.create_task(issuer.fetch())
    await until(lambda: server.asked)
    first.cancel()
    await asyncio.wait((first,))
    server.speaks.set()
    await second
    assert first.cancelled()
    assert list(issuer.keys) == ["one"]


async def test_a_fetch_does_not_block_the_loop_and_ends_in_time(
    issuer: Issuer, server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auth.issuers.TIMEOUT", 0.5)
    server.speaks.clear()
    fetching = asyncio.create_task(issuer.fetch())
    turns = 0
    async with asyncio.timeout(PATIENCE):
        while not fetching.done():
            await asyncio.sleep(0)
            turns += 1
    # A busy machine gives thousands, a fetch that blocks a dozen.
    assert turns >= 100
    assert "TimeoutError" in issuer.error


async def test_closing_ends_a_fetch(issuer: Issuer, server: KeyServer) -> None:
    server.speaks.clear()
    fetching = asyncio.create_task(issuer.fetch())
    await until(lambda: server.asked)
    await issuer.close()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await issuer.close()


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason"),
    [
        (500, b"", {}, "status 500"),
        (404, b'{"keys": []}', {}, "status 404"),
        (302, b"", {"Location": "http://127.0.0.1:1/"}, "status 302"),
        (200, b"", {}, "not a key set"),
        (200, b"[]", {}, "not a key set"),
        (200, b'{"keys": {}}', {}, "not a key set"),
        (200, b'{"keys": []}', {}, "none of the 0 keys"),
        (200, b'{"keys": [1, "x", null, {}]}', {}, "none of the 4 keys"),
        (200, b" " * (BODY_MAX + 1), {}, f"more than {BODY_MAX} bytes"),
        (200, json.dumps({"keys": [{}] * (KEYS_MAX + 1)}).encode(), {}, "expected at most 64"),
        (200, gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}, "not a key set"),
        (200, b'{"keys": []}', {"Content-Encoding": "gzip"}, "none of the 0 keys"),
        (200, b"\xff\xfe", {}, "not a key set"),
    ],
)
async def test_a_bad_answer_is_told_and_the_known_keys_stay(
    issuer: Issuer,
    server: KeyServer,
    ticks: Clock,
    status: int,
    body: bytes,
    headers: dict[str, str],
    reason: str,
) -> None:
    server.publish(public())
    await issuer.fetch()
    server.status, server.body, server.headers = status, body, headers
    ticks.now += 600
    await issuer.fetch()
    assert reason in issuer.error
    assert list(issuer.keys) == ["one"]
    assert issuer.stale
    server.status, server.headers = 200, {}
    server.publish(public(kid="two"))
    ticks.now += 30
    await issuer.fetch()
    assert (list(issuer.keys), issuer.error, issuer.stale) == (["two"], "", False)


async def test_an_issuer_that_cannot_be_reached_is_told(session: aiohttp.ClientSession) -> None:
    issuer = Issuer(OUTSIDE, "http://127.0.0.1:1/", "theirs", session)
    await issuer.fetch()
    assert "ClientConnectorError" in issuer.error


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.9.9.9:80/",
        "http://localhost/",
        "http://[::1]/",
        "https://id.example/x",
    ],
)
async def test_https_or_loopback_is_accepted(session: aiohttp.ClientSession, url: str) -> None:
    assert Issuer(OUTSIDE, url, "theirs", session).name == OUTSIDE


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/",
        "http://10.0.0.1/",
        "http://127.0.0.1.evil.example/",
        "http://localhost.evil.example/",
        "http://localhost@evil.example/",
        "http://[::2]/",
        "http://[",
        "https://",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "/jwks.json",
        "",
    ],
)
async def test_any_other_url_is_refused(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected https://"):
        Issuer(OUTSIDE, url, "theirs", session)


# -- which keys count -----------------------------------------------------------------------------

WEAK = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
ED448 = jwt.algorithms.OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)
PRIVATE = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE"},
        {"kty": "unknown"},
        WEAK,
        ED448,
        PRIVATE,
        public(crv="P-999"),
        public(crv="P-384"),
        public(crv="secp256k1"),
        public(crv=None),
        public(kty="RSA"),
        public(alg="RS256"),
        public(alg="HS256"),
        public(alg="ES384"),
        public(alg="none"),
        public(use="enc"),
        public(key_ops=["encrypt"]),
        public(x=None),
        public(x=1),
        public(x="AAAA"),
        public(y="A" * 43),
        public(x="é"),
        public(kid=7),
    ],
)
async def test_an_unusable_key_is_left_out_and_does_not_spoil_the_others(
    issuer: Issuer, server: KeyServer, bad: dict[str, Any]
) -> None:
    server.publish({"kid": "bad", **bad}, public(kid="good"))
    await issuer.fetch()
    assert list(issuer.keys) == ["good"]


async def test_the_algorithm_is_bound_by_the_key_or_its_alg(
    issuer: Issuer, server: KeyServer, keys: dict[str, Key]
) -> None:
    rsa_key = KeyRing([keys["RS256"]]).jwks()["keys"][0]
    server.publish(
        public(kid="a"),
        public(kid="b", alg="ES256", use="sig", key_ops=["verify"]),
        {**rsa_key, "kid": "c", "alg": "PS512"},
        {name: value for name, value in rsa_key.items() if name != "alg"} | {"kid": "d"},
    )
    await issuer.fetch()
    found = {kid: key.algorithm for kid, key in issuer.keys.items()}
    assert found == {"a": "ES256", "b": "ES256", "c": "PS512", "d": "RS256"}


async def test_the_first_of_two_keys_with_one_kid_counts(
    issuer: Issuer, server: KeyServer, keys: dict[str, Key]
) -> None:
    rsa_key = {**KeyRing([keys["RS256"]]).jwks()["keys"][0], "kid": "one"}
    server.publish(rsa_key, public())
    await issuer.fetch()
    assert issuer.keys["one"].algorithm == "RS256"
