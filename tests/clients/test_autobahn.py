"""The cases of the Autobahn test suite (by kosoku) against the gate's own handshake, frame reader and close.

The cases want an echo, which the gate has nowhere: here the command of a client is sent back instead of being
run. Everything else is what `GET /v1/stream` is made of.
"""

import asyncio
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from aiohttp import WSMsgType
from aiohttp._websocket.models import WSMessage

from handlers import websocket
from handlers.live.wires import BINARY, TEXT, compressed_frame, frame
from handlers.websocket import WebSocket
from tests.running import run_gate

CASES = 517
# Every verdict but "OK", by case. None of them is a failure.
DEVIATIONS = {
    # A text that is not UTF-8 is refused (1007), but not before the message is whole: so reads aiohttp.
    "6.4.[1-4]": "NON-STRICT",
    # After a close frame: what becomes of a message of 256 KiB before it, and codes nobody has defined.
    "7.1.6": "INFORMATIONAL",
    "7.13.[12]": "INFORMATIONAL",
    # permessage-deflate is offered and declined, unless a setting says otherwise.
    "12.*": "UNIMPLEMENTED",
    "13.*": "UNIMPLEMENTED",
}
# The largest message of the cases, of which the gate would take 64 KiB.
LARGEST = 16 << 20


def echo(stream: WebSocket, message: WSMessage) -> None:
    """Send a message back."""
    if message.type is WSMsgType.TEXT:
        stream.follower.say(frame(TEXT, message.data.encode()))
    else:
        stream.follower.say(frame(BINARY, message.data))


def compressing_echo(stream: WebSocket, message: WSMessage) -> None:
    """Send it back compressed, also where that is not worth it: of a text that comes as it is, which RFC 7692
    leaves to the sender, kosoku says "Strings must be encoded before hashing".
    """
    text = message.type is WSMsgType.TEXT
    deflater = stream._wire.deflater
    assert deflater is not None
    compressed = deflater.deflate(message.data.encode() if text else message.data)
    stream.follower.say(compressed_frame(TEXT if text else BINARY, compressed))


async def verdicts(url: str, reports: Path, *options: str) -> dict[str, str]:
    """The verdict on each case, and on how the connection ended."""
    # Few cases at a time: kosoku calls one failed that takes long, as many do side by side on busy cores.
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("kosoku"),
        *("-p", "2", "-o", str(reports), *options, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(180):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(output.decode()[-2000:])  # shown if it fails
    (found,) = json.loads(await asyncio.to_thread((reports / "index.json").read_bytes)).values()
    return {case: f"{one['behavior']} {one['behaviorClose']}" for case, one in found.items()}


def expected(case: str) -> str:
    """The verdict that is due."""
    behavior = next((verdict for form, verdict in DEVIATIONS.items() if fnmatch(case, form)), "OK")
    return f"{behavior} {'INFORMATIONAL' if behavior == 'INFORMATIONAL' else 'OK'}"


async def test_every_case_passes_but_those_that_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocket, "_command", echo)
    monkeypatch.setattr(websocket, "FRAME_MAX", LARGEST)
    async with run_gate(tmp_path / "data", STREAM_QUEUE="64MiB") as gate:
        url = f"ws://127.0.0.1:{gate.port}/v1/stream?access_token={gate.token()}"
        found = await verdicts(url, tmp_path / "reports")
    assert len(found) == CASES
    wrong = {case: verdict for case, verdict in found.items() if verdict != expected(case)}
    assert wrong == {}


# Of each of the groups some sizes of messages; a thousand messages each.
COMPRESSED = [f"12.{group}.{case}" for group in range(1, 6) for case in (1, 3, 6, 9)]
COMPRESSED += [f"13.{group}.{case}" for group in range(1, 8) for case in (2, 5, 8)]


async def test_cases_of_compression_pass_where_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebSocket, "_command", compressing_echo)
    monkeypatch.setattr(websocket, "FRAME_MAX", LARGEST)
    options = [word for case in COMPRESSED for word in ("-i", case)]
    async with run_gate(tmp_path / "data", STREAM_QUEUE="64MiB", STREAM_DEFLATE="1") as gate:
        url = f"ws://127.0.0.1:{gate.port}/v1/stream?access_token={gate.token()}"
        found = await verdicts(url, tmp_path / "reports", *options)
    assert len(found) == len(COMPRESSED)
    wrong = {case: verdict for case, verdict in found.items() if verdict != "OK OK"}
    assert wrong == {}


async def test_a_broken_echo_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts are worth something: an echo that cuts long messages, and closes then, fails."""

    def cut(stream: WebSocket, message: WSMessage) -> None:
        echo(stream, message._replace(data=message.data[:60_000]))
        if len(message.data) > 60_000:
            stream.end(1000)

    monkeypatch.setattr(WebSocket, "_command", cut)
    monkeypatch.setattr(websocket, "FRAME_MAX", LARGEST)
    async with run_gate(tmp_path / "data", STREAM_QUEUE="64MiB") as gate:
        url = f"ws://127.0.0.1:{gate.port}/v1/stream?access_token={gate.token()}"
        found = await verdicts(url, tmp_path / "reports", "-i", "1.1.*")
    assert found["1.1.6"].startswith("FAILED")
    assert found["1.1.5"] == "OK OK"
