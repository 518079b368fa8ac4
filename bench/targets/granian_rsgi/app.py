"""granian's own interface, RSGI: HTTP is parsed and written in Rust, one call answers."""

BODY = b'{"ok":true}'
HEADERS = [("content-type", "application/json")]


async def app(scope, protocol):
    """Answer GET /hello, anything else with 404."""
    if scope.path == "/hello":
        protocol.response_bytes(200, HEADERS, BODY)
    else:
        protocol.response_empty(404, [])
