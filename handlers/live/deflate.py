"""permessage-deflate (RFC 7692), so that one compressed frame does for all followers.

No frame refers back to an earlier one (`server_no_context_takeover`), and the window is the smallest that
there is: any client can read it, whatever it has agreed to, and readings are short.
"""

import re
import zlib
from collections.abc import Iterable

NAME = "permessage-deflate"
# Bytes of a message under which it is sent as it is.
LEAST = 64

_WINDOW = 9
_LEVEL, _MEMORY = 1, 4
_TAIL = b"\x00\x00\xff\xff"

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'\s*;\s*({_WORD})\s*(?:=\s*(?:({_WORD})|"({_WORD})")\s*)?')
_EXTENSION = re.compile(rf"\s*({_WORD})\s*")
_BITS = re.compile(r"8|9|1[0-5]")


def accepted(headers: Iterable[str]) -> str:
    """What of the extensions that a client offers (its Sec-WebSocket-Extensions) is agreed to; "" for none.

    Offers stand in the order of the client's preference; one that cannot be met is passed over (RFC 7692, 7).
    """
    for offer in ",".join(headers).split(","):
        answer = _answer(offer)
        if answer:
            return answer
    return ""


def _answer(offer: str) -> str:
    found = _EXTENSION.match(offer)
    if found is None or found[1] != NAME:
        return ""
    place, parameters = found.end(), dict[str, str | None]()
    while place < len(offer):
        found = _PARAMETER.match(offer, place)
        if found is None or found[1] in parameters:
            return ""
        parameters[found[1]] = found[2] or found[3]
        place = found.end()
    answer = f"{NAME}; server_no_context_takeover"
    for name, value in parameters.items():
        match name:
            case "server_no_context_takeover" if value is None:
                pass
            case "client_no_context_takeover" if value is None:
                answer += f"; {name}"
            case "client_max_window_bits" if value is None or _BITS.fullmatch(value):
                # Whatever the client keeps to can be read.
                pass
            case "server_max_window_bits" if value is not None and _BITS.fullmatch(value):
                if int(value) < _WINDOW:
                    return ""
                answer += f"; {name}={_WINDOW}"
            case _:
                return ""
    return answer


class Deflater:
    """Compresses messages, each by itself."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_WINDOW, _MEMORY)

    def compress(self, payload: bytes) -> bytes | None:
        """The payload of a compressed message; None if it is better sent as it is."""
        if len(payload) < LEAST:
            return None
        data = self.deflate(payload)
        return data if len(data) < len(payload) else None

    def deflate(self, payload: bytes) -> bytes:
        """The payload of a compressed message, whatever its size."""
        # A full flush also forgets what was before (zlib's manual).
        data = self._stream.compress(payload) + self._stream.flush(zlib.Z_FULL_FLUSH)
        # Nothing at all is an empty block (RFC 7692, 7.2.3.6).
        return data.removesuffix(_TAIL) or b"\x00"
