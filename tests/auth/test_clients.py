import hashlib
import statistics
import time

import pytest

from auth.clients import Credentials, InvalidClient
from auth.tokens import TOKEN_MAX, TokenIssuer
from storage.errors import Conflict
from tests.auth.doubles import AUDIENCE, ISSUER, SECRET, Gate, MemoryAccounts
from tests.clock import NOW, Clock


@pytest.fixture
def accounts() -> MemoryAccounts:
    return MemoryAccounts()


@pytest.fixture
def credentials(accounts: MemoryAccounts) -> Credentials:
    return Credentials(accounts, lifetime=3600, clock=Clock())


async def test_a_client_is_recognised_by_its_secret_only(credentials: Credentials) -> None:
    client, secret = await credentials.create(["readings:write"], ["acme.>"], id="plant-7", ttl=60)
    assert await credentials.authenticate("plant-7", secret) == client
    assert (client.id, client.scopes, client.devices) == ("plant-7", ("readings:write",), ("acme.>",))
    assert (client.ttl, client.created_at) == (60, int(NOW * 1_000_000))
    for wrong in ("", secret[:-1], secret + "x", secret.swapcase(), client.secret_hash.hex(), "\ud800"):
        assert await credentials.authenticate("plant-7", wrong) is None
    assert await credentials.authenticate("plant-8", secret) is None


async def test_the_secret_is_32_random_bytes_and_only_its_hash_is_kept(
    credentials: Credentials, accounts: MemoryAccounts
) -> None:
    made = [await credentials.create([], []) for _ in range(50)]
    assert len({secret for _, secret in made}) == 50
    for client, secret in made:
        assert len(secret) == 43
        assert accounts.kept[client.id].secret_hash == hashlib.sha256(secret.encode()).digest()


async def test_a_client_without_an_id_gets_one(credentials: Credentials) -> None:
    first, _ = await credentials.create([], [])
    second, _ = await credentials.create([], [])
    assert first.id.startswith("client-")
    assert first.id != second.id


async def test_an_id_that_is_taken_is_a_conflict(credentials: Credentials) -> None:
    await credentials.create([], [], id="one")
    with pytest.raises(Conflict):
        await credentials.create([], [], id="one")


@pytest.mark.parametrize("id", ["", "-a", ".a", "a b", "a/b", "a\n", "é", "a\0", "x" * 129])
async def test_a_bad_id_is_refused_and_never_reaches_the_database(credentials: Credentials, id: str) -> None:
    with pytest.raises(InvalidClient) as caught:
        await credentials.create([], [], id=id)
    assert caught.value.pointer == "/id"
    assert await credentials.authenticate(id, "secret") is None


@pytest.mark.parametrize("id", ["a", "A.b_c-9", "0", "x" * 128])
async def test_a_good_id_is_accepted(credentials: Credentials, id: str) -> None:
    assert (await credentials.create([], [], id=id))[0].id == id


@pytest.mark.parametrize(
    ("scopes", "devices", "ttl", "pointer"),
    [
        (["admin", "root"], [], 0, "/scopes/1"),
        ([], ["acme.>", "a..b"], 0, "/devices/1"),
        ([], ["a"] * 65, 0, "/devices"),
        ([], ["a" * 100] * 16, 0, "/devices"),
        ([], [], -1, "/ttl"),
        ([], [], 3601, "/ttl"),
    ],
)
async def test_a_bad_description_is_refused_with_its_place(
    credentials: Credentials,
    accounts: MemoryAccounts,
    scopes: list[str],
    devices: list[str],
    ttl: int,
    pointer: str,
) -> None:
    with pytest.raises(InvalidClient) as caught:
        await credentials.create(scopes, devices, ttl=ttl)
    assert caught.value.pointer == pointer
    assert not accounts.kept


async def test_scopes_and_devices_are_kept_once_and_in_order(credentials: Credentials) -> None:
    client, _ = await credentials.create(["admin", "readings:read", "admin"], ["b", "a", "b"])
    assert (client.scopes, client.devices) == (("admin", "readings:read"), ("b", "a"))


async def test_the_largest_client_gets_a_token_that_the_gate_accepts(credentials: Credentials) -> None:
    scopes = ["readings:write", "readings:read", "devices:write", "devices:read", "admin"]
    devices = [f"{number:02}" + "d" * 22 for number in range(64)]
    client, _ = await credentials.create(scopes, devices, id="x" * 128)
    issuer = TokenIssuer(SECRET, issuer=ISSUER, audience=AUDIENCE, clock=Clock())
    token, _ = issuer.issue(client.id, client.scopes, client.devices, 60)
    # With RSA of 4,096 bits the signature has 683 characters, not 43; issuers may have longer names.
    assert len(token) + 683 - 43 + 300 <= TOKEN_MAX
    assert Gate().verifier.verify(token).subject == client.id


async def test_an_unknown_id_takes_as_long_as_a_wrong_secret(credentials: Credentials) -> None:
    await credentials.create([], [], id="known")

    times: dict[str, list[float]] = {"known": [], "other": []}
    # In turn: a machine that is busy meanwhile slows both.
    for _ in range(300):
        for id, taken in times.items():
            start = time.perf_counter()
            await credentials.authenticate(id, "wrong")
            taken.append(time.perf_counter() - start)
    known, unknown = map(statistics.median, times.values())
    assert abs(known - unknown) < 20e-6
