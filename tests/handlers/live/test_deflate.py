"""permessage-deflate: what is agreed to, and that a frame stands for itself."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.live.deflate import LEAST, Deflater, accepted
from handlers.live.reader import FrameError, FrameReader
from tests.handlers.live.test_reader import client_frame

OURS = "permessage-deflate; server_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", OURS),
        ("permessage-deflate; client_max_window_bits", OURS),
        ("permessage-deflate; client_max_window_bits=10", OURS),
        ("permessage-deflate;server_no_context_takeover", OURS),
        ("permessage-deflate; client_no_context_takeover", f"{OURS}; client_no_context_takeover"),
        ("permessage-deflate; server_max_window_bits=15", f"{OURS}; server_max_window_bits=9"),
        ('permessage-deflate; server_max_window_bits="9"', f"{OURS}; server_max_window_bits=9"),
        # zlib has no window of 8 bits.
        ("permessage-deflate; server_max_window_bits=8", ""),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", OURS),
        ("x-webkit-deflate-frame, permessage-deflate", OURS),
        ("", ""),
        ("permessage-deflated", ""),
        ("permessage-deflate; server_max_window_bits", ""),
        ("permessage-deflate; server_max_window_bits=09", ""),
        ("permessage-deflate; server_max_window_bits=16", ""),
        ("permessage-deflate; client_max_window_bits=7", ""),
        ("permessage-deflate; server_no_context_takeover=1", ""),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", ""),
        ("permessage-deflate; unheard_of", ""),
        ("permessage-deflate; ", ""),
        ("permessage-deflate client_max_window_bits", ""),
    ],
)
def test_an_offer_is_met_or_passed_over(offer: str, answer: str) -> None:
    assert accepted([offer]) == answer


def test_offers_may_stand_in_several_headers() -> None:
    assert accepted(["permessage-deflate; unheard_of", "permessage-deflate"]) == OURS
    assert accepted([]) == ""


@given(st.text(max_size=60))
def test_any_text_is_an_offer_that_is_met_or_not(text: str) -> None:
    assert accepted([text]) in ("", OURS)


@given(payloads=st.lists(st.binary(max_size=3000) | st.text(max_size=300).map(str.encode), min_size=1))
def test_each_message_is_read_without_those_before(payloads: list[bytes]) -> None:
    deflater = Deflater()
    for payload in payloads:
        compressed = deflater.deflate(payload)
        # As a client does, whose window is as small as it may be; 03 00 ends the stream.
        assert zlib.decompress(compressed + b"\x00\x00\xff\xff\x03\x00", -9) == payload


def test_what_grows_is_sent_as_it_is() -> None:
    deflater = Deflater()
    assert deflater.compress(b"a" * (LEAST - 1)) is None
    assert deflater.compress(bytes(range(256))) is None
    compressed = deflater.compress(b"a" * LEAST)
    assert compressed is not None
    assert len(compressed) < LEAST


def compressed_frame(payload: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
    return client_frame(data.removesuffix(b"\x00\x00\xff\xff"), opcode=0x42)


def test_a_message_is_inflated_to_the_limit_and_not_beyond() -> None:
    got: list[int] = []
    reader = FrameReader(lambda message: got.append(len(message.data)), 65_536, deflated=True)
    reader.feed(compressed_frame(b"0" * 65_536))
    reader.feed(client_frame(b"plain"))
    assert got == [65_536, 5]
    bomb = compressed_frame(b"0" * 60_000_000)
    assert len(bomb) < 65_536
    with pytest.raises(FrameError) as refused:
        reader.feed(bomb)
    assert refused.value.code == 1009


def test_what_cannot_be_inflated_is_refused() -> None:
    reader = FrameReader(lambda _: None, 1000, deflated=True)
    with pytest.raises(FrameError) as refused:
        reader.feed(client_frame(b"\xff" * 20, opcode=0x42))
    assert refused.value.code == 1007


def test_who_has_not_agreed_must_not_compress() -> None:
    reader = FrameReader(lambda _: None, 1000)
    with pytest.raises(FrameError) as refused:
        reader.feed(compressed_frame(b"0" * 100))
    assert refused.value.code == 1002
