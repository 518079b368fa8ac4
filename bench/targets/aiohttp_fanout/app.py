"""aiohttp as its users write it: a set of WebSockets (or event streams), and a loop that awaits each send.

What is written comes over a WebSocket; each reading becomes one message, made once. Nothing is kept.
"""

import asyncio
import itertools
import json
import sys
from datetime import UTC, datetime

import uvloop
from aiohttp import web

routes = web.RouteTableDef()
sockets: set[web.WebSocketResponse] = set()
streams: set[web.StreamResponse] = set()
offsets = itertools.count(1)


@routes.get("/v1/stream")
async def stream(request: web.Request) -> web.WebSocketResponse:
    """Follow, or write."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    try:
        async for message in ws:
            command = json.loads(message.data)
            if command["type"] == "subscribe":
                sockets.add(ws)
                await ws.send_json({"type": "live", "id": command["id"]})
            else:
                for item in command["readings"]:
                    await publish(item)
                await ws.send_json({"type": "ack", "id": command["id"], "accepted": len(command["readings"])})
    finally:
        sockets.discard(ws)
    return ws


@routes.get("/v1/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Follow over server-sent events, until the client goes."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(b'id: x-0\nevent: recovery\ndata: {"recovered":null}\n\n')
    streams.add(response)
    try:
        # Cancelled once the client has gone.
        await asyncio.Event().wait()
    finally:
        streams.discard(response)
    return response


async def publish(item: dict[str, object]) -> None:
    """To everybody, one after the other."""
    position = f"3f9a1c07-{next(offsets)}"
    reading = {
        "device": item["device"],
        "metric": item["metric"],
        "ts": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "value": item["value"],
        "position": position,
    }
    text = json.dumps({"type": "reading", **reading}, separators=(",", ":"))
    for ws in tuple(sockets):
        await ws.send_str(text)
    if streams:
        data = json.dumps(reading, separators=(",", ":"))
        event = f"id: {position}\nevent: reading\ndata: {data}\n\n".encode()
        for response in tuple(streams):
            await response.write(event)


app = web.Application()
app.add_routes(routes)
web.run_app(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    access_log=None,
    print=None,
    handler_cancellation=True,
    loop=uvloop.new_event_loop(),
)
