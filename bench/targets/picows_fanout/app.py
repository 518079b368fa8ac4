"""picows on uvloop: a loop over its transports, `send` each message as it is made."""

import itertools
import json
import sys
from datetime import UTC, datetime

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

followers: set[WSTransport] = set()
offsets = itertools.count(1)


class Listener(WSListener):
    """One connection."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Follow, or write."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            command = json.loads(frame.get_payload_as_bytes())
            if command["type"] == "subscribe":
                followers.add(transport)
                say(transport, {"type": "live", "id": command["id"]})
            else:
                for item in command["readings"]:
                    message = text(item)
                    for follower in followers:
                        follower.send(WSMsgType.TEXT, message)
                say(transport, {"type": "ack", "id": command["id"], "accepted": len(command["readings"])})

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Gone."""
        followers.discard(transport)


def say(transport: WSTransport, content: dict[str, object]) -> None:
    """Any other message."""
    transport.send(WSMsgType.TEXT, json.dumps(content).encode())


def text(item: dict[str, object]) -> bytes:
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
    ).encode()


def listen(request: WSUpgradeRequest) -> WSListener:
    """For a new connection."""
    return Listener()


async def main() -> None:
    """Serve."""
    server = await ws_create_server(listen, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
