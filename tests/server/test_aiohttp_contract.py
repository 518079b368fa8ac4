"""The parts of aiohttp that are not promised to anybody, and that the lanes rest on all the same.

Each has a check of what it means, on a real connection of aiohttp's own server: an upgrade that changes
one fails here, with its name, and not in a stranger's connection. What `server/` touches and nobody
listed here fails too.
"""

import ast
import asyncio
import importlib
import inspect
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import aiohttp
import pytest
from aiohttp import web, web_protocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from tests.raw import Raw, request, until
from tests.running import PATIENCE, ROOT

GET = request("GET", "/a?b=c")
POST = request("POST", "/a", b"body")
UPGRADE = request("GET", "/a", headers=("Connection: upgrade", "Upgrade: websocket"))
KEEPALIVE = 0.3


class Protocol(RequestHandler):
    """aiohttp's connection, with a count of what its timer calls."""

    __slots__ = ("timed",)

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.timed = 0

    def _process_keepalive(self) -> None:
        self.timed += 1
        super()._process_keepalive()


class Server(web.Server):
    """aiohttp's server; what it knew of each connection that was lost."""

    def __init__(self, handler: Any, **kwargs: Any) -> None:
        super().__init__(handler, access_log=None, **kwargs)
        self.made: list[Protocol] = []
        self.lost: list[tuple[bool, asyncio.Task[None] | None]] = []

    def __call__(self) -> RequestHandler:
        self.made.append(Protocol(self, loop=self._loop, **self._kwargs))
        return self.made[-1]

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.lost.append((handler in self._connections, handler._task_handler))


