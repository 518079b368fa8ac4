"""WebSocket clients for tests: aiohttp's, with patience."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from tests.running import PATIENCE, Caller


class Ended(Exception):
    """The gate has closed the socket."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Socket:
    """A connection to `/v1/stream`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def say(self, **command: Any) -> None:
        """Send a command."""
        await self.ws.send_json(command)

    async def hear(self, within: float = PATIENCE) -> dict[str, Any]:
        """The next message; Ended if there is none."""
        async with asyncio.timeout(within):
            message = await self.ws.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING):
            # What the gate said: aiohttp's own code is another one where its reply comes too late.
            said = message.data if message.type is WSMsgType.CLOSE else self.ws.close_code
            raise Ended(said, str(message.extra or ""))
        assert message.type is WSMsgType.TEXT, message
        content: dict[str, Any] = json.loads(message.data)
        return content

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Messages up to the first of this type."""
        heard = [await self.hear()]
        while heard[-1]["type"] != kind:
            heard.append(await self.hear())
        return heard

    async def follow(self, id: int | str, *match: str, **options: Any) -> list[dict[str, Any]]:
        """Subscribe; what comes until it is live."""
        await self.say(type="subscribe", id=id, match=list(match), **options)
        return await self.until("live")

    async def write(self, id: int | str, *readings: dict[str, Any]) -> dict[str, Any]:
        """Write; the acknowledgement, or the error."""
        await self.say(type="write", id=id, readings=list(readings))
        while True:
            message = await self.hear()
            if message["type"] in ("ack", "error"):
                assert message["id"] == id
                return message

    async def end(self) -> Ended:
        """How the gate ends it, whatever comes before."""
        try:
            while True:
                await self.hear()
        except Ended as ended:
            return ended


@asynccontextmanager
async def connect(
    gate: Caller, token: str = "", headers: Mapping[str, str] | None = None, query: str = ""
) -> AsyncIterator[Socket]:
    """A socket."""
    bearer = {"Authorization": f"Bearer {token or gate.token()}"}
    async with gate.session.ws_connect(
        gate.url + "/v1/stream" + query, headers=bearer | dict(headers or {}), autoping=True
    ) as ws:
        yield Socket(ws)


def values(messages: list[dict[str, Any]]) -> list[Any]:
    """The values of all readings, recovered ones included."""
    found = []
    for message in messages:
        if message["type"] == "reading":
            found.append(message["value"])
        elif message["type"] == "readings":
            found += [item["value"] for item in message["items"]]
    return found
