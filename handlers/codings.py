"""Content codings of request bodies: gzip, deflate, zstd, with a bound on what comes out."""

import sys
import zlib
from collections.abc import Callable

from handlers.problems import Problem

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1 << 20


def decode(coding: str, body: bytes, limit: int) -> bytes:
    """The decoded body; Problem: malformed, or too_large as soon as it passes `limit` bytes."""
    try:
        return _DECODERS[coding](body, limit)
    except (zlib.error, zstd.ZstdError, EOFError) as error:
        raise Problem("malformed", f"the body is not {coding}: {error}") from error


def _gzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file (RFC 1952 allows several)."""
    parts: list[bytes] = []
    while body:
        decoder = zlib.decompressobj(wbits=31)
        _inflate(decoder, body, limit, parts)
        body = decoder.unused_data
    return b"".join(parts)


def _deflate(body: bytes, limit: int) -> bytes:
    """The zlib format, as RFC 9110 says, or raw deflate, as some clients send."""
    parts: list[bytes] = []
    try:
        _inflate(zlib.decompressobj(), body, limit, parts)
    except zlib.error:
        parts = []
        _inflate(zlib.decompressobj(wbits=-15), body, limit, parts)
    return b"".join(parts)


def _inflate(decoder: "zlib._Decompress", body: bytes, limit: int, parts: list[bytes]) -> None:
    size = sum(map(len, parts))
    while not decoder.eof:
        part = decoder.decompress(body, _CHUNK)
        size += len(part)
        _check(size, limit)
        parts.append(part)
        body = decoder.unconsumed_tail
        if not body and not part and not decoder.eof:
            raise EOFError("it ends too early")


def _zstd(body: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while body:
        decoder = zstd.ZstdDecompressor()
        while not decoder.eof:
            part = decoder.decompress(body, _CHUNK)
            body = b""
            size += len(part)
            _check(size, limit)
            parts.append(part)
            if not part and decoder.needs_input:
                raise EOFError("it ends too early")
        body = decoder.unused_data
    return b"".join(parts)


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise Problem("too_large", f"the body is larger than {limit} bytes when decoded")


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}

CODINGS = frozenset(_DECODERS)
