import gzip
import io
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers.codings import CODINGS, FRAMES_MAX, decode
from handlers.problems import Problem
from tests.handlers.wire import JSON, bearer, problem, raw
from tests.running import Running, run_gate

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", zstd.compress),
]


@settings(deadline=None)
@given(st.binary(), st.sampled_from(ENCODERS))
def test_what_was_encoded_is_decoded(data: bytes, encoder: tuple[str, Callable[[bytes], bytes]]) -> None:
    coding, encode = encoder
    assert decode(coding, encode(data), LIMIT) == data


@settings(deadline=None)
@given(st.binary(), st.sampled_from(sorted(CODINGS)))
@example(b"\x28\xb5\x2f\xfd", "zstd")
@example(b"\x50\x2a\x4d\x18\x00\x00\x00\x00", "zstd")
def test_any_bytes_are_decoded_or_malformed(data: bytes, coding: str) -> None:
    try:
        decode(coding, data, LIMIT)
    except Problem as refusal:
        code = refusal.entry.code
    else:
        code = ""
    assert code in ("", "malformed")


@settings(deadline=None)
@given(st.binary(min_size=1), st.sampled_from(ENCODERS), st.data())
def test_a_body_that_was_cut_off_is_malformed(
    body: bytes, encoder: tuple[str, Callable[[bytes], bytes]], data: st.DataObject
) -> None:
    coding, encode = encoder
    whole = encode(body)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(Problem, match=f"the body is not {coding}"):
        decode(coding, cut, LIMIT)


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
def test_what_is_larger_than_the_limit_is_too_large_as_soon_as_it_is(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    assert len(decode(coding, encode(bytes(LIMIT)), LIMIT)) == LIMIT
    for size in (LIMIT + 1, 200 * LIMIT):
        with pytest.raises(Problem) as caught:
            decode(coding, encode(bytes(size)), LIMIT)
        assert caught.value.entry.code == "too_large"


def test_a_zstd_bomb_that_hides_its_size_is_too_large_and_a_huge_window_is_refused() -> None:
    coder = zstd.ZstdCompressor()
    with pytest.raises(Problem) as caught:
        decode("zstd", coder.compress(bytes(50 * LIMIT)) + coder.flush(), LIMIT)
    assert caught.value.entry.code == "too_large"
    # A frame that asks for a window of 128 MiB: RFC 9659 allows 8.
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, 17 << 3]) + struct.pack("<I", 1 | 1 << 3)[:3] + b"x"
    with pytest.raises(Problem, match="the body is not zstd"):
        decode("zstd", frame, LIMIT)


def test_members_and_frames_follow_each_other() -> None:
    assert decode("gzip", gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c"), 3) == b"abc"
    assert decode("zstd", zstd.compress(b"ab") + zstd.compress(b"") + zstd.compress(b"c"), 3) == b"abc"
    for coding, member in (("gzip", gzip.compress(b"ab")), ("zstd", zstd.compress(b"ab"))):
        with pytest.raises(Problem) as caught:
            decode(coding, member * 2, 3)
        assert caught.value.entry.code == "too_large"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_flood_of_empty_parts_costs_no_time(coding: str) -> None:
    part = gzip.compress(b"") if coding == "gzip" else b"\x50\x2a\x4d\x18\x00\x00\x00\x00"
    assert decode(coding, part * FRAMES_MAX, LIMIT) == b""
    started = time.process_time()
    with pytest.raises(Problem, match="more than"):
        decode(coding, part * ((8 << 20) // len(part)), LIMIT)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
def test_what_follows_the_end_is_not_passed_over(coding: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Problem, match="the body is not"):
        decode(coding, encode(b"{}") + b"garbage", LIMIT)


# -- over HTTP -------------------------------------------------------------------------------------

BODY = b'{"device": "a", "metric": "t", "value": 1, "ts": 1}'


@pytest.mark.parametrize(("coding", "encode"), [*ENCODERS, ("GZIP", gzip.compress)])
async def test_bodies_may_be_compressed(gate: Running, coding: str, encode: Callable[[bytes], bytes]) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": coding}
    reply = await gate.post("/v1/readings", data=encode(BODY), headers=headers)
    assert reply.json["accepted"] == 1
    problem(await gate.post("/v1/readings", data=b"\1" + BODY, headers=headers), 400, "malformed")


@pytest.mark.parametrize(("coding", "encode"), ENCODERS)
async def test_the_limit_holds_after_decoding(
    gate: Running, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": coding}
    bomb = encode(b" " * (gate.settings.max_body + 1))
    assert len(bomb) < 64 * 1024
    problem(await gate.post("/v1/readings", data=bomb, headers=headers), 413, "too_large")
    fits = encode(BODY.ljust(gate.settings.max_body))
    assert (await gate.post("/v1/readings", data=fits, headers=headers)).status == 200


async def test_an_unknown_coding_is_415_and_the_answer_says_what_is_known(gate: Running) -> None:
    for coding in ("br", "compress", "gzip, gzip"):
        headers = {"Content-Type": JSON, "Content-Encoding": coding}
        reply = await gate.post("/v1/readings", data=BODY, headers=headers)
        problem(reply, 415, "unsupported_media_type")
        assert reply.headers["Accept-Encoding"] == "gzip, deflate, zstd"


async def test_a_body_of_8_mib_is_taken_and_a_byte_more_is_413(gate: Running) -> None:
    headers = {"Authorization": f"Bearer {gate.token()}", "Content-Type": JSON}
    body = io.BytesIO(BODY.ljust(8 << 20))
    async with gate.session.post(gate.url + "/v1/readings", data=body, headers=headers) as response:
        assert response.status == 200
    size = (8 << 20) + 1
    head = f"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n".encode()
    problem(await raw(gate, head + await bearer(gate) + b"\r\n" + bytes(size)), 413, "too_large")


async def test_a_body_in_chunks_that_is_too_large_is_413(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", MAX_BODY="1KiB") as gate:
        head = b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + await bearer(gate)
        problem(await raw(gate, head + b"\r\n500\r\n" + bytes(0x500) + b"\r\n0\r\n\r\n"), 413, "too_large")
