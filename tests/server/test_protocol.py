"""What the gate makes of bytes that are no proper request: a problem document, and the connection ends."""

import pytest

from server.protocol import FIELD_MAX, FIELDS_MAX, TARGET_MAX
from tests.raw import Raw, request
from tests.running import Running

HOST = b"Host: gate\r\n"
PLAIN = b"GET /livez HTTP/1.1\r\n" + HOST
POST = b"POST /v1/token HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def fields(count: int) -> bytes:
    """A head with this many header fields."""
    return PLAIN + b"".join(b"X-%d: a\r\n" % number for number in range(count - 1)) + b"\r\n"


MALFORMED = {
    "no request line": b"GARBAGE\r\n\r\n",
    "a method of other letters": b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"BREW /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "another protocol": b"GET /livez FTP/1.1\r\n" + HOST + b"\r\n",
    "a version of two digits": b"GET /livez HTTP/1.10\r\n" + HOST + b"\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303"),
    "a space in the target": b"GET /li vez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control in the target": b"GET /li\x01vez HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target without a slash": b"GET livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is no URL": b"GET http://[::1/livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "an asterisk for GET": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without a colon": PLAIN + b"Bad\r\n\r\n",
    "a space in a header name": PLAIN + b"Bad Header: x\r\n\r\n",
    "a space before the colon": PLAIN + b"X : a\r\n\r\n",
    "a NUL in a header": PLAIN + b"X: a\0b\r\n\r\n",
    "a header that goes on in the next line": PLAIN + b"X: a\r\n b\r\n\r\n",
    "lines that end in LF": b"GET /livez HTTP/1.1\nHost: gate\n\n",
    "a header that ends in LF": PLAIN + b"X: a\nY: b\r\n\r\n",
    "a CR inside a header": PLAIN + b"X: a\rY: b\r\n\r\n",
    "lines that end in CR": b"GET /livez HTTP/1.1\rHost: gate\r\r",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "Host twice": PLAIN + HOST + b"\r\n",
    "Content-Length twice, the same": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "Content-Length twice, another": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "Content-Length as a list": POST + b"Content-Length: 1, 1\r\n\r\na",
    "Content-Length, then Transfer-Encoding": POST + b"Content-Length: 1\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "Transfer-Encoding, then Content-Length": POST + CHUNKED + b"Content-Length: 1\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding twice": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "a coding that does not end in chunks": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "Arabic digits in Content-Length": POST + "Content-Length: \u0661\r\n\r\na".encode(),
    "a sign in Content-Length": POST + b"Content-Length: +1\r\n\r\na",
    "a negative Content-Length": POST + b"Content-Length: -1\r\n\r\na",
    "a hexadecimal Content-Length": POST + b"Content-Length: 0x1\r\n\r\na",
    "a Content-Length past 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\na",
    "a chunk size that is no number": POST + CHUNKED + b"\r\nzz\r\n\r\n",
    "a chunk size past 64 bits": POST + CHUNKED + b"\r\nffffffffffffffffff\r\n",
    "a space behind a chunk size": POST + CHUNKED + b"\r\n1 \r\na\r\n0\r\n\r\n",
    "a chunk size that ends in LF": POST + CHUNKED + b"\r\n1\na\r\n0\r\n\r\n",
    "a chunk that is longer than it says": POST + CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_what_is_no_http_is_refused_as_malformed_and_the_connection_ends(
    gate: Running, case: str
) -> None:
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(MALFORMED[case])
        assert (answer.status, answer.code) == (400, "malformed")
        assert answer.closing
        assert await connection.ended() == b""
    assert gate.gate.server.parse_errors == 1
    assert (await gate.get("/livez")).status == 200


