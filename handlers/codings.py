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
# Members or frames of one body. Each costs a copy of all that follows it, however little it holds.
FRAMES_MAX = 100
_TOO_MANY = f"it has more than {FRAMES_MAX} parts"
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


def decode(coding: str, body: bytes, limit: int) -> bytes:
    """The decoded body; Problem: malformed, or too_large as soon as it passes `limit` bytes."""
    try:
        return _DECODERS[coding](body, limit)
    except (zlib.error, zstd.ZstdError, EOFError) as error:
        raise Problem("malformed", f"the body is not {coding}: {error}") from error


def _gzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file (RFC 1952 allows several)."""
    parts: list[bytes] = []
    for _ in range(FRAMES_MAX):
        body = _inflate(zlib.decompressobj(wbits=31), body, limit, parts)
        if not body:
            return b"".join(parts)
    raise EOFError(_TOO_MANY)


def _deflate(body: bytes, limit: int) -> bytes:
    """The zlib format, as RFC 9110 says, or raw deflate, as some clients send."""
    parts: list[bytes] = []
    try:
        rest = _inflate(zlib.decompressobj(), body, limit, parts)
    except zlib.error:
        parts = []
        rest = _inflate(zlib.decompressobj(wbits=-15), body, limit, parts)
    if rest:
        raise EOFError("it goes on after its end")
    return b"".join(parts)


def _inflate(decoder: "zlib._Decompress", body: bytes, limit: int, parts: list[bytes]) -> bytes:
    """Decode one stream into `parts`; what follows it."""
    size = sum(map(len, parts))
    while not decoder.eof:
        part = decoder.decompress(body, _CHUNK)
        size += len(part)
        _check(size, limit)
        parts.append(part)
        body = decoder.unconsumed_tail
        if not body and not part and not decoder.eof:
            raise EOFError("it ends too early")
    return decoder.unused_data


def _zstd(body: bytes, limit: int) -> bytes:
    """All frames (RFC 8878), with the windows that RFC 9659 allows."""
    parts: list[bytes] = []
    size = 0
    for _ in range(FRAMES_MAX):
        # A frame may say how much it holds: a bomb is told by its head.
        _check(size + (zstd.get_frame_info(body).decompressed_size or 0), limit)
        decoder = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        while not decoder.eof:
            part = decoder.decompress(body, _CHUNK)
            body = b""
            size += len(part)
            _check(size, limit)
            parts.append(part)
            if not part and decoder.needs_input:
                raise EOFError("it ends too early")
        body = decoder.unused_data
        if not body:
            return b"".join(parts)
    raise EOFError(_TOO_MANY)


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
