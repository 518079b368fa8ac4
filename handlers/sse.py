"""`GET /v1/events`: following over server-sent events (the HTML standard), with a verdict first."""

import random
from collections.abc import Callable

from handlers import parameters
from handlers.exchange import NOTHING, Request, Response, Sink, Stream
from handlers.hub import Hub
from handlers.live.filters import Filter
from handlers.live.follower import Follower
from handlers.live.recovery import Recoveries, Start
from handlers.live.streams import LiveStream, Streams
from handlers.live.subscription import INTERVAL_MAX, Overflow, Subscription, granted
from handlers.live.wires import Events, Wires
from handlers.times import TimeFormat
from storage.patterns import Pattern, parse_pattern

# Milliseconds after which a browser comes back, and how far they are spread.
RETRY = 2_000
JITTER = 500

_EVERYTHING: Pattern = parse_pattern(">")
_PING = b": ping\n\n"
# Where no position can be told: the client keeps its own.
_EXPIRED = b"event: expired\ndata: {}\n\n"
_HEAD = Response(
    200,
    content_type="text/event-stream",
    # Nothing on the way may keep the events, or wait until there are many.
    headers=(("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")),
    chunks=NOTHING,
)


class EventStreams:
    """Opens event streams. `bound`: bytes that may wait for a follower."""

    def __init__(
        self,
        hub: Hub,
        recoveries: Recoveries,
        streams: Streams,
        wires: Wires,
        bound: int,
        retry: Callable[[], int] = lambda: RETRY + random.randint(-JITTER, JITTER),  # noqa: S311
    ) -> None:
        self.hub = hub
        self.recoveries = recoveries
        self.streams = streams
        self.bound = bound
        self.retry = retry
        self.wires = wires

    def open(self, request: Request) -> Stream | Response:
        """The stream; Problem for what it cannot be for. To HEAD its head alone."""
        head, query = request.head, request.head.query
        wish = granted(
            parameters.patterns(query) or (_EVERYTHING,),
            head.principal.grants.patterns,
            parameters.metrics(query),
        )
        interval = parameters.duration(query, "min_interval") or 0
        if interval > INTERVAL_MAX:
            raise parameters.invalid("min_interval", "expected at most 1d")
        latest = parameters.choice(query, "latest", _BOOLEANS, False)
        style = parameters.time_format(query)
        asked = parameters.one(query, "last_event_id")
        since = head.headers.get("Last-Event-ID", "").strip() or asked or None
        if head.method == "HEAD":
            return _HEAD
        return EventStream(self, request, style, wish, interval / 1e6, since, latest=latest)


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}


class EventStream(LiveStream):
    """One connection, with one subscription. `since`: what to resume from."""

    __slots__ = ("_events", "_filter", "_interval", "_latest", "_makers", "_shown", "_since", "_style")

    _events: Events

    def __init__(
        self,
        makers: EventStreams,
        request: Request,
        style: TimeFormat,
        filter: Filter,
        interval: float,
        since: str | None,
        *,
        latest: bool,
    ) -> None:
        super().__init__(makers.streams, parameters.bearer(request.head), request.head.principal.expires)
        self._makers = makers
        self._style = style
        self._filter = filter
        self._interval = interval
        self._since = since
        self._latest = latest
        # The position that was shown when there was nothing else to say.
        self._shown = -1

    @property
    def head(self) -> Response:
        """See Stream."""
        return _HEAD

    def opened(self, sink: Sink) -> None:
        """See Stream. The verdict comes before anything else."""
        makers = self._makers
        self.sink = sink
        start = makers.recoveries.judge_leniently(self._since)
        # What follows is the log that it was judged by.
        self._events = makers.wires.events[self._style]
        self.follower = Follower(makers.hub, self, sink, self._events, makers.bound)
        subscription = Subscription(0, self._filter, Overflow.DISCONNECT, self._interval, start.offset)
        self.follower.add(subscription)
        if not start.unsure:
            self._told(start)
        self._streams.add(self)
        if not self.ended:
            makers.recoveries.run(
                self.follower, subscription, start, latest=self._latest, told=self._told, live=_nothing
            )

    def _told(self, start: Start) -> None:
        content: dict[str, object] = {"recovered": start.recovered}
        if start.reason:
            content["reason"] = start.reason
        content["position"] = self._events.position(start.offset)
        verdict = self._events.event("recovery", start.offset, content)
        # In one event: there are clients that take a lone retry for one.
        self.follower.say(b"retry: %d\n" % self._makers.retry() + verdict)

    def received(self, data: bytes) -> None:
        """See Stream. What comes behind the request is not for this stream."""

    # -- ends ----------------------------------------------------------------------------------

    def quiet(self) -> None:
        """See LiveStream."""
        if not self.follower.settled:
            self.follower.say(_PING)
            return
        offset = self.follower.position()
        moved = offset != self._shown
        self._shown = offset
        self.follower.say(self._events.moved(offset) if moved else _PING)

    def token_ended(self) -> None:
        """See LiveStream."""
        offset = self.follower.position()
        expired = self._events.event("expired", offset, {"position": self._events.position(offset)})
        self._end(expired if self.follower.settled else _EXPIRED)

    def going_away(self) -> None:
        """See LiveStream."""
        moved = self._events.moved(self.follower.position())
        self._end(moved if self.follower.settled else b"")

    def log_replaced(self) -> None:
        """See LiveStream."""
        self.going_away()

    def too_slow(self) -> None:
        """See Owner."""
        self._end(b"")

    def broken(self) -> None:
        """See Owner. The client comes back and asks again from where it is."""
        self._end(b"")

    def dropped(self, subscription: Subscription) -> bytes:
        """See Owner. Nothing is ever dropped here: who is too slow is ended."""
        return b""

    def _end(self, last: bytes) -> None:
        if not self.ended:
            self.finish(last)
            self.sink.close()


def _nothing() -> None:
    """Events need no word for being live."""
