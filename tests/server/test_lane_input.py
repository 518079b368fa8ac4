"""Bad input: what the common lane refuses the fast lane refuses in the same words, and stores the same."""

import random
import re
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.raw import request
from tests.reliability.test_fuzz_sockets import streams
from tests.running import Running
from tests.server.lanes import Client, both_lanes, same_answers
from tests.server.test_protocol import MALFORMED, OTHERS, TAKEN

Gates = tuple[Running, Running]

DEVICE = "demo.a"
PATH = f"/v1/devices/{DEVICE}/readings"
LATEST = f"/v1/devices/{DEVICE}/latest"
READING = b'{"metric": "t", "value": 1, "ts": 1000}'
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture
async def gates(tmp_path: Path) -> AsyncIterator[Gates]:
    async with both_lanes(tmp_path) as both:
        for gate in both:
            await gate.write(DEVICE, {"metric": "t", "value": 1, "ts": 1000})
        yield both


def post(token: str, body: bytes, *lines: str, path: str = PATH) -> bytes:
    """A write with exactly these lines and no length of its own."""
    return request("POST", path, token=token, headers=lines) + body


def get(token: str, target: str = LATEST, *lines: str) -> bytes:
    return request("GET", target, token=token, headers=lines)


def lengths(token: str) -> dict[str, bytes]:
    """Content-Length as it must not be, and as it hardly ever is."""
    size = len(READING)
    one = {
        "the same twice": (f"Content-Length: {size}", f"Content-Length: {size}"),
        "two that differ": (f"Content-Length: {size}", "Content-Length: 3"),
        "two that differ, the smaller first": ("Content-Length: 3", f"Content-Length: {size}"),
        "in two cases": (f"Content-Length: {size}", f"content-length: {size}"),
        "a list": (f"Content-Length: {size}, {size}",),
        "a list that ends in a comma": (f"Content-Length: {size},",),
        "nothing": ("Content-Length:",),
        "spaces": ("Content-Length:   ",),
        "a sign": (f"Content-Length: +{size}",),
        "less than nothing": ("Content-Length: -1",),
        "hexadecimal": ("Content-Length: 0x27",),
        "underscores": ("Content-Length: 3_9",),
        "a fraction": ("Content-Length: 39.0",),
        "an exponent": ("Content-Length: 39e0",),
        "a quoted one": (f'Content-Length: "{size}"',),
        "two words": ("Content-Length: 3 9",),
        "a letter behind": ("Content-Length: 39a",),
        "leading zeros": (f"Content-Length: 00{size}",),
        "many leading zeros": (f"Content-Length: {size:030}",),
        "nine digits": (f"Content-Length: {size:09}",),
        "nine digits that count": ("Content-Length: 100000000",),
        "past 32 bits": (f"Content-Length: {(1 << 32) + size}",),
        "past 64 bits": (f"Content-Length: {(1 << 64) + size}",),
        "no space": (f"Content-Length:{size}",),
        "tabs": (f"Content-Length:\t{size}\t",),
        "spaces around": (f"Content-Length:   {size}   ",),
        "a space before the colon": (f"Content-Length : {size}",),
        "a tab before the colon": (f"Content-Length\t: {size}",),
        "a vertical tab": (f"Content-Length: \x0b{size}",),
        "a NUL behind": (f"Content-Length: {size}\0",),
        "a no-break space": (f"Content-Length: \xa0{size}",),
        "a near name": (f"Content-Length-: {size}",),
        "an underscore in the name": (f"Content_Length: {size}",),
        "a prefix of the name": (f"X-Content-Length: {size}",),
        "in a value of another header": (f"X: Content-Length: {size}",),
        "folded": ("Content-Length:", f" {size}"),
        "folded into a second number": (f"Content-Length: {size}", " 9"),
        "in lower case": (f"content-length: {size}",),
        "in any case": (f"cOnTeNt-lEnGtH: {size}",),
        "behind a bare LF": (f"X: a\nContent-Length: {size}",),
        "behind a bare CR": (f"X: a\rContent-Length: {size}",),
        "a bare LF behind": (f"Content-Length: {size}\nX: a",),
        "a bare CR behind": (f"Content-Length: {size}\rX: a",),
        "an LF and a second one": (f"Content-Length: {size}\nContent-Length: 3",),
        "none at all": (),
    }
    return {f"Content-Length: {name}": post(token, READING, *lines) for name, lines in one.items()}


