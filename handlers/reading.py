"""Reading readings: newest values, ranges, buckets and the log."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec

from handlers import parameters
from handlers.exchange import Answer, Media, Request, Response
from handlers.exports import export
from handlers.pages import cursor, page
from handlers.parameters import readable_device, selection, stamp
from handlers.problems import Problem
from handlers.schemas import LatestOut, LogItem, LogOut, RangeItem, SampleOut, respond
from handlers.times import Stamp
from storage.cache import LatestCache
from storage.devices import Devices
from storage.log import InvalidPosition, Log, Position, Range, parse_position
from storage.models import FUNCTIONS, TS_END, Bucket, Latest, Reading, Verdict

# Rows of one page of an export: read, encoded and sent before the next is read.
EXPORT_ROWS = 1_000

# What a cursor may say of a time or an offset: the database counts no further.
_Place = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]

_ORDERS = {"asc": False, "desc": True}
_REASONS = {
    Verdict.UNKNOWN_EPOCH: "unknown_epoch",
    Verdict.EXPIRED: "expired",
    Verdict.AHEAD: "ahead",
}
_LATEST_LINES = "Cache-Control: private, no-cache\r\nVary: Accept, Authorization\r\n"


class Readings:
    """Handlers that read the log and what is derived from it."""

    def __init__(self, log: Log, devices: Devices, cache: LatestCache) -> None:
        self._log = log
        self._devices = devices
        self._cache = cache

    # -- newest values -------------------------------------------------------------------------

    def latest(self, request: Request) -> Answer:
        """`GET /v1/devices/{device}/latest`."""
        device = readable_device(request)
        latest = self._cache.get(device)
        if latest is None:
            return self._fetch_latest(request, device)
        return self._show_latest(request, latest)

    async def _fetch_latest(self, request: Request, device: str) -> Response:
        return self._show_latest(request, await self._cache.fetch(device))

    def _show_latest(self, request: Request, latest: Latest) -> Response:
        state = self._log.state()
        position = f"{state.epoch}-{latest.offset}"
        # Retention takes values away without a new offset, and moves the floor.
        etag = f'W/"{position}.{state.floor}"' if state.floor else f'W/"{position}"'
        lines = f"ETag: {etag}\r\n{_LATEST_LINES}"
        head = request.head
        if "If-None-Match" in head.headers:
            condition = ", ".join(head.headers.getall("If-None-Match", []))
            if matches(condition, etag):
                return Response(304, lines=lines)
        response = respond(head.accept, _latest_out(latest, position, stamp(request)))
        response.lines = lines
        return response

    async def latest_page(self, request: Request) -> Response:
        """`GET /v1/latest?match=`."""
        limit, style = parameters.limit(request.head.query), stamp(request)
        after = cursor(request.head.query, str) or ""
        found = await self._log.latest_page(selection(request), after, limit + 1)
        epoch = self._log.state().epoch
        items = [_latest_out(latest, f"{epoch}-{latest.offset}", style) for latest in found[:limit]]
        return page(request, items, found[limit - 1].device if len(found) > limit else None)

    # -- ranges --------------------------------------------------------------------------------

    async def range(self, request: Request) -> Response:
        """`GET /v1/devices/{device}/readings`, also in buckets, also as CSV or NDJSON."""
        query, device = request.head.query, readable_device(request)
        span = Range(
            device,
            parameters.metrics(query),
            parameters.time(query, "from", 0),
            parameters.time(query, "to", TS_END),
            parameters.choice(query, "order", _ORDERS, False),
        )
        every = parameters.duration(query, "every")
        if every is not None:
            return await self._buckets(request, span, every)
        if "fn" in query:
            raise parameters.invalid("fn", "expected together with every")
        style = stamp(request)
        if request.head.accept in (Media.CSV, Media.NDJSON):
            await self._devices.device(device)
            pages = self._range_pages(span, self._log.state().head)
            return export(
                request.head.accept,
                pages,
                ("offset", "metric", "ts", "value"),
                lambda r: _range_item(r, style),
            )
        limit = parameters.limit(query)
        after = cursor(query, tuple[_Place, _Place])
        found = await self._log.range(span, after, self._log.state().head, limit + 1)
        items = [_range_item(reading, style) for reading in found[:limit]]
        last = (found[limit - 1].ts, found[limit - 1].offset) if len(found) > limit else None
        return page(request, items, last)

    async def _range_pages(self, span: Range, until: int) -> AsyncIterator[list[Reading]]:
        after = None
        while found := await self._log.range(span, after, until, EXPORT_ROWS):
            yield found
            after = found[-1].ts, found[-1].offset

    async def _buckets(self, request: Request, span: Range, every: int) -> Response:
        query, style = request.head.query, stamp(request)
        functions = tuple(dict.fromkeys(parameters.several(query, "fn"))) or ("avg",)
        for name in functions:
            if name not in FUNCTIONS:
                raise parameters.invalid("fn", f"expected one of {', '.join(FUNCTIONS)}")
        if span.descending:
            raise parameters.invalid("order", "buckets come in ascending order")

        def shown(bucket: Bucket) -> dict[str, object]:
            return {"ts": style(bucket.ts), "metric": bucket.metric, **bucket.figures}

        if request.head.accept in (Media.CSV, Media.NDJSON):
            await self._devices.device(span.device)
            pages = self._bucket_pages(span, every, functions)
            return export(request.head.accept, pages, ("ts", "metric", *functions), shown)
        limit = parameters.limit(query)
        after = cursor(query, tuple[_Place, str])
        found = await self._log.buckets(span, every, functions, after, limit + 1)
        last = (found[limit - 1].ts, found[limit - 1].metric) if len(found) > limit else None
        return page(request, [shown(bucket) for bucket in found[:limit]], last)

    async def _bucket_pages(
        self, span: Range, every: int, functions: tuple[str, ...]
    ) -> AsyncIterator[list[Bucket]]:
        after = None
        while found := await self._log.buckets(span, every, functions, after, EXPORT_ROWS):
            yield found
            after = found[-1].ts, found[-1].metric

    # -- the log -------------------------------------------------------------------------------

    async def log(self, request: Request) -> Response:
        """`GET /v1/readings`: the log in order, from a position."""
        wanted, style, state = selection(request), stamp(request), self._log.state()
        offset = self._since(parameters.one(request.head.query, "since"))
        if request.head.accept in (Media.CSV, Media.NDJSON):
            pages = self._log_pages(offset, state.head, request)
            columns = ("offset", "device", "metric", "ts", "value")
            return export(request.head.accept, pages, columns, lambda r: _log_item(r, style))
        limit = parameters.limit(request.head.query)
        found = await self._log.read_from(offset, state.head, limit, wanted)
        after = Position(state.epoch, found.scanned)
        items = [_log_item(reading, style) for reading in found.readings]
        end = found.scanned >= self._log.state().head
        return respond(request.head.accept, LogOut(items, str(after), end))

    def _since(self, text: str | None) -> int:
        """The offset to continue from; 410 if that cannot be served."""
        state = self._log.state()
        if text is None or text == "earliest":
            return state.floor
        try:
            position = parse_position(text)
        except InvalidPosition as error:
            raise parameters.invalid("since", f"{error}; or earliest") from error
        verdict = state.judge(position)
        if verdict is not Verdict.OK:
            reason = _REASONS[verdict]
            raise Problem(
                "position_gone",
                f"the log cannot be continued from {text}: {reason}",
                members={"reason": reason},
            )
        return position.offset

    async def _log_pages(self, offset: int, until: int, request: Request) -> AsyncIterator[list[Reading]]:
        wanted = selection(request)
        while offset < until:
            found = await self._log.read_from(offset, until, EXPORT_ROWS, wanted)
            offset = found.scanned
            if found.readings:
                yield found.readings


def matches(condition: str, etag: str) -> bool:
    """Weak comparison of If-None-Match (RFC 9110 section 13.1.2)."""
    opaque = etag.removeprefix("W/")
    return condition.strip() == "*" or any(
        part.strip().removeprefix("W/") == opaque for part in condition.split(",")
    )


def _latest_out(latest: Latest, position: str, style: Stamp) -> LatestOut:
    metrics = {}
    for metric, sample in latest.metrics.items():
        metrics[metric] = SampleOut(style(sample.ts), sample.value, sample.offset)
    return LatestOut(latest.device, metrics, position)


def _range_item(reading: Reading, style: Stamp) -> RangeItem:
    return RangeItem(reading.offset, reading.metric, style(reading.ts), reading.value)


def _log_item(reading: Reading, style: Stamp) -> LogItem:
    return LogItem(reading.offset, reading.device, reading.metric, style(reading.ts), reading.value)
