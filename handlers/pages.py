"""Keyset pages: a list, and an opaque cursor to the place where it goes on."""

import base64
import re
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from handlers.exchange import Head, Request, Response
from handlers.parameters import Query, invalid, one
from handlers.schemas import Page, representation

# What may stand in a URI (RFC 3986), the sign of an escape included.
_URI = ":/?#[]@!$&'()*+,;=-._~%"
_CURSOR = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

T = TypeVar("T")


def cursor(query: Query, kind: type[T]) -> T | None:
    """The place in the `cursor` parameter, None at the beginning; `kind`: what a place is here."""
    text = one(query, "cursor")
    if text is None:
        return None
    refusal = invalid("cursor", "expected a cursor that this list gave out")
    if _CURSOR.fullmatch(text) is None:
        raise refusal
    try:
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise refusal from error


def page(request: Request, items: Sequence[object], last: object) -> Response:
    """A page of a list; `last` is the place of its last item if more follows, else None."""
    return pages(request.head)(items, last)


def pages(head: Head) -> Callable[[Sequence[object], object], Response]:
    """Makes `page` for requests under this head."""
    encode, content_type = representation(head.accept)
    kept = [pair for pair in head.query_string.split("&") if pair and pair.partition("=")[0] != "cursor"]
    # What came unescaped, as in match=acme.>, must not end the reference.
    target = quote(f"{head.raw_path}?{'&'.join([*kept, 'cursor='])}", safe=_URI)

    def show(items: Sequence[object], last: object) -> Response:
        if last is None:
            return Response(200, encode(Page(items, None)), content_type)
        following = base64.urlsafe_b64encode(msgspec.msgpack.encode(last)).rstrip(b"=").decode()
        lines = f'Link: <{target}{following}>; rel="next"\r\n'
        return Response(200, encode(Page(items, following)), content_type, lines=lines)

    return show
