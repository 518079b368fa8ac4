"""`GET /v1/stream`: following and writing over one WebSocket (RFC 6455).

Frames to the client are whole bytes that the hub shares among all; there is no task per connection.
"""

import logging
from collections.abc import Callable, Iterable

from aiohttp import WSCloseCode, WSMsgType
from aiohttp._websocket.models import WSMessage

from auth.principal import Scope
from auth.rate_limit import Limiter
from handlers import parameters
from handlers.exchange import Media, Plan, Request, Response, Sink, Stream
from handlers.hub import Hub
from handlers.live.commands import (
    OVERFLOWS,
    BadCommand,
    BadFrame,
    Command,
    Commands,
    Subscribe,
    Unsubscribe,
    Write,
)
from handlers.live.filters import Filter
from handlers.live.follower import Follower
from handlers.live.handshake import Origins, extensions, handshake, is_packed
from handlers.live.reader import FrameError, FrameReader, close_code
from handlers.live.recovery import Recoveries, Start
from handlers.live.socket_writes import SocketWriter
from handlers.live.streams import LiveStream, Streams
from handlers.live.subscription import INTERVAL_MAX, Subscription, granted
from handlers.live.wires import (
    PING,
    PONG,
    JsonFrames,
    MsgpackFrames,
    SubscriptionId,
    Wires,
    close_frame,
    frame,
)
from handlers.problems import Problem
from handlers.schemas import Written
from handlers.times import InvalidTime, TimeFormat, parse_duration
from storage.log import InvalidPosition, parse_position
from storage.models import is_metric
from storage.patterns import InvalidPattern, parse_pattern

_log = logging.getLogger("tidegate.websocket")

FRAME_MAX = 64 * 1024
SUBSCRIPTIONS_MAX = 256
# Seconds between two pings, and of silence after which the connection is closed.
PING_EVERY = 25.0
SILENCE = 60.0
# Limits that a connection may hit one after the other.
STRIKES = 20
# Bytes kept for a client above which it is not read any more.
ANSWERS_MAX = 256 * 1024

BAD_FRAME, TOKEN_ENDED, FORBIDDEN, SLOW, LIMITED = 4400, 4401, 4403, 4408, 4429

_PING = frame(PING, b"")


class WebSockets:
    """Opens WebSockets.

    `write`: the plan of `POST /v1/readings`; `requests`: the limit in which a write counts as a request.
    `origins`: pages of these may connect beside our own. `bound`: bytes that may wait for a follower. `now`:
    microseconds. `deflate`: whether frames are compressed for clients that offer it.
    """

    def __init__(
        self,
        hub: Hub,
        recoveries: Recoveries,
        streams: Streams,
        wires: Wires,
        write: Plan,
        requests: Limiter | None,
        origins: Iterable[str],
        bound: int,
        now: Callable[[], int],
        *,
        deflate: bool,
    ) -> None:
        self.hub = hub
        self.recoveries = recoveries
        self.streams = streams
        self.commands = Commands()
        self.bound = bound
        self.wires = wires
        self._write = write
        self._requests = requests
        self._origins = Origins(origins)
        self._now = now
        self._deflate = deflate

    def open(self, request: Request) -> Stream:
        """The stream that the request asks for; Problem if it is no handshake."""
        head = request.head
        extension = extensions(head, deflate=self._deflate)
        answer = handshake(head, extension)
        packed = is_packed(head)
        style = parameters.time_format(head.query)
        media = Media.MSGPACK if packed else Media.JSON
        writer = SocketWriter(self._write, self._requests, self._now, request, media)
        refusal = ""
        if not self._origins.welcome(head):
            refusal = "this Origin may not connect"
        elif not head.principal.scopes & (Scope.READINGS_READ | Scope.READINGS_WRITE):
            refusal = "the token lacks the scope readings:read"
        return WebSocket(
            self, request, answer, style, writer, refusal, packed=packed, deflated=bool(extension)
        )


