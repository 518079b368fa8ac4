"""From a Response to bytes."""

from collections.abc import AsyncIterator

import pytest

from handlers.exchange import Response
from server.encoding import Encoder

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
HEAD = f"Date: {DATE}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: id\r\n".encode()


@pytest.fixture
def encoder() -> Encoder:
    made = Encoder()
    made.tick(DATE)
    return made


def test_an_answer_is_its_head_and_its_body(encoder: Encoder) -> None:
    response = Response(200, b"{}", "application/json", (("ETag", "x"),))
    assert encoder.encode(response, "id", "A: b\r\n", connection="close") == (
        b"HTTP/1.1 200 OK\r\n" + HEAD + b"A: b\r\nETag: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


def test_an_answer_to_head_has_the_length_of_the_body_and_no_body(encoder: Encoder) -> None:
    data = encoder.encode(Response(200, b"{}"), "id", bodiless=True)
    assert data == b"HTTP/1.1 200 OK\r\n" + HEAD + b"Content-Length: 2\r\n\r\n"


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_body_has_no_length_of_one(encoder: Encoder, status: int) -> None:
    data = encoder.encode(Response(status, b"ignored"), "id")
    assert data.endswith(HEAD + b"\r\n")


def test_chunks_are_announced_and_not_waited_for(encoder: Encoder) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b""

    response = Response(200, chunks=pieces())
    chunked = encoder.encode(response, "id", chunked=True)
    assert chunked.endswith(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    assert encoder.encode(response, "id").endswith(HEAD + b"\r\n")


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb"])
def test_a_header_cannot_smuggle_another(encoder: Encoder, value: str) -> None:
    with pytest.raises(ValueError, match="a line break in the header X"):
        encoder.encode(Response(200, headers=(("X", value),)), "id")


def test_what_latin_1_cannot_say_becomes_a_question_mark(encoder: Encoder) -> None:
    assert b"X: ?\xe9\r\n" in encoder.encode(Response(200, headers=(("X", "\u20ac\u00e9"),)), "id")