def codings(token: str) -> dict[str, bytes]:
    """Transfer-Encoding as it must not be."""
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(READING), READING)
    size = f"Content-Length: {len(READING)}"
    one: dict[str, tuple[tuple[str, ...], bytes]] = {
        "after a length": ((size, CHUNKED), chunks),
        "before a length": ((CHUNKED, size), chunks),
        "before a length of nothing": ((CHUNKED, "Content-Length: 0"), chunks),
        "after a length of nothing": (("Content-Length: 0", CHUNKED), chunks),
        "after the length of its chunks": ((f"Content-Length: {len(chunks)}", CHUNKED), chunks),
        "twice": ((CHUNKED, CHUNKED), chunks),
        "twice in a list": (("Transfer-Encoding: chunked, chunked",), chunks),
        "identity": (("Transfer-Encoding: identity", size), READING),
        "identity alone": (("Transfer-Encoding: identity",), READING),
        "nothing": (("Transfer-Encoding:", size), READING),
        "something else": (("Transfer-Encoding: xchunked", size), READING),
        "gzip": (("Transfer-Encoding: gzip", size), READING),
        "gzip, chunked": (("Transfer-Encoding: gzip, chunked",), chunks),
        "chunked, gzip": (("Transfer-Encoding: chunked, gzip",), chunks),
        "chunked and identity": (("Transfer-Encoding: chunked, identity",), chunks),
        "two lines": (("Transfer-Encoding: gzip", CHUNKED), chunks),
        "in capitals": (("Transfer-Encoding: CHUNKED",), chunks),
        "quoted": (('Transfer-Encoding: "chunked"',), chunks),
        "a vertical tab before": (("Transfer-Encoding: \x0bchunked",), chunks),
        "a vertical tab behind": (("Transfer-Encoding: chunked\x0b",), chunks),
        "tabs around": (("Transfer-Encoding:\tchunked\t",), chunks),
        "a comma before": (("Transfer-Encoding: ,chunked",), chunks),
        "a comma behind": (("Transfer-Encoding: chunked,",), chunks),
        "a parameter": (("Transfer-Encoding: chunked;q=1",), chunks),
        "a space before the colon": (("Transfer-Encoding : chunked", size), READING),
        "folded": (("Transfer-Encoding:", " chunked"), chunks),
        "folded, with a length": ((size, "X: a", " Transfer-Encoding: chunked"), READING),
        "an underscore in the name": (("Transfer_Encoding: chunked", size), READING),
        "behind a bare LF": ((size, "X: a\nTransfer-Encoding: chunked"), READING),
        "behind a bare CR": ((size, "X: a\rTransfer-Encoding: chunked"), READING),
        "no last chunk": ((CHUNKED,), chunks[:-5]),
        "no end of the trailers": ((CHUNKED,), chunks[:-2]),
        "a trailer": ((CHUNKED,), chunks[:-2] + b"X: a\r\n\r\n"),
        "a trailer that is a length": ((CHUNKED,), chunks[:-2] + b"Content-Length: 3\r\n\r\n"),
        "a chunk that is longer": ((CHUNKED,), b"%x\r\n%b\r\n0\r\n\r\n" % (len(READING) - 1, READING)),
        "a chunk that is shorter": ((CHUNKED,), b"%x\r\n%b\r\n0\r\n\r\n" % (len(READING) + 2, READING)),
        "a negative chunk": ((CHUNKED,), b"-1\r\n" + READING),
        "a signed chunk": ((CHUNKED,), b"+27\r\n%b\r\n0\r\n\r\n" % READING),
        "a chunk of 0x": ((CHUNKED,), b"0x27\r\n%b\r\n0\r\n\r\n" % READING),
        "an extension": ((CHUNKED,), b"27;a=b\r\n%b\r\n0\r\n\r\n" % READING),
        "an extension with a bare LF": ((CHUNKED,), b"27;a\nb\r\n%b\r\n0\r\n\r\n" % READING),
        "a bare LF behind the size": ((CHUNKED,), b"27\n%b\r\n0\r\n\r\n" % READING),
        "a bare CR behind the size": ((CHUNKED,), b"27\r%b\r\n0\r\n\r\n" % READING),
        "no line break behind the data": ((CHUNKED,), b"27\r\n%b0\r\n\r\n" % READING),
        "a size of leading zeros": ((CHUNKED,), b"000000000000000000027\r\n%b\r\n0\r\n\r\n" % READING),
        "a compressed body that is none": (("Content-Encoding: gzip", size), READING),
        "a content coding that nobody knows": (("Content-Encoding: br", size), READING),
        "a content coding of identity": (("Content-Encoding: identity", size), READING),
    }
    return {f"Transfer-Encoding: {name}": post(token, body, *lines) for name, (lines, body) in one.items()}


