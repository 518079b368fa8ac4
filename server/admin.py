"""Clients from the command line: through the running gate, else in the data directory itself."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from msgspec import Struct, to_builtins

from auth.clients import Credentials
from auth.revocation import Revocations
from server.identity import lifetime, mint
from server.settings import Settings
from storage.errors import StorageError, Unavailable
from storage.sqlite.directory import DirectoryLocked
from storage.sqlite.engine import SqliteEngine

# Seconds that the running gate may take to answer.
ANSWER_TIMEOUT = 15.0
TOKEN_SECONDS = 60
URL_FILE = "url"


class Refusal(StorageError):
    """The running gate refused; the message is its own."""


class NewClient(Struct):
    """A client that was made, with its secret."""

    id: str
    secret: str
    scopes: Sequence[str]
    devices: Sequence[str]


async def create(
    settings: Settings, id: str | None, scopes: Sequence[str], devices: Sequence[str], ttl: int
) -> NewClient:
    """Make a client. InvalidClient or Refusal if it cannot be like this, Conflict if the id is taken."""
    async with _engine(settings) as engine:
        if engine is not None:
            client, secret = await Credentials(engine, lifetime=settings.token_ttl_max).create(
                scopes, devices, id, ttl
            )
            return NewClient(client.id, secret, client.scopes, client.devices)
    content: dict[str, Any] = {"scopes": scopes, "devices": devices, "ttl": ttl}
    answer = await _call(settings, "POST", "/v1/clients", content if id is None else {**content, "id": id})
    return NewClient(answer["id"], answer["secret"], answer["scopes"], answer["devices"])


async def listing(settings: Settings) -> list[dict[str, Any]]:
    """All clients, without their secrets."""
    async with _engine(settings) as engine:
        if engine is not None:
            found = await engine.clients("", 1_000_000)
            return [to_builtins(client) | {"secret_hash": None} for client in found]
    clients: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await _call(
            settings, "GET", f"/v1/clients?limit=1000&cursor={cursor}" if cursor else "/v1/clients?limit=1000"
        )
        clients += answer["items"]
        cursor = answer["next"]
    return clients


async def delete(settings: Settings, id: str) -> None:
    """Remove a client and end its tokens; NotFound or Refusal if there is none."""
    async with _engine(settings) as engine:
        if engine is not None:
            revocations = Revocations(
                engine, lambda: None, issuer=settings.jwt_issuer, lifetime=lifetime(settings)
            )
            await revocations.refresh()
            await revocations.remove_client(id)
            return
    await _call(settings, "DELETE", f"/v1/clients/{id}")


def url(settings: Settings) -> str:
    """Where the gate of these settings listens: as it said itself when it started, else as they say."""
    try:
        return (settings.data / URL_FILE).read_text("ascii").strip()
    except OSError:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
        return f"http://{host}:{settings.port}"


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[SqliteEngine | None]:
    """The engine of the data directory, None if a gate is running on it."""
    try:
        engine = await SqliteEngine.open(settings.data, lambda: time.time_ns() // 1000)
    except DirectoryLocked:
        yield None
        return
    try:
        yield engine
    finally:
        await engine.close()


async def _call(settings: Settings, method: str, path: str, content: object = None) -> Any:
    token = mint(settings, "tidegate-cli", ["admin"], [], TOKEN_SECONDS)
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(url(settings), timeout=timeout) as session,
            session.request(
                method, path, json=content, headers={"Authorization": f"Bearer {token}"}
            ) as response,
        ):
            answer = await response.json(content_type=None) if response.status != 204 else {}
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(
            f"the gate at {url(settings)} holds the data directory but does not answer"
        ) from error
    if response.status >= 400:
        faults = "".join(f"; {f['pointer']}: {f['detail']}" for f in answer.get("errors", ()))
        raise Refusal(f"{answer.get('detail', response.reason)}{faults}")
    return answer
