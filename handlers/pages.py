"""Keyset pages: a list, and an opaque cursor to the place where it goes on."""

import base64
import binascii
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from handlers.exchange import Request, Response
from handlers.parameters import Query, invalid, one
from handlers.schemas import Page, respond

T = TypeVar("T")


def cursor(query: Query, kind: type[T]) -> T | None:
    """The place in the `cursor` parameter, None at the beginning; `kind`: what a place is here."""
    text = one(query, "cursor")
    if text is None:
        return None
    try:
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (binascii.Error, msgspec.DecodeError, ValueError) as error:
        raise invalid("cursor", "expected a cursor that this list gave out") from error


def page(request: Request, items: Sequence[object], last: object) -> Response:
    """A page of a list; `last` is the place of its last item if more follows, else None."""
    head = request.head
    if last is None:
        return respond(head.accept, Page(items, None))
    following = base64.urlsafe_b64encode(msgspec.msgpack.encode(last)).rstrip(b"=").decode()
    kept = [pair for pair in head.query_string.split("&") if pair and pair.partition("=")[0] != "cursor"]
    target = f"{head.raw_path}?{'&'.join([*kept, f'cursor={following}'])}"
    return respond(head.accept, Page(items, following), 200, (("Link", f'<{target}>; rel="next"'),))