def lines_and_targets(token: str) -> dict[str, bytes]:
    """Line ends, foldings, targets and versions."""
    good = get(token)
    host = b"Host: gate\r\n"
    targets = {
        "absolute": f"http://gate{LATEST}",
        "absolute, of another host": f"http://elsewhere:99{LATEST}?time=us",
        "absolute, https": f"https://gate{LATEST}",
        "absolute, in capitals": f"HTTP://GATE{LATEST}",
        "absolute, with a name and a password": f"http://a:b@gate{LATEST}",
        "absolute, of another scheme": f"ftp://gate{LATEST}",
        "absolute, without a path": "http://gate",
        "absolute, only a query": "http://gate?x=1",
        "absolute, no host": f"http://{LATEST}",
        "asterisk": "*",
        "an authority": "gate:80",
        "a fragment": LATEST + "#here",
        "a query and a fragment": LATEST + "?time=us#here",
        "two slashes": "/" + LATEST,
        "a backslash": LATEST.replace("/", "\\"),
        "a slash at the end": LATEST + "/",
        "two dots": f"/v1/../v1/devices/{DEVICE}/latest",
        "an encoded slash": LATEST.replace("/latest", "%2Flatest"),
        "an encoded letter": LATEST.replace("demo", "d%65mo"),
        "half an escape": LATEST + "?a=%",
        "a bad escape": LATEST.replace("demo", "%zz"),
        "an encoded NUL": LATEST.replace("demo", "d%00"),
        "an escape that is no UTF-8": LATEST.replace("demo", "%ff"),
        "bytes beyond ASCII": LATEST + "?\xe9",
        "a space": LATEST + " x",
        "a tab": LATEST + "\tx",
        "a DEL": LATEST + "\x7f",
        "nothing": "",
        "a question mark alone": "?",
        "too many fields": LATEST + "?" + "a=1&" * 300,
    }
    found = {f"target: {name}": get(token, target) for name, target in targets.items()}
    found |= {
        f"OPTIONS: {name}": request("OPTIONS", target, headers=("Origin: http://a",))
        for name, target in (("*", "*"), ("a path", LATEST), ("an absolute path", f"http://gate{LATEST}"))
    }
    lines: dict[str, bytes] = {
        "LF throughout": good.replace(b"\r\n", b"\n"),
        "CR throughout": good.replace(b"\r\n", b"\r"),
        "LF behind the request line": good.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
        "CR behind the request line": good.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r"),
        "LF behind a header": good.replace(host, b"Host: gate\n"),
        "CR behind a header": good.replace(host, b"Host: gate\r"),
        "CR CR LF behind a header": good.replace(host, b"Host: gate\r\r\n"),
        "LF as the empty line": good[:-2] + b"\n",
        "CR as the empty line": good[:-2] + b"\r",
        "LF LF at the end": good[:-4] + b"\n\n",
        "LF CR LF at the end": good[:-4] + b"\n\r\n",
        "a folded line": get(token, LATEST, "X: a", " b"),
        "a line folded by a tab": get(token, LATEST, "X: a", "\tb"),
        "a folded first line": good.replace(host, b" Host: gate\r\n"),
        "a folded line with a head end in it": get(token, LATEST, "X: a", " \r\n\r\n b"),
        "a fold of nothing": get(token, LATEST, "X: a", " "),
        "an empty name": get(token, LATEST, ": a"),
        "a name without a colon": get(token, LATEST, "Nothing"),
        "a name in brackets": get(token, LATEST, "X(a): b"),
        "a name beyond ASCII": get(token, LATEST, "X\xe9: b"),
        "a name with a space": get(token, LATEST, "X a: b"),
        "a NUL in a value": get(token, LATEST, "X: a\0b"),
        "an ESC in a value": get(token, LATEST, "X: a\x1bb"),
        "no Host": good.replace(host, b""),
        "an empty Host": good.replace(host, b"Host:\r\n"),
        "Host twice": good.replace(host, host + host),
        "a Host with a path": good.replace(host, b"Host: gate/x\r\n"),
        "an Authorization twice": get(token, LATEST, f"Authorization: Bearer {token}"),
        "lower case HTTP": good.replace(b"HTTP/1.1", b"http/1.1"),
        "HTTP/1.1 with a space": good.replace(b"HTTP/1.1", b"HTTP/1.1 "),
        "two spaces": good.replace(b" HTTP/1.1", b"  HTTP/1.1"),
        "a space before the method": b" " + good,
        "a lower case method": b"get" + good[3:],
        "a method of its own": b"BREW" + good[3:],
        "HTTP/1.2": good.replace(b"HTTP/1.1", b"HTTP/1.2"),
        "HTTP/0.9": good.replace(b"HTTP/1.1", b"HTTP/0.9"),
        "HTTP/2.0": good.replace(b"HTTP/1.1", b"HTTP/2.0"),
        "HTTP/1.0": good.replace(b"HTTP/1.1", b"HTTP/1.0"),
        "no version": good.replace(b" HTTP/1.1", b""),
        "empty lines before": b"\r\n\r\n" + good,
        "an LF before": b"\n" + good,
        "a CR before": b"\r" + good,
        "a space alone": b" \r\n" + good,
        "nothing but empty lines": b"\r\n\r\n\r\n\r\n",
        "Connection: close and keep-alive": get(token, LATEST, "Connection: close, keep-alive"),
        "Connection twice": get(token, LATEST, "Connection: keep-alive", "Connection: close"),
        "Connection: upgrade to nothing": get(token, LATEST, "Connection: upgrade"),
        "an upgrade without Connection": get(token, LATEST, "Upgrade: websocket"),
        "an upgrade to HTTP/2": get(token, LATEST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    }
    return found | lines


def sizes(token: str) -> dict[str, bytes]:
    """Heads and bodies around and beyond every bound."""
    found: dict[str, bytes] = {}
    for size in (2047, 2048, 2049, 8190, 8192, 9000):
        rest = size - len(get(token, LATEST, "X: "))
        found[f"a head of {size}"] = get(token, LATEST, "X: " + "x" * rest)
    for size in (8190, 8191, 8192, 8193):
        found[f"a header of {size}"] = get(token, LATEST, "X: " + "x" * (size - 3))
        found[f"a target of {size}"] = get(token, "/" + "x" * (size - 1))
    for count in (125, 126, 127, 128, 200):
        found[f"{count} headers more"] = get(token, LATEST, *[f"X-{number}: 1" for number in range(count)])
    found["a head of 70,000"] = get(token, LATEST, *[f"X-{number}: {'x' * 7000}" for number in range(10)])
    found["half a head of 20,000"] = get(token, LATEST, *["X: " + "x" * 6000] * 4)[:20_000]
    for size in (0, 1, 65_535, 65_536, 65_537, 100_000):
        body = READING + b" " * (size - len(READING)) if size >= len(READING) else b" " * size
        found[f"a body of {size}"] = request("POST", PATH, body, token=token)
    found["a body over the limit"] = post(token, b"[", f"Content-Length: {9 << 20}")
    found["a form over the limit of strangers"] = post("", b"a", "Content-Length: 70000", path="/v1/token")
    return found


def bodies(token: str) -> dict[str, bytes]:
    """Bodies that are longer or shorter than announced, and requests that touch."""
    good, size = get(token), len(READING)
    write = post(token, READING, f"Content-Length: {size}")
    smuggled = post(token, b'{"metric": "t", "value": 66, "ts": 66}', "Content-Length: 38")
    return {
        "a byte longer": write + b"x",
        "an LF longer": write + b"\n",
        "a CRLF longer": write + b"\r\n",
        "a CRLF longer, then another": write + b"\r\n" + good,
        "an LF longer, then another": write + b"\n" + good,
        "a byte longer, then another": write + b"x" + good,
        "a byte shorter": post(token, READING[:-1], f"Content-Length: {size}"),
        "a byte shorter, then another": post(token, READING[:-1], f"Content-Length: {size}") + good,
        "the next request as its body": post(token, b"", f"Content-Length: {len(smuggled)}") + smuggled,
        "the next request as the body of a GET": get(token, LATEST, f"Content-Length: {len(smuggled)}")
        + smuggled,
        "the next request as the body of a HEAD": request(
            "HEAD", LATEST, token=token, headers=(f"Content-Length: {len(smuggled)}",)
        )
        + smuggled,
        "a length of nothing, then another": post(token, b"", "Content-Length: 0") + smuggled,
        "no length, then another": post(token, b"") + smuggled,
        "a list of lengths, then another": post(token, READING, "Content-Length: 39, 0") + smuggled,
        "a length behind an LF, then another": post(token, b"", f"X: a\nContent-Length: {len(smuggled)}")
        + smuggled,
        "a length in a folded line, then another": post(
            token, b"", "X: a", f" Content-Length: {len(smuggled)}"
        )
        + smuggled,
        "chunks and a length, then another": post(token, b"0\r\n\r\n", "Content-Length: 5", CHUNKED)
        + smuggled,
        "a length and chunks that end early": post(token, b"0\r\n\r\n", CHUNKED, "Content-Length: 60")
        + smuggled,
        "chunks, then another": post(token, b"27\r\n%b\r\n0\r\n\r\n" % READING, CHUNKED) + smuggled,
        "an upgrade with a body, then another": get(
            token, LATEST, "Connection: upgrade", "Upgrade: websocket", f"Content-Length: {len(smuggled)}"
        )
        + smuggled
        + good,
        "an upgrade, then another": get(token, LATEST, "Connection: upgrade", "Upgrade: websocket")
        + smuggled,
        "an end, then another": get(token, LATEST, "Connection: close") + smuggled,
        "HTTP/1.0, then another": good.replace(b"HTTP/1.1", b"HTTP/1.0") + smuggled,
        "CONNECT, then another": request("CONNECT", "gate:80", token=token) + smuggled,
        "Expect, a refusal, then another": post("", b"", "Expect: 100-continue", "Content-Length: 38")
        + smuggled,
        "Expect and a body, then another": post(
            token, READING, "Expect: 100-continue", f"Content-Length: {size}"
        )
        + smuggled,
        "garbage, then another": b"GARBAGE\r\n\r\n" + smuggled,
        "two that touch": write + good,
        "the same twice": write + write,
        "the same three times, cut short": write + write + write[:-5],
    }


def cases(token: str) -> dict[str, bytes]:
    """All of them."""
    malformed = {f"protocol: {name}": data for name, data in MALFORMED.items()}
    others = {f"protocol: {name}": data for name, (data, _) in (OTHERS | TAKEN).items()}
    found: dict[str, bytes] = malformed | others
    for more in (
        lengths(token),
        codings(token),
        lines_and_targets(token),
        sizes(token),
        bodies(token),
    ):
        assert found.keys().isdisjoint(more)
        found |= more
    return found


async def log_of(gate: Running) -> list[object]:
    page = (await gate.get("/v1/readings?since=earliest&limit=1000&time=us")).json
    assert page["end"]
    items: list[object] = page["items"]
    return items


PLACES = ("alone", "behind known heads", "between known heads in one piece", "before a write", "cut anywhere")


@pytest.mark.parametrize("place", PLACES)
async def test_bad_input_gets_the_same_words_in_both_lanes_wherever_it_stands(
    gates: Gates, place: str
) -> None:
    token = gates[0].token()
    good, behind = get(token), request("POST", PATH, b'{"metric": "t", "value": 7, "ts": 7}', token=token)
    seed = 20261121
    chance = random.Random(seed)
    for name, data in cases(token).items():
        match place:
            case "alone":
                pieces = [data]
            case "behind known heads":
                pieces = [good, good, good, data, good]
            case "between known heads in one piece":
                pieces = [good, good, good + data + good]
            case "before a write":
                pieces = [good, good, data + behind]
            case _:
                cuts = sorted({chance.randrange(1, len(data)) for _ in range(chance.randint(1, 3))})
                ends = zip([0, *cuts], [*cuts, len(data)], strict=True)
                pieces = [good, good, *(data[first:last] for first, last in ends), good]
        try:
            await same_answers(gates, [pieces])
        except AssertionError as error:
            raise AssertionError(f"{name}, {place} (seed {seed}): {error}") from error
    # What was smuggled into one of them is in one of the logs.
    assert await log_of(gates[0]) == await log_of(gates[1])
    assert {gate.gate.server.open for gate in gates} == {1}


async def test_what_stands_before_bad_input_is_answered_wherever_the_stream_is_cut(gates: Gates) -> None:
    """The parser forgets what it was given in one piece with what it refuses."""
    token = gates[0].token()
    good = get(token) + request("POST", PATH, READING, token=token) + get(token)
    one = good + b"GARBAGE\r\n\r\n" + get(token)
    for place in range(1, len(one), 3):
        said = await same_answers(gates, [[one[:place], one[place:]]])
        assert re.findall(rb"HTTP/1\.1 ([0-9]+)", said[0]) == [b"200", b"200", b"200", b"400"], place
        assert said[1] == b"ended"


async def test_a_flood_of_empty_lines_does_not_stop_the_loop(gates: Gates) -> None:
    """A read of the socket has at most 256 KiB. Fed line by line it took 0.4 s."""
    for gate in gates:
        took = []
        for _ in range(3):
            client = Client(gate)
            begun = time.perf_counter()
            client.protocol.data_received(b"\r\n\r\n" * 65_536)
            took.append(time.perf_counter() - begun)
            await client.send(get(gate.token()))
            assert client.transport.written.startswith(b"HTTP/1.1 200 ")
            client.close()
        assert min(took) < 0.1


# Requests whose answers have no time of the gate in them.
SEEDS = (
    get("TOKEN"),
    get("TOKEN"),
    request("POST", PATH, READING, token="TOKEN"),
    request("POST", PATH, READING, token="TOKEN"),
    post("TOKEN", b"1\r\n[\r\n3;a=b\r\n{}]\r\n0\r\nT: x\r\n\r\n", CHUNKED),
    get("TOKEN", "/v1/readings?match=>&metric=t&since=earliest", "Accept: text/csv"),
    request("HEAD", LATEST, token="TOKEN", headers=("Connection: close",)),
    post("TOKEN", READING, "Expect: 100-continue", f"Content-Length: {len(READING)}"),
    get("TOKEN", LATEST, "Connection: upgrade", "Upgrade: websocket"),
    request("POST", "/v1/token", b"grant_type=client_credentials", version="1.0"),
    request("OPTIONS", "*", headers=("Origin: http://a", "Access-Control-Request-Method: GET")),
    request("GET", "/livez"),
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    one=streams(SEEDS),
    warm=st.booleans(),
    two=streams(SEEDS),
    cuts=st.lists(st.integers(0, 1500), max_size=4),
)
async def test_any_damaged_requests_get_the_same_answers(
    gates: Gates, one: bytes, warm: bool, two: bytes, cuts: list[int]
) -> None:
    token = gates[0].token()
    data = (one + two).replace(b"TOKEN", token.encode())
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[first:last] for first, last in pairwise(places)]
    good = get(token)
    await same_answers(gates, [[good, good, good, *pieces] if warm else pieces])
    assert await log_of(gates[0]) == await log_of(gates[1])
