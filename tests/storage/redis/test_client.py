"""Connections to Redis: answers reach who asked, and whatever Redis does, it is found again."""

import asyncio
import datetime
import random
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.crc import key_slot

from storage.errors import StorageError, Unavailable
from storage.redis.client import RedisClient
from storage.redis.connection import WAITING_MAX, RedisError
from tests.running import PATIENCE
from tests.servers.programs import directory, free_port, hand_over
from tests.servers.redis import RedisCluster, redis, redis_cluster, redis_sentinel
from tests.storage.redis.conftest import Connect, until
from tests.watching import own_time, watch_lag


async def works(client: RedisClient, key: bytes = b"k") -> bool:
    try:
        async with asyncio.timeout(1):
            return bool(await client.call(key, b"SET", key, b"1"))
    except (StorageError, TimeoutError):
        return False


async def until_works(client: RedisClient, key: bytes = b"k") -> None:
    for _ in range(400):
        if await works(client, key):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not work again")


# -- commands -------------------------------------------------------------------------------------


async def test_answers_come_in_the_order_of_the_commands(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    answers = [client.call(b"k", b"ECHO", str(number)) for number in range(1000)]
    assert await asyncio.gather(*answers) == [str(number).encode() for number in range(1000)]


async def test_an_error_is_the_answer_of_its_command_only(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    good, bad, after = (
        client.call(b"k", b"SET", b"k", 1),
        client.call(b"k", b"NONSENSE"),
        client.call(b"k", b"GET", b"k"),
    )
    assert await good == b"OK"
    with pytest.raises(RedisError, match="unknown command"):
        await bad
    assert await after == b"1"
    assert client.healthy


async def test_no_answer_reaches_another_caller_however_many_give_up(
    connect: Connect, redis_url: str, long: bool
) -> None:
    """F11: a command that is cancelled must not shift the answers behind it."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    client = await connect(redis_url)
    cancelled, total = 0, 100_000 if long else 5_000

    async def tenant(name: str) -> None:
        nonlocal cancelled
        token = f"token of {name}".encode()
        await client.call(b"k", b"SET", name, token)
        while cancelled < total:
            task = asyncio.ensure_future(ask(name))
            await asyncio.sleep(chance.choice((0, 0, 0.0001, 0.001)))
            cancelled += task.cancel()
            try:
                answer = await task
            except asyncio.CancelledError:
                pass
            else:
                assert answer == token, f"seed {seed}"
            assert await client.call(b"k", b"GET", name) == token, f"seed {seed}"

    async def ask(name: str) -> object:
        return await client.call(b"k", b"GET", name)

    await asyncio.gather(*(tenant(f"tenant-{number}") for number in range(20)))
    assert cancelled >= total


async def test_what_waits_is_bounded_and_refused_at_once(connect: Connect, redis_url: str) -> None:
    client = await connect(redis_url)
    answers = [client.call(b"k", b"PING") for _ in range(WAITING_MAX + 10)]
    assert [type(answer.exception()) for answer in answers[-10:]] == [Unavailable] * 10
    assert set(await asyncio.gather(*answers[:-10])) == {b"PONG"}
    large = [client.call(b"k", b"SET", b"k", bytes(1024 * 1024)) for _ in range(10)]
    assert any(answer.done() for answer in large)
    outcomes = await asyncio.gather(*large, return_exceptions=True)
    assert outcomes[0] == b"OK"
    assert isinstance(outcomes[-1], Unavailable)


# -- logging in -----------------------------------------------------------------------------------


async def test_passwords_and_users_are_used(tmp_path: Path, connect: Connect) -> None:
    async with redis(tmp_path) as server:
        await server.command("ACL", "SETUSER", "gate", "on", ">hush", "~*", "&*", "+@all")
        client = await connect(f"redis://gate:hush@127.0.0.1:{server.port}/2")
        assert client.healthy
        assert await client.call(b"k", b"ACL", b"WHOAMI") == b"gate"
        assert b"db=2" in await client.call(b"k", b"CLIENT", b"INFO")
        stranger = await connect(f"redis://gate:wrong@127.0.0.1:{server.port}", 0.3)
        assert not stranger.healthy


async def test_who_may_not_ask_whether_it_is_a_cluster_is_served_all_the_same(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis(tmp_path) as server:
        await server.command("ACL", "SETUSER", "gate", "on", ">hush", "~*", "&*", "+@all", "-info")
        client = await connect(f"redis://gate:hush@127.0.0.1:{server.port}")
        assert await works(client)


def certificate(home: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key beside it (key.pem)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data in (("cert.pem", made.public_bytes(serialization.Encoding.PEM)), ("key.pem", private)):
        (home / file).write_bytes(data)
        hand_over(home / file)
    return home / "cert.pem"


async def test_tls_is_spoken_with_who_has_the_right_certificate_only(
    tmp_path: Path, connect: Connect
) -> None:
    with directory("tls") as home:
        port, ca = free_port(), certificate(home)
        files = {"tls_cert_file": str(ca), "tls_key_file": str(home / "key.pem"), "tls_ca_cert_file": str(ca)}
        async with redis(tmp_path, tls_port=str(port), tls_auth_clients="no", **files):
            client = await connect(f"rediss://127.0.0.1:{port}?ca={ca}")
            assert await works(client)
            stranger = await connect(f"rediss://127.0.0.1:{port}", 1.0)
            assert not stranger.healthy


async def test_there_may_be_no_redis_yet(tmp_path: Path, connect: Connect) -> None:
    async with redis(tmp_path) as server:
        await server.kill()
        client = await connect(server.url, 0.1)
        assert not client.healthy
        with pytest.raises(Unavailable):
            await client.call(b"k", b"PING")
        await server.start()
        await until_works(client)
        assert client.healthy


# -- faults ---------------------------------------------------------------------------------------


async def test_a_killed_redis_fails_what_waits_at_once_and_is_found_again(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis(tmp_path) as server:
        client = await connect(server.url)
        waiting = client.call(b"k", b"BLPOP", b"nothing", 60)
        await asyncio.sleep(0.05)
        await server.kill()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, PATIENCE)
        await until(lambda: not client.healthy)
        await server.start()
        await until_works(client)
        await until(lambda: client.healthy)


async def test_a_frozen_redis_is_given_up_within_two_seconds_and_holds_up_nothing(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis(tmp_path) as server:
        client = await connect(server.url)
        async with watch_lag() as lag:
            server.freeze()
            started = own_time()
            try:
                with pytest.raises(StorageError):
                    await client.call(b"k", b"PING")
                assert own_time() - started < 2.5
                assert not client.healthy
                # It accepts connections, as a frozen process does, and says nothing.
                for _ in range(200):
                    client.call(b"k", b"PING").exception()
                    await asyncio.sleep(0.01)
            finally:
                server.thaw()
            await until_works(client)
        assert lag.p99 < 0.05
        await until(lambda: client.healthy)


async def test_a_loop_that_was_busy_itself_does_not_take_redis_for_frozen(
    connect: Connect, redis_url: str
) -> None:
    client = await connect(redis_url)
    before = client.reconnects
    for _ in range(3):
        waiting = client.call(b"k", b"PING")
        await asyncio.sleep(0)
        time.sleep(2.0)
        assert await waiting == b"PONG"
    assert client.reconnects == before


async def test_a_redis_that_comes_and_goes_again_and_again_is_always_found(
    tmp_path: Path, connect: Connect, long: bool
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    async with redis(tmp_path) as server:
        client = await connect(server.url)
        for _ in range(30 if long else 4):
            match chance.choice(("kill", "freeze", "close")):
                case "kill":
                    await server.kill()
                    await asyncio.sleep(chance.random() / 2)
                    await server.start()
                case "freeze":
                    server.freeze()
                    await asyncio.sleep(chance.random() * 3)
                    server.thaw()
                case _:
                    await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until_works(client)
        await until(lambda: client.healthy, f"healthy, seed {seed}")


# -- clusters and sentinels -----------------------------------------------------------------------


def keys_of(client: RedisClient) -> dict[int, bytes]:
    """A key for each server, by its port."""
    found: dict[int, bytes] = {}
    for number in range(1000):
        key = f"key-{number}".encode()
        address = client.address(key)
        assert address is not None
        found.setdefault(address[1], key)
    return found


async def test_a_plain_url_of_a_cluster_node_finds_the_cluster(
    connect: Connect, redis_cluster_server: RedisCluster
) -> None:
    nodes = ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster_server.nodes)
    for url in (redis_cluster_server.url, f"redis+cluster://{nodes}"):
        client = await connect(url)
        assert client.sharded
        assert client.healthy
        keys = keys_of(client)
        assert set(keys) == {node.port for node in redis_cluster_server.nodes}
        for key in keys.values():
            assert await works(client, key)


async def test_a_single_server_is_no_cluster(connect: Connect, redis_url: str) -> None:
    assert not (await connect(redis_url)).sharded


async def test_a_cluster_that_loses_a_node_serves_the_keys_of_the_others(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis_cluster(tmp_path) as cluster:
        client = await connect(cluster.url)
        keys = keys_of(client)
        # Not the first: the one whose URL it is.
        lost = cluster.nodes[1]
        await lost.kill()
        await until(lambda: not client.healthy)
        for _ in range(20):
            for port, key in keys.items():
                if port != lost.port:
                    assert await works(client, key), client.address(key)
            await asyncio.sleep(0.1)
        assert not await works(client, keys[lost.port])
        await lost.start()
        await cluster.settled()
        await until_works(client, keys[lost.port])
        await until(lambda: client.healthy)


async def test_a_replica_that_takes_over_is_found_even_when_the_node_of_the_url_is_the_lost_one(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis_cluster(tmp_path, replicas=1) as cluster:
        client = await connect(cluster.url)
        keys = keys_of(client)
        await cluster.primaries[0].kill()
        await until_works(client, keys[cluster.primaries[0].port])
        await until(lambda: client.healthy)
        assert client.address(keys[cluster.primaries[0].port]) == ("127.0.0.1", cluster.replicas[0].port)


async def test_slots_that_move_are_followed(tmp_path: Path, connect: Connect) -> None:
    async with redis_cluster(tmp_path) as cluster:
        client = await connect(cluster.url)
        one, other = cluster.nodes[0], cluster.nodes[1]
        slot, key = 0, next(f"{number}" for number in range(100_000) if key_slot(f"{number}".encode()) == 0)
        target = await other.command("CLUSTER MYID")
        for node in (other, one, cluster.nodes[2]):
            await node.command("CLUSTER SETSLOT", slot, "NODE", target)
        await until_works(client, key.encode())
        assert client.address(key.encode()) == ("127.0.0.1", other.port)


async def test_a_failover_by_sentinels_is_followed(tmp_path: Path, connect: Connect) -> None:
    async with redis_sentinel(tmp_path) as service:
        nodes = ",".join(f"{host}:{port}" for host, port in service.addresses)
        client = await connect(f"redis+sentinel://{nodes}/{service.name}")
        assert client.healthy
        old = await service.primary()
        assert client.address(b"k") == ("127.0.0.1", old.port)
        await service.sentinels[0].kill()
        await old.kill()
        await until_works(client)
        assert client.address(b"k") != ("127.0.0.1", old.port)
        await until(lambda: client.healthy)


async def test_a_frozen_primary_that_wakes_up_as_a_replica_is_not_written_to(
    tmp_path: Path, connect: Connect
) -> None:
    async with redis_sentinel(tmp_path) as service:
        nodes = ",".join(f"{host}:{port}" for host, port in service.addresses)
        client = await connect(f"redis+sentinel://{nodes}/{service.name}")
        old = await service.primary()
        old.freeze()
        try:
            await until_works(client)
        finally:
            old.thaw()
        assert client.address(b"k") != ("127.0.0.1", old.port)
        for _ in range(20):
            assert await works(client)
            await asyncio.sleep(0.1)