OTHERS = {
    "a target that is too long": (b"GET /" + b"a" * TARGET_MAX + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "a header value that is too long": (PLAIN + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431),
    "a header name that is too long": (PLAIN + b"a" * 9000 + b": x\r\n\r\n", 431),
    "too many headers": (fields(FIELDS_MAX + 1), 431),
    "too many trailers": (POST + CHUNKED + b"\r\n0\r\n" + b"X: a\r\n" * 300 + b"\r\n", 431),
    "a trailer that is too long": (POST + CHUNKED + b"\r\n0\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "HTTP/0.9": (b"GET /livez HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "a request line without a version": (b"GET /livez\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /livez HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/3.7": (b"GET /livez HTTP/3.7\r\n" + HOST + b"\r\n", 505),
}
CODES = {414: "uri_too_long", 431: "headers_too_large", 505: "version_not_supported"}


@pytest.mark.parametrize("case", OTHERS)
async def test_what_is_too_large_or_of_another_version_is_refused_as_such(gate: Running, case: str) -> None:
    data, status = OTHERS[case]
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(data)
        assert (answer.status, answer.code) == (status, CODES[status])
        assert answer.closing
        assert await connection.ended() == b""
    assert (await gate.get("/livez")).status == 200


TAKEN = {
    "the longest target": (b"GET /" + b"a" * (TARGET_MAX - 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "the longest header": (PLAIN + b"X: " + b"a" * (FIELD_MAX - 100) + b"\r\n\r\n", 200),
    "as many headers as may be": (fields(FIELDS_MAX), 200),
    "an empty Host": (b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n", 200),
    "no Host in HTTP/1.0": (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    "bytes beyond ASCII in a header": (PLAIN + b"X: \xff\xfe\r\n\r\n", 200),
    "empty lines before the request": (b"\r\n\r\n" + PLAIN + b"\r\n", 200),
    "an absolute target": (b"GET http://elsewhere/livez HTTP/1.1\r\n" + HOST + b"\r\n", 200),
    "an upgrade that nobody offers": (PLAIN + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    "OPTIONS for everything": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 204),
    "CONNECT": (b"CONNECT gate:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a method of another trade": (b"PROPFIND /livez HTTP/1.1\r\n" + HOST + b"\r\n", 405),
}


@pytest.mark.parametrize("case", TAKEN)
async def test_what_is_odd_but_proper_is_answered_and_the_next_request_too(gate: Running, case: str) -> None:
    data, status = TAKEN[case]
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(data)
        assert answer.status == status
        if not answer.closing:
            assert (await connection.ask(PLAIN + b"\r\n")).status == 200
    assert gate.gate.server.parse_errors == 0


async def test_a_body_that_breaks_off_its_framing_is_refused_at_once(gate: Running) -> None:
    head = request("POST", "/v1/readings", token=gate.token(), headers=("Transfer-Encoding: chunked",))
    async with await Raw.open(gate.port) as connection:
        # The head first, so that the handler waits for the body when the framing breaks.
        await connection.send(head + b"4\r\n[{}]\r\n")
        answer = await connection.ask(b"zz\r\n")
        assert (answer.status, answer.code) == (400, "malformed")
        assert answer.closing
        assert await connection.ended() == b""


async def test_a_flood_of_chunk_extensions_ends_at_the_size_of_a_body(gate: Running) -> None:
    head = request("POST", "/v1/token", headers=("Transfer-Encoding: chunked",))
    async with await Raw.open(gate.port) as connection:
        await connection.send(head)
        flood = b"1;" + b"a" * 1000 + b"\r\nx\r\n"
        connection.writer.write(flood * 70_000)
        answer = await connection.answer()
        assert answer.status == 413
        assert answer.closing
    assert gate.gate.server.lane.held == 0


async def test_what_comes_behind_a_refused_request_is_not_looked_at(gate: Running) -> None:
    write = request("POST", "/v1/devices/d/readings", b'{"metric":"m","value":1}', token=gate.token())
    async with await Raw.open(gate.port) as connection:
        assert (await connection.ask(b"GARBAGE\r\n\r\n" + write)).status == 400
        assert await connection.ended() == b""
    assert (await gate.get("/v1/devices/d/latest")).status == 404


async def test_a_smuggled_request_is_not_run(gate: Running) -> None:
    """CVE-2026-69243 and its kin: what a proxy takes for a body must not become a request."""
    write = request("POST", "/v1/devices/d/readings", b'{"metric":"m","value":1}', token=gate.token())
    upgrade = ("Connection: upgrade", "Upgrade: websocket")
    async with await Raw.open(gate.port) as connection:
        answer = await connection.ask(request("GET", "/livez", write, headers=upgrade))
        assert answer.status == 200
        assert (await connection.ask(request("GET", "/livez"))).status == 200
    assert (await gate.get("/v1/devices/d/latest")).status == 404
