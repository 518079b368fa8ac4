"""Frames of clients: aiohttp's reader, and what it would let pass."""

from itertools import pairwise

import pytest
from aiohttp import WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from handlers.live.reader import FrameError, FrameReader, MaskGuard
from handlers.live.wires import close_frame, frame
from tests.handlers.followers import Frames


def client_frame(payload: bytes, *, mask: bool = True, opcode: int = 2) -> bytes:
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126:
        head = bytes((0x80 | opcode, bit | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, bit | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, bit | 127)) + size.to_bytes(8)
    return head + (b"\0\0\0\0" if mask else b"") + payload


sizes = st.sampled_from([0, 1, 5, 124, 125, 126, 127, 300, 65535, 65536, 70000])
cuts = st.lists(st.integers(1, 40_000), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@given(frames=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=6), cuts=cuts)
def test_an_unmasked_frame_is_seen_however_the_bytes_are_cut(
    frames: list[tuple[int, bool]], cuts: list[int]
) -> None:
    guard = MaskGuard()
    data = b"".join(client_frame(b"\xff" * size, mask=mask) for size, mask in frames)
    assert all(guard.passes(piece) for piece in pieces(data, cuts)) == all(mask for _, mask in frames)


@given(payloads=st.lists(sizes, min_size=1, max_size=5), cuts=cuts)
def test_messages_come_whole_however_the_bytes_are_cut(payloads: list[int], cuts: list[int]) -> None:
    got: list[bytes] = []
    reader = FrameReader(lambda message: got.append(message.data), 70_000)
    data = b"".join(client_frame(bytes([n % 251]) * size) for n, size in enumerate(payloads))
    for piece in pieces(data, cuts):
        reader.feed(piece)
    assert got == [bytes([n % 251]) * size for n, size in enumerate(payloads)]


@pytest.mark.parametrize(("size", "passes"), [(100, True), (101, False), (1 << 40, False)])
def test_a_message_over_the_limit_is_refused_before_it_is_there(size: int, passes: bool) -> None:
    reader = FrameReader(lambda _: None, 100)
    head = client_frame(b"")[:1] + b"\xff" + size.to_bytes(8) + b"\0\0\0\0"
    if passes:
        reader.feed(head)
    else:
        with pytest.raises(FrameError) as refused:
            reader.feed(head)
        assert refused.value.code == 1009


def test_what_a_message_breaks_is_told() -> None:
    def take(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FrameReader(take, 100).feed(client_frame(b"x"))


@given(st.binary(max_size=70_000))
def test_our_own_frames_are_read_by_others(payload: bytes) -> None:
    got: list[tuple[object, bytes]] = []
    reader = FrameReader(lambda message: got.append((message.type, message.data)), 70_000)
    reader._guard = type("Guard", (), {"passes": lambda *_: True})()
    reader.feed(frame(2, payload))
    assert got == [(WSMsgType.BINARY, payload)]


def test_a_close_frame_has_a_code_and_a_reason_that_fits() -> None:
    (message,) = Frames(packed=False).feed(close_frame(4408, "e" * 200))
    assert message["code"] == 4408
    assert message["position"] == "e" * 123
