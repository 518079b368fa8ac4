"""Reading readings: newest values, ranges, buckets and the log."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated

import msgspec

from handlers import parameters
from handlers.exchange import Answer, Handler, Head, Media, Request, Response
from handlers.exports import export
from handlers.pages import cursor, page, pages
from handlers.parameters import readable_device, selection, stamp
from handlers.problems import Problem
from handlers.schemas import LatestOut, LogItem, LogOut, RangeItem, SampleOut, representation, respond
from handlers.times import Stamp, Stamps, column
from storage.cache import LatestCache
from storage.devices import Devices
from storage.log import InvalidPosition, Log, LogState, Position, Range, RangePage, parse_position
from storage.models import FUNCTIONS, TS_END, Bucket, Latest, Reading, Verdict
from storage.patterns import Selection

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

    def latest(self, head: Head) -> Handler:
        """`GET /v1/devices/{device}/latest`."""
        device, style = readable_device(head), stamp(head)
        conditions = ", ".join(head.headers.getall("If-None-Match", []))
        encode, content_type = representation(head.accept)
        log_state, find, fetch = self._log.state, self._cache.get, self._cache.fetch

        def show(latest: Latest) -> Response:
            state = log_state()
            position = f"{state.epoch}-{latest.offset}"
            # Retention takes values away without a new offset, and moves the floor.
            etag = f'W/"{position}.{state.floor}"' if state.floor else f'W/"{position}"'
            lines = f"ETag: {etag}\r\n{_LATEST_LINES}"
            if conditions and matches(conditions, etag):
                return Response(304, lines=lines)
            return Response(200, encode(_latest_out(latest, position, style)), content_type, lines=lines)

        async def show_fetched() -> Response:
            return show(await fetch(device))

        def answer(_: Request) -> Answer:
            latest = find(device)
            return show_fetched() if latest is None else show(latest)

        return answer

    async def latest_page(self, request: Request) -> Response:
        """`GET /v1/latest?match=`."""
        limit, style = parameters.limit(request.head.query), stamp(request.head)
        after = cursor(request.head.query, str) or ""
        found = await self._log.latest_page(selection(request.head), after, limit + 1)
        epoch = self._log.state().epoch
        items = [_latest_out(latest, f"{epoch}-{latest.offset}", style) for latest in found[:limit]]
        return page(request, items, found[limit - 1].device if len(found) > limit else None)

    # -- ranges --------------------------------------------------------------------------------

    def range(self, head: Head) -> Handler:
        """`GET /v1/devices/{device}/readings`, also in buckets, also as CSV or NDJSON."""
        query, device = head.query, readable_device(head)
        span = Range(
            device,
            parameters.metrics(query),
            parameters.time(query, "from", 0),
            parameters.time(query, "to", TS_END),
            parameters.choice(query, "order", _ORDERS, False),
        )
        every = parameters.duration(query, "every")
        if every is not None:
            return self._buckets(head, span, every)
        if "fn" in query:
            raise parameters.invalid("fn", "expected together with every")
        stamps, refresh, read = column(stamp(head)), self._log.refresh, self._log.range
        if head.accept in (Media.CSV, Media.NDJSON):
            columns = ("offset", "metric", "ts", "value")
            return self._export(head, device, columns, lambda: self._range_pages(span, stamps))
        limit = parameters.limit(query)
        after = cursor(query, tuple[_Place, _Place])
        show = pages(head)

        async def answer(_: Request) -> Response:
            found = await read(span, after, (await refresh()).head, limit + 1)
            items = _range_items(found, stamps)
            if len(items) <= limit:
                return show(items, None)
            return show(items[:limit], (found.times[limit - 1], found.offsets[limit - 1]))

        return answer

    async def _range_pages(self, span: Range, stamps: Stamps) -> AsyncIterator[list[RangeItem]]:
        after, until = None, (await self._log.refresh()).head
        while (found := await self._log.range(span, after, until, EXPORT_ROWS)).offsets:
            yield _range_items(found, stamps)
            after = found.times[-1], found.offsets[-1]

    def _buckets(self, head: Head, span: Range, every: int) -> Handler:
        query, style = head.query, stamp(head)
        functions = tuple(dict.fromkeys(parameters.several(query, "fn"))) or ("avg",)
        for name in functions:
            if name not in FUNCTIONS:
                raise parameters.invalid("fn", f"expected one of {', '.join(FUNCTIONS)}")
        if span.descending:
            raise parameters.invalid("order", "buckets come in ascending order")

        if head.accept in (Media.CSV, Media.NDJSON):
            columns = ("ts", "metric", *functions)
            return self._export(
                head, span.device, columns, lambda: self._bucket_pages(span, every, functions, style)
            )
        limit = parameters.limit(query)
        after = cursor(query, tuple[_Place, str])
        show = pages(head)

        async def answer(_: Request) -> Response:
            found = await self._log.buckets(span, every, functions, after, limit + 1)
            last = (found[limit - 1].ts, found[limit - 1].metric) if len(found) > limit else None
            return show([_bucket_item(bucket, style) for bucket in found[:limit]], last)

        return answer

    async def _bucket_pages(
        self, span: Range, every: int, functions: tuple[str, ...], style: Stamp
    ) -> AsyncIterator[list[dict[str, object]]]:
        after = None
        while found := await self._log.buckets(span, every, functions, after, EXPORT_ROWS):
            yield [_bucket_item(bucket, style) for bucket in found]
            after = found[-1].ts, found[-1].metric

    def _export(
        self,
        head: Head,
        device: str,
        columns: tuple[str, ...],
        pages: Callable[[], AsyncIterator[Sequence[object]]],
    ) -> Handler:
        """A handler that streams all `pages` of a device if there is one."""

        async def answer(_: Request) -> Response:
            await self._devices.device(device)
            return export(head.accept, pages(), columns)

        return answer

    # -- the log -------------------------------------------------------------------------------

    async def log(self, request: Request) -> Response:
        """`GET /v1/readings`: the log in order, from a position."""
        wanted, stamps = selection(request.head), column(stamp(request.head))
        # Another process may have shown a position that this one has not heard of.
        state = await self._log.refresh()
        offset = _since(parameters.one(request.head.query, "since"), state)
        if request.head.accept in (Media.CSV, Media.NDJSON):
            found_all = self._log_pages(offset, state.head, wanted, stamps)
            return export(request.head.accept, found_all, ("offset", "device", "metric", "ts", "value"))
        limit = parameters.limit(request.head.query)
        found = await self._log.read_from(offset, state.head, limit, wanted)
        after = Position(state.epoch, found.scanned)
        items = _log_items(found.readings, stamps)
        end = found.scanned >= self._log.state().head
        return respond(request.head.accept, LogOut(items, str(after), end))

    async def _log_pages(
        self, offset: int, until: int, wanted: Selection, stamps: Stamps
    ) -> AsyncIterator[list[LogItem]]:
        while offset < until:
            found = await self._log.read_from(offset, until, EXPORT_ROWS, wanted)
            offset = found.scanned
            if found.readings:
                yield _log_items(found.readings, stamps)


def _since(text: str | None, state: LogState) -> int:
    """The offset to continue from; 410 if that cannot be served."""
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


def _range_items(found: RangePage, stamps: Stamps) -> list[RangeItem]:
    return list(map(RangeItem, found.offsets, found.metrics, stamps(found.times), found.values))


def _bucket_item(bucket: Bucket, style: Stamp) -> dict[str, object]:
    return {"ts": style(bucket.ts), "metric": bucket.metric, **bucket.figures}


def _log_items(readings: list[Reading], stamps: Stamps) -> list[LogItem]:
    times = stamps([reading.ts for reading in readings])
    return [
        LogItem(reading.offset, reading.device, reading.metric, ts, reading.value)
        for reading, ts in zip(readings, times, strict=True)
    ]
