"""freastal: libuv and picohttpparser in C, an ASGI application without a framework."""

import sys

import freastal

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
    found = scope["path"] == "/hello"
    await send(START if found else MISSING)
    await send(END if found else NOTHING)


if __name__ == "__main__":
    freastal.serve_asgi(app, host="127.0.0.1", port=int(sys.argv[1]), workers=1)
