"""TLS by certificate files, beside `scripts/test --tls`, which runs other tests over it."""

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
from pathlib import Path

import pytest

from server.settings import SettingsError, load
from server.sockets import tls
from tests.certificates import certificate
from tests.raw import Raw, request, until
from tests.running import PATIENCE, run_gate, run_process
from tests.server.commands import tidegate
from tests.server.crowd import run_crowd

LIVEZ = request("GET", "/livez")


async def connected(port: int, trust: Path) -> Raw:
    """A connection to who has this certificate; SSLError if the gate has another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    await asyncio.to_thread(context.load_verify_locations, trust)
    return Raw(*await asyncio.open_connection("127.0.0.1", port, ssl=context))


async def livez(port: int, trust: Path) -> int:
    """The status that a new connection gets."""
    async with await connected(port, trust) as connection:
        return (await connection.ask(LIVEZ)).status


def settings(cert: Path, key: Path) -> dict[str, str]:
    return {"TLS_CERT": str(cert), "TLS_KEY": str(key)}


async def test_the_gate_and_its_commands_speak_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "anybody")
    made = settings(cert, key)
    async with run_process(tmp_path / "data", **made) as gate:
        assert gate.url.startswith("https://127.0.0.1:")
        assert (await gate.write("d", {"metric": "m", "value": 1})).status == 200
        options = ("--scope", "readings:write", "--devices", ">")
        ran = await tidegate("client", "create", "pump", *options, data=tmp_path / "data", **made)
        assert ran.code == 0, ran
        (tmp_path / "a.csv").write_text("time,value\n2026-01-01T00:00:00Z,1\n")
        file = ("replay", str(tmp_path / "a.csv"), "--device", "x", "--metric", "m")
        ran = await tidegate(*file, data=tmp_path / "data", **made)
        assert ran.code == 0, ran
        # Whom the gate's certificate says nothing is not trusted.
        ran = await tidegate(*file, "--url", gate.url, data=tmp_path / "data", **made)
        assert ran.code != 0
        with pytest.raises(ssl.SSLError):
            await livez(gate.port, certificate(tmp_path, "another")[0])
    context = await asyncio.to_thread(tls, gate.settings)
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "a")
    other = certificate(tmp_path, "b")[1]
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", encrypted], check=True
    )
    for first, second in ((cert, other), (key, key), (cert, cert), (cert, encrypted)):
        chosen = load({f"TIDEGATE_{name}": text for name, text in settings(first, second).items()})
        with pytest.raises(SettingsError, match="TIDEGATE_TLS_CERT"):
            tls(chosen)


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_takes_a_new_certificate_and_leaves_a_good_one_for_no_bad_one(
    tmp_path: Path, postgres_url: str, workers: int
) -> None:
    used = tmp_path / "used.crt", tmp_path / "used.key"
    old, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    for source, target in zip(old, used, strict=True):
        shutil.copy(source, target)
    database = postgres_url if workers > 1 else ""
    async with (
        run_crowd(tmp_path, database, workers, **settings(*used)) as crowd,
        await connected(crowd.port, old[0]) as before,
    ):
        assert (await before.ask(LIVEZ)).status == 200
        used[1].write_bytes(new[1].read_bytes())
        crowd.gate.signal(signal.SIGHUP)
        await crowd.logged("the certificate was not reloaded")
        assert await livez(crowd.port, old[0]) == 200
        used[0].write_bytes(new[0].read_bytes())
        crowd.gate.signal(signal.SIGHUP)
        await crowd.logged("all workers were renewed" if workers > 1 else "the certificate was reloaded")
        assert await livez(crowd.port, new[0]) == 200
        with pytest.raises(ssl.SSLError):
            await livez(crowd.port, old[0])
        if workers == 1:
            # Connections that are there stay.
            assert (await before.ask(LIVEZ)).status == 200


async def test_a_slot_without_a_worker_says_so_over_tls(tmp_path: Path, postgres_url: str) -> None:
    cert, key = certificate(tmp_path)
    async with run_crowd(tmp_path, postgres_url, 2, **settings(cert, key)) as crowd:
        (tmp_path / "data" / "jwt.secret").write_text("short")
        for pid in crowd.pids():
            os.kill(pid, signal.SIGKILL)
        async with await connected(crowd.port, cert) as connection:
            answer = await connection.ask(LIVEZ)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert await connection.ended() == b""


async def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with run_gate(tmp_path / "data", HEADER_TIMEOUT="3s", **settings(cert, key)) as gate:

        async def cut_off(said: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(said)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(cut_off, (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n")))
        assert await livez(gate.port, cert) == 200
        await until(lambda: not gate.gate.server._expected)


async def test_a_request_whose_handshake_is_under_way_at_the_end_is_answered(tmp_path: Path) -> None:
    """What was accepted is finished: a client cannot ask again on a connection that never was there."""
    cert, key = certificate(tmp_path)
    async with run_gate(tmp_path / "data", **settings(cert, key)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        await until(lambda: len(gate.gate.server._expected) == 1)
        draining = asyncio.create_task(gate.gate.server.drain(5))
        await until(lambda: gate.gate.server.lane.closing)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        await asyncio.to_thread(context.load_verify_locations, cert)
        await writer.start_tls(context, server_hostname="127.0.0.1")
        answer = await Raw(reader, writer).ask(LIVEZ)
        assert (answer.status, answer.closing) == (200, True)
        writer.close()
        await draining
