"""The opening handshake of a WebSocket (RFC 6455 section 4.2), and from which pages it may come."""

import base64
import binascii
import hashlib
from collections.abc import Iterable

from handlers.exchange import NOTHING, Head, Response
from handlers.live.deflate import accepted
from handlers.problems import Problem

SUBPROTOCOL = "tidegate.msgpack"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_UPGRADE = ("Upgrade", "websocket")


def is_packed(head: Head) -> bool:
    """Whether the client offers to speak MessagePack."""
    offered = ",".join(head.headers.getall("Sec-WebSocket-Protocol", [])).split(",")
    return SUBPROTOCOL in (name.strip() for name in offered)


def extensions(head: Head, *, deflate: bool) -> str:
    """The extension that is agreed to, with its parameters; "" for none."""
    return accepted(head.headers.getall("Sec-WebSocket-Extensions", [])) if deflate else ""


def handshake(head: Head, extension: str) -> Response:
    """The answer to an opening handshake. Problem: upgrade_required 426, malformed 400."""
    headers = head.headers
    tokens = {token.strip().lower() for token in ",".join(headers.getall("Connection", [])).split(",")}
    wanted = headers.get("Upgrade", "").strip().lower()
    if head.method != "GET" or "upgrade" not in tokens or wanted != "websocket":
        raise Problem("upgrade_required", "expected a WebSocket handshake", headers=(_UPGRADE,))
    if headers.get("Sec-WebSocket-Version", "").strip() != "13":
        known = (_UPGRADE, ("Sec-WebSocket-Version", "13"))
        raise Problem("upgrade_required", "expected Sec-WebSocket-Version 13", headers=known)
    if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
        raise Problem("malformed", "expected a WebSocket handshake without a body")
    keys = headers.getall("Sec-WebSocket-Key", [])
    if len(keys) != 1 or not _is_key(keys[0].strip()):
        raise Problem("malformed", "expected Sec-WebSocket-Key to be 16 bytes in base64, once")
    digest = hashlib.sha1(keys[0].strip().encode() + _GUID, usedforsecurity=False).digest()
    answer = [_UPGRADE, ("Sec-WebSocket-Accept", base64.b64encode(digest).decode())]
    if is_packed(head):
        answer.append(("Sec-WebSocket-Protocol", SUBPROTOCOL))
    if extension:
        answer.append(("Sec-WebSocket-Extensions", extension))
    return Response(101, headers=(*answer, ("Cache-Control", "no-store")), chunks=NOTHING)


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


class Origins:
    """The pages that may connect beside our own: a browser lets any page try, and tells where it is from."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed)

    def welcome(self, head: Head) -> bool:
        """Whether the page behind this request may connect; who is no browser may."""
        given = head.headers.getall("Origin", [])
        if not given:
            return True
        if len(given) > 1:
            return False
        origin = given[0].strip().lower()
        if "*" in self._allowed or origin in self._allowed:
            return True
        scheme, _, host = origin.partition("://")
        own = head.headers.get("Host", "").strip().lower()
        return scheme in ("http", "https") and host == own != ""
