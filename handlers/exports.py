"""Whole ranges as CSV or NDJSON, page by page, in constant memory."""

import csv
import io
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec

from handlers.exchange import Media, Response
from handlers.schemas import CONTENT_TYPES

T = TypeVar("T")

_encode = msgspec.json.Encoder()


def export(
    media: Media,
    pages: AsyncIterator[list[T]],
    columns: tuple[str, ...],
    shown: Callable[[T], object],
) -> Response:
    """A streamed answer: a line for each row, `shown` as an object with these columns."""
    chunks = _csv(pages, columns, shown) if media is Media.CSV else _ndjson(pages, shown)
    return Response(200, content_type=CONTENT_TYPES[media], chunks=chunks)


async def _ndjson(pages: AsyncIterator[list[T]], shown: Callable[[T], object]) -> AsyncIterator[bytes]:
    async for rows in pages:
        yield _encode.encode_lines([shown(row) for row in rows])


async def _csv(
    pages: AsyncIterator[list[T]], columns: tuple[str, ...], shown: Callable[[T], object]
) -> AsyncIterator[bytes]:
    """RFC 4180 with a header line; booleans as in JSON, so that they are not taken for text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    yield text.getvalue().encode()
    async for rows in pages:
        text.seek(0)
        text.truncate()
        for row in rows:
            fields = msgspec.to_builtins(shown(row))
            writer.writerow([_field(fields[column]) for column in columns])
        yield text.getvalue().encode()


def _field(value: object) -> object:
    if value is True:
        return "true"
    if value is False:
        return "false"
    return value
