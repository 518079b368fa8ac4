"""Clients from the command line: through the running gate, else in the data directory itself."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp

from auth.clients import Credentials
from auth.revocation import Revocations
from handlers.times import rfc3339
from server.engines import open_engine
from server.identity import lifetime, mint
from server.settings import Settings
from server.sockets import address, trusting
from storage.engine import Engine
from storage.errors import StorageError, Unavailable
from storage.models import Client
from storage.sqlite.directory import DirectoryLocked

# Seconds that the running gate may take to answer.
ANSWER_TIMEOUT = 15.0
TOKEN_SECONDS = 60
PAGE = 1000
URL_FILE = "url"

# A client as API.md shows it.
Shown = dict[str, Any]


class Refusal(StorageError):
    """The running gate refused; the message is its own."""


async def create(
    settings: Settings, id: str | None, scopes: Sequence[str], devices: Sequence[str], ttl: int
) -> Shown:
    """Make a client; it is shown with its secret.

    InvalidClient or Refusal if it cannot be like this, Conflict if the id is taken.
    """
    async with _engine(settings) as engine:
        if engine is not None:
            credentials = Credentials(engine, lifetime=settings.token_ttl_max)
            client, secret = await credentials.create(scopes, devices, id, ttl)
            return {**_shown(client), "secret": secret}
    content: dict[str, Any] = {"scopes": scopes, "devices": devices, "ttl": ttl}
    if id is not None:
        content["id"] = id
    made: Shown = await _call(settings, "POST", "/v1/clients", content)
    return made


async def listing(settings: Settings) -> list[Shown]:
    """All clients."""
    clients: list[Shown] = []
    async with _engine(settings) as engine:
        if engine is not None:
            last = ""
            while found := await engine.clients(last, PAGE):
                clients += map(_shown, found)
                last = found[-1].id
            return clients
    path: str | None = f"/v1/clients?limit={PAGE}"
    while path is not None:
        page = await _call(settings, "GET", path)
        clients += page["items"]
        path = page["next"] and f"/v1/clients?limit={PAGE}&cursor={quote(page['next'], safe='')}"
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
    await _call(settings, "DELETE", f"/v1/clients/{quote(id, safe='')}")


def url(settings: Settings) -> str:
    """Where the gate of these settings listens: as it said itself when it started, else as they say."""
    try:
        return (settings.data / URL_FILE).read_text("ascii").strip()
    except OSError:
        return address(settings, settings.host, settings.port)


def _shown(client: Client) -> Shown:
    return {
        "id": client.id,
        "scopes": list(client.scopes),
        "devices": list(client.devices),
        "ttl": client.ttl,
        "created_at": rfc3339(client.created_at),
    }


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[Engine | None]:
    """The engine of the data directory, None if a gate is running on it."""
    try:
        engine = await open_engine(settings)
    except DirectoryLocked:
        yield None
        return
    try:
        yield engine
    finally:
        await engine.close()


async def _call(settings: Settings, method: str, path: str, content: object = None) -> Any:
    """Ask the running gate. Refusal with its reason; Unavailable if it does not answer like a gate."""
    gate = url(settings)
    token = mint(settings, "tidegate-cli", ["admin"], [], TOKEN_SECONDS)
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT)
    trust = await asyncio.to_thread(trusting, settings)
    try:
        async with (
            aiohttp.ClientSession(gate, timeout=timeout, headers=headers) as session,
            session.request(method, path, json=content, ssl=trust) as response,
        ):
            answer = await response.json(content_type=None) if response.status != 204 else {}
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        message = f"a gate holds the data directory, but at {gate} none answers"
        raise Unavailable(message) from error
    if response.status >= 400:
        faults = "".join(f"; {fault['pointer']}: {fault['detail']}" for fault in answer.get("errors", ()))
        raise Refusal(f"{answer.get('detail', response.reason)}{faults}")
    return answer
