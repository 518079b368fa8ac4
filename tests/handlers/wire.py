"""What the tests of the handlers share: problems, pointers, pages, raw bytes, a commit that is held."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from multidict import CIMultiDict

from auth.keys import KeyRing, PrivateKey, load_directory
from auth.tokens import TokenIssuer
from handlers.problems import CATALOGUE
from server.identity import key_ring
from storage.commit import Appender
from storage.models import Appended, Write
from tests.running import ALL_SCOPES, PATIENCE, Caller, Reply, Running, client_tls

JSON = "application/json"
MSGPACK = "application/msgpack"
NDJSON = "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"


def problem(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must be this one."""
    assert reply.status == status, reply
    assert reply.headers["Content-Type"] == "application/problem+json", reply
    document: dict[str, Any] = reply.json
    assert document["code"] == code, reply
    assert document["type"] == f"/problems/{code}"
    assert document["status"] == status
    assert document["title"] == CATALOGUE[code].title
    assert document["instance"] == reply.headers["X-Request-ID"]
    assert document["detail"]
    return document


def pointers(reply: Reply, member: str = "errors") -> list[tuple[str, str]]:
    """Pointer and code of each fault in an answer."""
    return [(fault["pointer"], fault["code"]) for fault in reply.json[member]]


def resolve(content: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) leads to; LookupError if there is nothing."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        content = content[int(name)] if isinstance(content, list) else content[name]
    return content


async def all_items(gate: Caller, path: str, **options: Any) -> list[Any]:
    """The items of all pages."""
    items: list[Any] = []
    cursor = ""
    while True:
        reply = await gate.get(f"{path}{'&' if '?' in path else '?'}{cursor}", **options)
        assert reply.status == 200, reply
        items += reply.json["items"]
        if reply.json["next"] is None:
            assert "Link" not in reply.headers
            return items
        cursor = "cursor=" + reply.json["next"]
        assert reply.headers["Link"].endswith(f'{cursor}>; rel="next"'), reply


async def raw(gate: Caller, request: bytes) -> Reply:
    """Send these very bytes; the answer, up to the end of the connection if it has no length."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, ssl=client_tls())
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, _, value = line.partition(": ")
            headers.add(name, value)
        length = headers.get("Content-Length")
        body = await (reader.read() if length is None else reader.readexactly(int(length)))
        writer.close()
    return Reply(int(first.split()[1]), headers, body)


async def bearer(gate: Running) -> bytes:
    """A header line with a token, for raw requests."""
    return f"Authorization: Bearer {gate.token()}\r\n".encode()


class HeldCommit:
    """An engine that begins a commit when it is told to."""

    def __init__(self, engine: Appender) -> None:
        self._engine = engine
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()

    def append(self, writes: list[Write]) -> asyncio.Future[Appended]:
        """As in storage.commit.Appender."""
        self.arrived.set()
        return asyncio.ensure_future(self._append(writes))

    async def _append(self, writes: list[Write]) -> Appended:
        await self.go.wait()
        return await self._engine.append(writes)


@asynccontextmanager
async def held_commit(gate: Running) -> AsyncIterator[HeldCommit]:
    """No commit begins until `go` is set, or the context ends."""
    commit = gate.gate.commit
    held = HeldCommit(commit._engine)
    commit._engine = held
    try:
        yield held
    finally:
        held.go.set()
        commit._engine = held._engine


@contextmanager
def stopped_intervals(gate: Running) -> Iterator[float]:
    """No `min_interval` passes in the block, however long it takes; the loop time at which it began."""
    hub = gate.gate.live.hub
    now, began = hub.now, hub.now()
    hub.now = lambda: began
    try:
        yield began
    finally:
        hub.now = now


async def create_client(gate: Caller, **content: Any) -> Any:
    """A new client as the answer shows it, with its secret."""
    reply = await gate.post("/v1/clients", {"scopes": ["readings:read"], "devices": [">"], **content})
    assert reply.status == 201, reply
    return reply.json


async def log_in(gate: Caller, client: Any, path: str = "/v1/token", **fields: str) -> Reply:
    """A request to the token endpoint, or to another of OAuth, with the credentials of a client."""
    form = {"client_id": client["id"], "client_secret": client["secret"], **fields}
    if path == "/v1/token":
        form.setdefault("grant_type", "client_credentials")
    return await send_form(gate, path, form)


async def send_form(gate: Caller, path: str, form: dict[str, str], **headers: str) -> Reply:
    """POST a form without a bearer token."""
    return await gate.call(
        "POST", path, data=urlencode(form).encode(), token="", headers={"Content-Type": FORM, **headers}
    )


def basic(id: str, secret: str) -> str:
    """HTTP Basic."""
    return "Basic " + base64.b64encode(f"{id}:{secret}".encode()).decode()


async def expired_token(gate: Running) -> str:
    """A token of the gate whose time is over."""
    settings = gate.settings
    ring = await asyncio.to_thread(key_ring, settings)
    issuer = TokenIssuer(
        ring.signing,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        clock=lambda: time.time() - 3600,
    )
    return issuer.issue("late", ALL_SCOPES, [">"], 60)[0]


def write_keys(folder: Path, *names: str) -> None:
    """Key files named by their algorithm: EdDSA, ES256, RS256."""
    makers: dict[str, Callable[[], PrivateKey]] = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
    }
    folder.mkdir(exist_ok=True)
    for name in names:
        pem = makers[name]().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(pem)


def issuer_of(folder: Path, name: str, audience: str = "tidegate") -> tuple[TokenIssuer, Any]:
    """An issuer that signs with the last key of a folder, and its key set."""

    ring = KeyRing(load_directory(folder))
    return TokenIssuer(ring.signing, issuer=name, audience=audience), ring.jwks()
