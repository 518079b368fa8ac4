"""Whole ranges as CSV or NDJSON, page by page, in constant memory."""

import csv
import io
from collections.abc import AsyncIterator, Sequence

import msgspec

from handlers.exchange import Media, Response
from handlers.schemas import CONTENT_TYPES

_encode = msgspec.json.Encoder()


def export(media: Media, pages: AsyncIterator[Sequence[object]], columns: tuple[str, ...]) -> Response:
    """A streamed answer: a line for each row, an object with these columns."""
    chunks = _csv(pages, columns) if media is Media.CSV else _ndjson(pages)
    return Response(200, content_type=CONTENT_TYPES[media], chunks=chunks)


async def _ndjson(pages: AsyncIterator[Sequence[object]]) -> AsyncIterator[bytes]:
    async for rows in pages:
        yield _encode.encode_lines(rows)


async def _csv(pages: AsyncIterator[Sequence[object]], columns: tuple[str, ...]) -> AsyncIterator[bytes]:
    """RFC 4180 with a header line; booleans as in JSON, so that they are not taken for text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    yield text.getvalue().encode()
    async for rows in pages:
        text.seek(0)
        text.truncate()
        for row in rows:
            fields = msgspec.to_builtins(row)
            writer.writerow([_field(fields[column]) for column in columns])
        yield text.getvalue().encode()


def _field(value: object) -> object:
    if value is True:
        return "true"
    if value is False:
        return "false"
    return value
