"""websockets with its `broadcast`, as its documentation has it, without compression and pings; on uvloop."""

import asyncio
import itertools
import json
import sys
from datetime import UTC, datetime

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

followers: set[ServerConnection] = set()
offsets = itertools.count(1)


async def handle(ws: ServerConnection) -> None:
    """Follow, or write."""
    try:
        async for message in ws:
            command = json.loads(message)
            if command["type"] == "subscribe":
                followers.add(ws)
                await ws.send(json.dumps({"type": "live", "id": command["id"]}))
            else:
                for item in command["readings"]:
                    broadcast(followers, text(item))
                ack = {"type": "ack", "id": command["id"], "accepted": len(command["readings"])}
                await ws.send(json.dumps(ack))
    finally:
        followers.discard(ws)


def text(item: dict[str, object]) -> str:
    """The message of a reading."""
    return json.dumps(
        {
            "type": "reading",
            "device": item["device"],
            "metric": item["metric"],
            "ts": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "value": item["value"],
            "position": f"3f9a1c07-{next(offsets)}",
        },
        separators=(",", ":"),
    )


async def main() -> None:
    """Serve."""
    port = int(sys.argv[1])
    async with serve(handle, "127.0.0.1", port, compression=None, ping_interval=None) as server:
        await server.serve_forever()


try:
    uvloop.run(main())
except (KeyboardInterrupt, asyncio.CancelledError):
    pass