class WebSocket(LiveStream):
    """One connection. `refusal`: why it is closed at once, "" if it is not."""

    __slots__ = (
        "_answer",
        "_deflated",
        "_heard",
        "_held",
        "_leaving",
        "_makers",
        "_packed",
        "_pinged",
        "_principal",
        "_reader",
        "_refusal",
        "_strikes",
        "_style",
        "_wire",
        "_writer",
    )

    _wire: JsonFrames | MsgpackFrames

    def __init__(
        self,
        makers: WebSockets,
        request: Request,
        answer: Response,
        style: TimeFormat,
        writer: SocketWriter,
        refusal: str,
        *,
        packed: bool,
        deflated: bool,
    ) -> None:
        principal = request.head.principal
        super().__init__(makers.streams, parameters.bearer(request.head), principal.expires)
        self._makers = makers
        self._answer = answer
        self._style = style
        self._packed = packed
        self._deflated = deflated
        self._writer = writer
        self._principal = principal
        self._refusal = refusal
        self._reader = FrameReader(self._message, FRAME_MAX, deflated=deflated)
        self._strikes = 0
        self._heard = self._pinged = makers.streams.now()
        # Reading is paused, because the client does not read.
        self._held = False
        # What to close with once the last write is answered; 0: nothing yet.
        self._leaving = 0

    @property
    def head(self) -> Response:
        """See Stream."""
        return self._answer

    # -- life ----------------------------------------------------------------------------------

    def opened(self, sink: Sink) -> None:
        """See Stream."""
        self.sink = sink
        wires = self._makers.wires
        self._wire = wires.frames(self._style, packed=self._packed, deflated=self._deflated)
        self.follower = Follower(self._makers.hub, self, sink, self._wire, self._makers.bound)
        self._streams.add(self)
        if self._refusal and not self.ended:
            self.finish(close_frame(FORBIDDEN, self._refusal))

    def received(self, data: bytes) -> None:
        """See Stream."""
        self._heard = self._streams.now()
        try:
            self._reader.feed(data)
        except FrameError as error:
            self.end(error.code)
            self.sink.close()
        except Exception:
            _log.exception("a frame could not be handled")
            self.end(WSCloseCode.INTERNAL_ERROR)
            self.sink.close()
        else:
            if not self._held and self.sink.pending() > ANSWERS_MAX:
                self._held = True
                self.sink.hold()

    def drained(self) -> None:
        """See Stream."""
        super().drained()
        if self._held:
            self._held = False
            self.sink.release()

    def end(self, code: int) -> None:
        """Close with a position to resume from."""
        if not self.ended:
            follower = self.follower
            # Who was told nothing yet has its own, which may lie far before the head: its wish is on the way.
            known = follower.sent > 0 and follower.settled
            position = self._wire.position(follower.position()) if known else ""
            self.finish(close_frame(code, position))

    def _leave(self, code: int) -> None:
        """Hear no more commands, answer the writes that wait, then close."""
        self._leaving = code
        if not self._writer.waiting:
            self.end(code)

    def tick(self, now: float) -> None:
        """See LiveStream."""
        super().tick(now)
        if self.ended:
            return
        if now - self._heard >= SILENCE:
            self.end(WSCloseCode.GOING_AWAY)
        elif now - self._pinged >= PING_EVERY:
            self._pinged = now
            self.sink.write(_PING)

    def quiet(self) -> None:
        """See LiveStream."""
        if self.follower.subscriptions and self.follower.settled:
            self.follower.say(self._wire.moved(self.follower.position()))

    def token_ended(self) -> None:
        """See LiveStream."""
        self.end(TOKEN_ENDED)

    def going_away(self) -> None:
        """See LiveStream."""
        self._leave(WSCloseCode.GOING_AWAY)

    def log_replaced(self) -> None:
        """See LiveStream. Writes that wait are not acknowledged: their positions are of another log."""
        self.end(WSCloseCode.GOING_AWAY)

    def too_slow(self) -> None:
        """See Owner."""
        self.end(SLOW)

    def broken(self) -> None:
        """See Owner."""
        self.end(WSCloseCode.TRY_AGAIN_LATER)

    def dropped(self, subscription: Subscription) -> bytes:
        """See Owner."""
        return self._wire.message(type="dropped", id=subscription.id, count=subscription.dropped)

    # -- messages come -------------------------------------------------------------------------

    def _message(self, message: WSMessage) -> None:
        kind = message.type
        if kind is WSMsgType.CLOSE:
            code = close_code(message)
            if not self.ended:
                self.finish(close_frame(code, ""))
            self.sink.close()
        elif self.ended:
            return
        elif kind is WSMsgType.PING:
            self.follower.say(frame(PONG, message.data))
        elif (kind is WSMsgType.TEXT or kind is WSMsgType.BINARY) and not self._leaving:
            self._command(message)

    def _command(self, message: WSMessage) -> None:
        commands, packed = self._makers.commands, self._packed
        try:
            if packed is not (message.type is WSMsgType.BINARY):
                raise BadFrame(f"expected {'binary' if packed else 'text'} frames")
            command = commands.msgpack(message.data) if packed else commands.json(message.data)
        except BadFrame as error:
            self._refuse(None, Problem("malformed", str(error)))
            self.end(BAD_FRAME)
        except BadCommand as error:
            self._refuse(error.id, Problem("invalid", str(error)))
        else:
            self._run(command)

    def _run(self, command: Command) -> None:
        match command:
            case Subscribe():
                try:
                    self._subscribe(command)
                except Problem as problem:
                    self._refuse(command.id, problem)
            case Unsubscribe():
                if self.follower.remove(command.id):
                    self._say(type="unsubscribed", id=command.id)
                else:
                    self._refuse(command.id, Problem("not_found", "there is no such subscription"))
            case Write():
                self._writer.submit(command.id, bytes(command.readings), self._written)

    def _subscribe(self, command: Subscribe) -> None:
        follower, recoveries = self.follower, self._makers.recoveries
        if Scope.READINGS_READ not in self._principal.scopes:
            raise Problem("insufficient_scope", "the token lacks the scope readings:read")
        if command.id in follower.subscriptions:
            raise Problem("conflict", "there is a subscription with this id")
        if len(follower.subscriptions) >= SUBSCRIPTIONS_MAX:
            raise Problem("rate_limited", f"a connection has at most {SUBSCRIPTIONS_MAX} subscriptions")
        wish = self._filter(command)
        interval = _interval(command)
        try:
            start = recoveries.judge(command.since)
        except InvalidPosition as error:
            raise Problem("invalid", f"since: {error}; or earliest") from error
        if self.ended:
            # The log was replaced, and with it everything that was followed.
            return
        subscription = Subscription(command.id, wish, OVERFLOWS[command.overflow], interval, start.offset)
        follower.add(subscription)
        if not start.unsure:
            self._subscribed(command.id, start)
        recoveries.run(
            follower,
            subscription,
            start,
            latest=command.latest,
            told=lambda verdict: self._subscribed(command.id, verdict),
            live=lambda: self._live(command.id),
        )

    def _filter(self, command: Subscribe) -> Filter:
        for name in command.metrics:
            if not is_metric(name):
                raise Problem("invalid", "metrics: expected 1 to 64 characters of A-Z a-z 0-9 _ . : / % -")
        try:
            match = [parse_pattern(text) for text in command.match]
        except InvalidPattern as error:
            raise Problem("invalid", f"match: {error}") from error
        return granted(match, self._principal.grants.patterns, command.metrics)

    # -- messages go ---------------------------------------------------------------------------

    def _subscribed(self, id: SubscriptionId, start: Start) -> None:
        fields = {"reason": start.reason} if start.reason else {}
        self._say(
            type="subscribed",
            id=id,
            position=self._wire.position(self.follower.position()),
            recovered=start.recovered,
            **fields,
        )

    def _live(self, id: SubscriptionId) -> None:
        self._say(type="live", id=id, position=self._wire.position(self.follower.position()))

    def _written(self, id: SubscriptionId, result: Written | Problem) -> None:
        if self.ended:
            return
        match result:
            case Problem():
                self._refuse(id, result)
            case written:
                self._strikes = 0
                # The log may be further than what the follower has got.
                offset = min(parse_position(written.position).offset, self.follower.position())
                self._say(
                    type="ack",
                    id=id,
                    accepted=written.accepted,
                    duplicates=written.duplicates,
                    rejected_count=written.rejected_count,
                    rejected=written.rejected,
                    position=self._wire.position(offset),
                )
        if self._leaving and not self._writer.waiting:
            self.end(self._leaving)

    def _refuse(self, id: SubscriptionId | None, problem: Problem) -> None:
        fields: dict[str, object] = {} if id is None else {"id": id}
        if problem.faults:
            fields["errors"] = problem.faults
        self._say(type="error", **fields, code=problem.entry.code, detail=problem.detail)
        if problem.entry.code == "rate_limited":
            self._strikes += 1
            if self._strikes >= STRIKES:
                self._leave(LIMITED)

    def _say(self, **fields: object) -> None:
        self.follower.say(self._wire.message(**fields))


def _interval(command: Subscribe) -> float:
    """Seconds."""
    if not command.min_interval:
        return 0.0
    try:
        micros = parse_duration(command.min_interval)
    except InvalidTime as error:
        raise Problem("invalid", f"min_interval: {error}") from error
    if micros > INTERVAL_MAX:
        raise Problem("invalid", "min_interval: expected at most 1d")
    return micros / 1e6
