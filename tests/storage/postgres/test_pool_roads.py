"""The roads to a server other than plain TCP: TLS, a Unix socket, a network that swallows packets."""

import asyncio
import datetime
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from storage.errors import Overloaded, Timeout, Unavailable
from storage.postgres.pool import Pool
from tests.servers.postgres import USER, PostgresServer, postgres
from tests.servers.programs import directory, hand_over
from tests.storage.postgres.watching import give_up, load, until
from tests.watching import in_time, watch_lag

NAME = "tidegate-test"


@contextmanager
def certificate() -> Iterator[dict[str, str]]:
    """Settings of a server with a certificate for localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    with directory("tls") as home:
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files = {"ssl_cert_file": signed.public_bytes(pem), "ssl_key_file": private}
        for setting, content in files.items():
            (home / setting).write_bytes(content)
            (home / setting).chmod(0o600)
            hand_over(home / setting)
        yield {"ssl": "on", **{setting: str(home / setting) for setting in files}}


# The wheel's PostgreSQL has no TLS.
@pytest.mark.system
async def test_tls_is_checked_and_carries_all_of_it(tmp_path: Path) -> None:
    with certificate() as settings:
        async with postgres(tmp_path, **settings) as server:
            options = f"sslmode=verify-full&sslrootcert={settings['ssl_cert_file']}"
            url = f"postgresql://{USER}@localhost:{server.port}/postgres?{options}"
            pool = await Pool.open(url, 2, name=NAME)
            assert await pool.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
            text = "x" * 3_000_000
            assert await pool.fetch("SELECT %s::text", (text,)) == [(text,)]
            await give_up(server, server.url, pool, NAME)
            await pool.close()
            with pytest.raises(Unavailable, match="certificate"):
                await Pool.open(url.replace("localhost", "127.0.0.1"), 1)


async def test_a_unix_socket_leads_there(postgres_server: PostgresServer) -> None:
    url = f"postgresql:///postgres?user={USER}&host={postgres_server.data.parent}&port={postgres_server.port}"
    pool = await Pool.open(url, 1, name=NAME)
    assert await pool.fetch("SELECT inet_server_addr() IS NULL") == [(True,)]
    await give_up(postgres_server, postgres_server.url, pool, NAME)
    await pool.close()


@contextmanager
def dropped(port: int) -> Iterator[None]:
    """All packets to and from a port of this machine are lost."""
    rules = [["INPUT", "-p", "tcp", side, str(port), "-j", "DROP"] for side in ("--dport", "--sport")]
    try:
        for rule in rules:
            subprocess.run(["iptables", "-w", "-I", *rule], check=True, timeout=10)
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-w", "-D", *rule], check=False, timeout=10)


@pytest.mark.system
async def test_a_network_that_swallows_everything_is_noticed_and_outlived(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        pool = await Pool.open(server.url, 3, name=NAME, deadline=1)

        async def play() -> float:
            async with load(pool, 10) as callers, watch_lag() as lag:
                await asyncio.sleep(0.2)
                with dropped(server.port):
                    await asyncio.sleep(4)
                back = time.monotonic()

                async def good() -> bool:
                    return callers.good_since(back) is not None

                seconds = await until(good)
            assert callers.errors() <= {None, Unavailable, Timeout, Overloaded}
            assert callers.slowest < 2.5
            assert lag.p99 < 0.05
            return seconds

        await in_time(play, 2.5)
        await pool.close()
