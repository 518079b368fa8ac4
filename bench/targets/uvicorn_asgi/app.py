"""An ASGI application without a framework."""

BODY = b'{"ok":true}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
}
END = {"type": "http.response.body", "body": BODY}
MISSING = {"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]}
NOTHING = {"type": "http.response.body", "body": b""}


async def app(scope, receive, send):
    """Answer GET /hello, anything else with 404."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    found = scope["path"] == "/hello"
    await send(START if found else MISSING)
    await send(END if found else NOTHING)