class Stage:
    """A server of aiohttp and one connection to it. The handler waits for `go`, and then `reads` the body."""

    def __init__(self) -> None:
        self.server: Server
        self.client: Raw
        self.go = asyncio.Event()
        self.go.set()
        self.seen: list[web.BaseRequest] = []
        self.reads = True
        self.linger: float | None = None

    async def handle(self, source: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(source)
        if self.linger is not None:
            source.protocol._lingering_time = self.linger
        await self.go.wait()
        if self.reads:
            await source.content.read()
        return web.Response(text=source.path)

    @property
    def protocol(self) -> Any:
        """The server's end of the connection, of which nothing is taken for granted."""
        return self.server.made[0]

    async def idle(self) -> None:
        await until(lambda: self.protocol._waiter is not None and not self.protocol._waiter.done())

    def feed_apart(self, data: bytes) -> None:
        """Give a request to the parser without waking aiohttp's task, as the fast lane does."""
        protocol = self.protocol
        waiter, protocol._waiter = protocol._waiter, None
        protocol.data_received(data)
        protocol._waiter = waiter


@asynccontextmanager
async def stage(**kwargs: Any) -> AsyncIterator[Stage]:
    on = Stage()
    on.server = Server(on.handle, **kwargs)
    listener = await asyncio.get_running_loop().create_server(on.server, "127.0.0.1", 0)
    on.client = await Raw.open(listener.sockets[0].getsockname()[1])
    try:
        async with on.client:
            await until(lambda: bool(on.server.made))
            await on.idle()
            yield on
    finally:
        on.go.set()
        listener.close()
        await on.server.shutdown(0.1)


Check = Callable[[], Awaitable[None]]
CONTRACT: dict[str, Check] = {}


def part(*names: str) -> Callable[[Check], Check]:
    """The check of these parts."""

    def add(check: Check) -> Check:
        CONTRACT.update(dict.fromkeys(names, check))
        return check

    return add


# -- what a connection is made of --------------------------------------------------------------


@part("_waiter")
async def _waits() -> None:
    """A pending future while the task waits for a request, None while one is handled; without it a
    request is only queued, and the task stays asleep."""
    async with stage() as on:
        protocol: Any = on.protocol
        on.feed_apart(GET)
        assert len(protocol._messages) == 1
        assert protocol._waiter is not None
        assert not protocol._waiter.done()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not on.seen
        assert protocol._parser is not None
        protocol._messages.popleft()
        protocol._parser.message_consumed()
        assert (await on.client.ask(GET)).status == 200
        assert len(on.seen) == 1
        on.go.clear()
        await on.idle()
        await on.client.send(GET)
        await until(lambda: len(on.seen) == 2)
        assert protocol._waiter is None
        # What is queued is taken once somebody sets the waiter's result, as the fast lane does.
        on.go.set()
        await on.client.answer()
        await on.idle()
        on.feed_apart(GET)
        on.protocol._waiter.set_result(None)
        assert (await on.client.answer()).status == 200


@part("_messages")
async def _queues() -> None:
    """A deque of (message, body): of a request, or of the parser's complaint with `exc` and `message`."""
    async with stage() as on:
        protocol = on.protocol
        on.feed_apart(POST)
        ((message, body),) = protocol._messages
        assert type(message) is RawRequestMessage
        assert (message.method, message.path, message.version) == ("POST", "/a", (1, 1))
        assert message.headers.getall("host") == ["gate"]
        assert (message.chunked, message.upgrade, message.should_close) == (False, False, False)
        assert body.is_eof()
        assert body.read_nowait(-1) == b"body"
        assert protocol._parser is not None
        protocol._messages.popleft()
        protocol._parser.message_consumed()
        on.feed_apart(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n")
        ((refused, body),) = protocol._messages
        assert type(refused) is web_protocol._ErrInfo
        assert type(refused.exc) is LineTooLong
        assert refused.exc.args[1] == 8190
        assert (refused.status, type(refused.message)) == (400, str)
        assert body is EMPTY_PAYLOAD
        assert not hasattr(refused, "headers")


@part("_parser", "message_consumed")
async def _parses() -> None:
    """The parser counts what it found: at 32 it stops behind each, until it is told what was consumed."""
    async with stage() as on:
        protocol = on.protocol
        assert type(protocol._parser) is HttpRequestParser
        for number in range(100):
            on.feed_apart(POST)
            assert len(protocol._messages) == 1, number
            protocol._messages.popleft()
            protocol._parser.message_consumed()
        assert (await on.client.ask(GET)).status == 200
        await on.idle()
        on.feed_apart(GET * 5)
        assert len(protocol._messages) == 5
        on.feed_apart(GET * 50)
        assert len(protocol._messages) == 32
        protocol._messages.clear()
        on.feed_apart(b"")
        assert len(protocol._messages) == 1
    assert protocol._parser is None


@part("_close", "_force_close")
async def _listens_no_more() -> None:
    """Set by `close` and `force_close`: what comes then is neither parsed nor queued."""
    for name in ("_close", "_force_close"):
        async with stage() as on:
            protocol = on.protocol
            assert not protocol._close
            assert not protocol._force_close
            getattr(protocol, name.removeprefix("_"))()
            assert getattr(protocol, name)
            on.feed_apart(GET)
            assert not protocol._messages
            assert protocol._request_count == 0


@part("_request_count")
async def _counts() -> None:
    """Grows with each head that the parser accepts or refuses, before its body is there."""
    async with stage() as on:
        on.reads = True
        assert on.protocol._request_count == 0
        await on.client.send(POST[:-2])
        await until(lambda: bool(on.seen))
        assert on.protocol._request_count == 1
        await on.client.ask(POST[-2:])
        await on.client.ask(GET)
        assert on.protocol._request_count == 2
        assert (await on.client.ask(b"GARBAGE\r\n\r\n")).status == 400
        assert on.protocol._request_count == 3


@part("_message_tail", "_current_request")
async def _keeps_what_follows_an_upgrade() -> None:
    """Bytes behind an upgrade are kept for whoever takes the connection; a request is known while it is
    handled, and only then."""
    async with stage() as on:
        on.go.clear()
        assert (on.protocol._current_request, on.protocol._message_tail) == (None, b"")
        await on.client.send(UPGRADE + b"frames")
        await until(lambda: len(on.seen) == 1)
        assert on.protocol._current_request is on.seen[0]
        assert on.protocol._message_tail == b"frames"
        await on.client.send(b" and more")
        await until(lambda: on.protocol._message_tail == b"frames and more")


@part("_upgraded")
async def _upgrades() -> None:
    """Set from the moment that an upgrade was parsed until it was declined."""
    async with stage() as on:
        on.go.clear()
        await on.client.send(UPGRADE + GET)
        await until(lambda: bool(on.seen))
        assert on.protocol._upgraded
        assert not on.protocol._messages
        on.go.set()
        assert (await on.client.answer()).status == 200
        assert (await on.client.answer()).status == 200
        assert not on.protocol._upgraded


@part("_paused", "writing_paused", "_drain_helper")
async def _pauses_writing() -> None:
    """Set while a client does not read; `_drain_helper` waits as long, and fails when he has gone."""
    async with stage() as on:
        protocol = on.protocol
        assert not protocol._paused
        async with asyncio.timeout(1):
            await protocol._drain_helper()
        assert protocol.transport is not None
        protocol.transport.write(b"x" * (16 << 20))
        await until(lambda: protocol._paused)
        assert protocol.writing_paused
        draining = asyncio.ensure_future(protocol._drain_helper())
        await asyncio.sleep(0)
        assert not draining.done()
        await on.client.reader.readexactly(16 << 20)
        async with asyncio.timeout(PATIENCE):
            await draining
        assert not protocol._paused
        on.client.leave()
        await until(lambda: protocol.transport is None)
        with pytest.raises(ConnectionError):
            await protocol._drain_helper()


@part("_reading_paused")
async def _pauses_reading() -> None:
    """Set while a body is longer than what aiohttp keeps of it, until somebody reads it."""
    async with stage() as on:
        on.go.clear()
        size = 4 << 20
        sending = asyncio.ensure_future(on.client.send(request("POST", "/a", b"x" * size)))
        await until(lambda: on.protocol._reading_paused)
        on.go.set()
        assert (await on.client.answer()).status == 200
        await sending
        assert not on.protocol._reading_paused


@part("_buffer_paused")
async def _pauses_for_the_queue() -> None:
    """Set while 32 requests wait in the queue."""
    async with stage() as on:
        on.go.clear()
        await on.client.send(GET * 50)
        await until(lambda: on.protocol._buffer_paused)
        assert len(on.protocol._messages) <= 32
        on.go.set()
        for _ in range(50):
            assert (await on.client.answer()).status == 200
        await on.idle()
        assert not on.protocol._buffer_paused


@part("_next_keepalive_close_time", "_keepalive_timeout", "_process_keepalive")
async def _keeps_alive() -> None:
    """A timer calls `_process_keepalive` at `_next_keepalive_close_time` (loop time, seconds), which closes
    an idle connection, or comes again when the time was moved; aiohttp moves it after answers of its own."""
    loop = asyncio.get_running_loop()
    async with stage(keepalive_timeout=KEEPALIVE) as on:
        protocol = on.protocol
        assert protocol._keepalive_timeout == KEEPALIVE
        await on.client.ask(GET)
        await on.idle()
        now = loop.time()
        assert now < protocol._next_keepalive_close_time <= now + KEEPALIVE
        protocol._next_keepalive_close_time = until_then = now + 3 * KEEPALIVE
        assert await on.client.ended(3) == b""
        assert protocol.timed >= 2
        assert until_then - 0.05 < loop.time() < until_then + 1


@part("_task_handler")
async def _has_a_task() -> None:
    """The task of the connection, known to the server for the last time when the connection is lost."""
    async with stage() as on:
        task = on.protocol._task_handler
        assert isinstance(task, asyncio.Task)
        on.client.leave()
        await until(lambda: bool(on.server.lost))
        ((still_there, last),) = on.server.lost
        assert last is task
        assert still_there
        assert on.protocol._task_handler is None
        await until(task.done)


@part("_lingering_time")
async def _lingers() -> None:
    """Seconds that an unread body is thrown away for, asked when the handler has answered."""
    async with stage(lingering_time=30) as on:
        on.reads, on.linger = False, 0.1
        assert on.protocol._lingering_time == 30
        assert (await on.client.ask(POST[:-2])).status == 200
        assert await on.client.ended(5) == b""


@part("force_close")
async def _ends_by_force() -> None:
    """Closes the transport once what was written has gone, forgets it, and takes nothing more."""
    async with stage() as on:
        protocol = on.protocol
        assert protocol.transport is not None
        protocol.transport.write(b"x" * (4 << 20))
        protocol.force_close()
        assert protocol.transport is None
        protocol.data_received(GET)
        assert not protocol._messages
        assert await on.client.ended() == b"x" * (4 << 20)
        assert not on.seen


# -- the server, requests, bodies, answers -----------------------------------------------------


@part("_connections", "_kwargs", "_loop")
async def _serves() -> None:
    """The open connections with their transports, until their tasks end; what each protocol is made with."""
    async with stage(keepalive_timeout=7) as on:
        assert list(on.server._connections) == [on.protocol]
        assert on.server._connections[on.protocol] is on.protocol.transport
        assert on.server._kwargs["keepalive_timeout"] == 7
        assert on.server._loop is on.protocol._loop is asyncio.get_running_loop()
        on.client.leave()
        await until(lambda: not on.server._connections)


@part("_message")
async def _keeps_the_message() -> None:
    """A request has the parser's message, with the target as it came."""
    async with stage() as on:
        target = "http://a/%64?x=%zz#f"
        assert (await on.client.ask(request("GET", target))).status == 200
        (source,) = on.seen
        assert type(source._message) is RawRequestMessage
        assert source._message.path == target
        assert source.protocol is on.protocol


@part("StreamReader")
async def _streams() -> None:
    """Bodies can be broken off from outside, and whoever reads sees it."""
    assert EMPTY_PAYLOAD.is_eof()
    assert EMPTY_PAYLOAD.exception() is None
    async with stage() as on:
        body = StreamReader(on.protocol, 1 << 16, loop=asyncio.get_running_loop())
        body.feed_data(b"ab")
        assert not body.is_eof()
        assert body.read_nowait(-1) == b"ab"
        reading = asyncio.ensure_future(body.readany())
        await asyncio.sleep(0)
        error = ConnectionResetError("gone")
        body.set_exception(error)
        body.feed_eof()
        with pytest.raises(ConnectionResetError):
            await reading
        assert body.exception() is error
        assert body.is_eof()


@part("prepare, write_eof, keep_alive")
async def _asks_little_of_an_answer() -> None:
    """All that the protocol asks of an answer: server/wire.py gives no more."""
    kind = web_protocol.RequestHandler
    used = inspect.getsource(kind.start) + inspect.getsource(kind.finish_response)
    used += inspect.getsource(kind._handle_request)
    wanted = set(re.findall(r"\bresp\.(\w+)", used))
    assert wanted == {"prepare", "write_eof", "keep_alive"}


@part("handle_error", "log_exception")
async def _tells_of_errors() -> None:
    """Called with (request, status, exc, message) for what the parser refused; gives the answer."""
    signature = inspect.signature(RequestHandler.handle_error)
    assert list(signature.parameters) == ["self", "request", "status", "exc", "message"]
    assert list(inspect.signature(RequestHandler.log_exception).parameters) == ["self", "args", "kw"]


# -- the parser --------------------------------------------------------------------------------


@part("the C parser at a boundary")
async def _frames() -> None:
    """A whole request gives one message with a finished body; half a head gives nothing that can be seen,
    and the rest of it, though it looks like a request of its own, belongs to the first."""
    async with stage() as on:
        protocol = on.protocol

        def fed(data: bytes) -> list[Any]:
            on.feed_apart(data)
            found = list(protocol._messages)
            for _ in found:
                protocol._messages.popleft()
                assert protocol._parser is not None
                protocol._parser.message_consumed()
            return found

        for whole, content in ((GET, b""), (POST, b"body"), (request("POST", "/", b""), b"")):
            ((_, body),) = fed(whole)
            assert body.is_eof()
            assert content or body is EMPTY_PAYLOAD
        assert len(fed(GET + POST + GET)) == 3
        for place in (1, 4, 20, len(GET) - 1):
            assert fed(GET[:place]) == []
            ((message, body),) = fed(GET[place:])
            assert (message.path, body.is_eof()) == ("/a?b=c", True)
        # What a look at a boundary must never be: the second half is a whole head by itself.
        assert fed(b"GET /first HTTP/1.1\r\nHost: a\r\nX: ") == []
        ((message, _),) = fed(b"GET /second HTTP/1.1\r\nHost: b\r\n\r\n".replace(b"Host: b\r\n", b""))
        assert message.path == "/first"
        assert message.headers["X"] == "GET /second HTTP/1.1"
        # Line breaks before a request are passed over, one by one too.
        for empty in (b"\r", b"\n", b"\r\n", b"\r\n\r"):
            assert fed(empty) == []
            ((message, body),) = fed(POST)
            assert (message.path, body.is_eof()) == ("/a", True)
        ((message, _),) = fed(b"\r\n\r\n" + GET)
        assert message.path == "/a?b=c"
        ((message, body),) = fed(POST[:-1])
        assert not body.is_eof()
        assert fed(POST[-1:]) == []
        assert body.is_eof()
        ((message, body),) = fed(request("POST", "/", headers=("Transfer-Encoding: chunked",)) + b"0\r\n\r\n")
        assert (message.chunked, body.is_eof()) == (True, True)


@pytest.mark.parametrize("name", CONTRACT)
async def test_a_part_of_aiohttp_is_what_the_lanes_take_it_for(name: str) -> None:
    check = CONTRACT[name]
    try:
        await check()
    except Exception as error:
        raise AssertionError(
            f"aiohttp {aiohttp.__version__}: {name} is not what the lanes take it for: {check.__doc__}"
        ) from error


# -- what is touched ---------------------------------------------------------------------------

KINDS = (RequestHandler, web.Server, web.BaseRequest, StreamReader, HttpRequestParser)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names(kind: type, *, of: str) -> frozenset[str]:
    """The private names that the classes of a package give to a kind of theirs."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == of:
            found |= set(vars(base)) | set(getattr(base, "__slots__", ())) | assigned(base)
    return frozenset(filter(is_private, found))


def assigned(kind: type) -> set[str]:
    """What the methods of a class assign to self."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        # Compiled.
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
    }


def is_self(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "self") or ast.unparse(node).startswith("super(")


AIOHTTPS = {name for kind in KINDS for name in private_names(kind, of="aiohttp")}


def touched(tree: ast.AST, own: Mapping[str, AbstractSet[str]], inside: str = "") -> Iterator[str]:
    """The private parts of aiohttp that a module touches. `own`: its classes that are aiohttp's kin, with
    the private names that are the house's alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from touched(node, own, node.name)
            continue
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if is_self(node.value):
                if inside in own and node.attr not in own[inside]:
                    yield node.attr
            elif node.attr in AIOHTTPS:
                yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            named = node.args[1]
            if isinstance(named, ast.Constant) and str(named.value) in AIOHTTPS:
                yield str(named.value)
        yield from touched(node, own, inside)


def kin(module: str) -> list[type]:
    """The classes of a module that are aiohttp's kin."""
    found = vars(importlib.import_module(f"server.{module}")).values()
    return [
        kind for kind in found if isinstance(kind, type) and issubclass(kind, KINDS) and kind not in KINDS
    ]


# The others in server/ know nothing of aiohttp.
MODULES = sorted(
    path.stem for path in (ROOT / "server").glob("*.py") if re.search("aiohttp|protocol", path.read_text())
)


def test_no_private_part_of_aiohttp_is_touched_that_the_contract_does_not_list() -> None:
    assert {"protocol", "fast_protocol", "lane", "wire"} <= set(MODULES)
    unlisted = {}
    for module in MODULES:
        own = {
            kind.__name__: private_names(kind, of="server") - private_names(kind, of="aiohttp")
            for kind in kin(module)
        }
        tree = ast.parse((ROOT / "server" / f"{module}.py").read_text())
        if found := set(touched(tree, own)) - CONTRACT.keys():
            unlisted[module] = found
    assert not unlisted, f"give each a check here that shows its meaning: {unlisted}"


def test_no_name_of_ours_is_one_of_aiohttps() -> None:
    """A slot of the same name would be shared with aiohttp, unseen. What is overridden is listed."""
    shared = {}
    for kind in {kind for module in MODULES for kind in kin(module)}:
        ours = {name for name in private_names(kind, of="server") if name not in overridden(kind)}
        if found := ours & private_names(kind, of="aiohttp"):
            shared[kind.__name__] = found
    assert not shared, f"these names are aiohttp's too: {shared}"


def overridden(kind: type) -> set[str]:
    """What the contract lists: the house may assign to it, or make its own method of it."""
    return CONTRACT.keys() & private_names(kind, of="aiohttp")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("class Ours:\n def f(self): return self._waiter, self._mine", {"_waiter"}),
        ("class Ours:\n def f(self): return self._renamed", {"_renamed"}),
        ("class Ours:\n def f(self): super()._process_keepalive()", {"_process_keepalive"}),
        ("class Other:\n def f(self): return self._waiter", set()),
        ("class Other:\n def f(self, handler): return handler._task_handler", {"_task_handler"}),
        ("def f(request): return request.protocol._force_close, request._house", {"_force_close"}),
        ("def f(request): return getattr(request, '_payload', None)", {"_payload"}),
    ],
)
def test_a_private_part_is_seen(text: str, found: set[str]) -> None:
    assert set(touched(ast.parse(text), {"Ours": {"_mine"}})) == found
