"""The contract between the lanes and the handlers: a Request goes in, a Response comes out.

A handler never sees a socket. The route table states its kind: it gives a Response at once (SYNC),
a Deferred whose answer comes from a commit, or at once a Response (COMMIT), a coroutine (COROUTINE),
a Response at once where a cache has it, else a coroutine (CACHED), a Stream that takes the connection
over, or at once a Response (STREAM).
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import IntEnum
from typing import Any, Protocol

from msgspec import Struct

from auth.principal import Principal
from storage.models import Write


class Kind(IntEnum):
    """How a handler answers."""

    SYNC = 0
    COMMIT = 1
    COROUTINE = 2
    CACHED = 3
    STREAM = 4


class Media(IntEnum):
    """The media types of bodies, both ways."""

    NONE = 0
    JSON = 1
    MSGPACK = 2
    NDJSON = 3
    CSV = 4
    FORM = 5
    TEXT = 6
    HTML = 7
    EVENTS = 8


class Headers(Protocol):
    """The headers of a request: names in any case, several values of one name allowed."""

    def __contains__(self, name: object, /) -> bool:
        """Whether there is a header of this name."""

    def get(self, name: str, default: str, /) -> str:
        """The first value of this name."""

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """All values of this name."""


class Preferences(Struct, frozen=True):
    """The honoured part of `Prefer` (RFC 7240)."""

    strict: bool = False
    lenient: bool = False
    respond_async: bool = False


class Head(Struct, frozen=True):
    """What the head of a request says, understood and checked; the same bytes mean the same again.

    `raw_path`: as it came, without the query. `params`: the variable parts of the route, decoded.
    `query`: each parameter with all its values. `accept`: the form of the answer. `content`: the
    form of the body (NONE: there is none).
    """

    method: str
    raw_path: str
    query_string: str
    params: dict[str, str]
    query: dict[str, list[str]]
    headers: Headers
    accept: Media
    content: Media
    prefer: Preferences
    principal: Principal


class Request(Struct):
    """One request: its head, its whole body (decoded from its content coding), and this very time.

    `id`: the request id. `address`: the client's, through trusted proxies. `received`: microseconds
    since 1970.
    """

    head: Head
    body: bytes
    id: str
    address: str
    received: int


class Response(Struct):
    """An answer: whole (`body`) or in pieces (`chunks`).

    `headers`: those of this answer alone, as (name, value) in latin-1; length, date, request id
    and the like are added when it is encoded. `lines`: more of them, spelled out with their ends,
    for answers that are given often.
    """

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    chunks: AsyncIterator[bytes] | None = None
    lines: str = ""


class _Nothing(AsyncIterator[bytes]):
    """No pieces: what has them has a head alone, whose length is not told."""

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


NOTHING = _Nothing()


class Deferred:
    """An answer that a commit will give: `render` makes it from the settled write."""

    __slots__ = ("render", "write")

    def __init__(self, write: Write, render: Callable[[Write], Response]) -> None:
        self.write = write
        self.render = render


class Sink(Protocol):
    """Where a stream goes: bytes out, how many still wait, and the end."""

    def write(self, data: bytes, /) -> None:
        """Send, or keep for sending."""

    def pending(self) -> int:
        """How many bytes are kept."""

    def hold(self) -> None:
        """Read nothing from the client until `release`."""

    def release(self) -> None:
        """Read on."""

    def close(self) -> None:
        """Send what is kept, then end."""

    def abort(self) -> None:
        """End at once."""


class Stream(ABC):
    """An answer without an end: it has the connection for itself once its head is sent."""

    __slots__ = ()

    @property
    @abstractmethod
    def head(self) -> Response:
        """Status and headers; there is no body."""

    @abstractmethod
    def opened(self, sink: Sink) -> None:
        """The head is sent."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """The client has sent something."""

    @abstractmethod
    def drained(self) -> None:
        """Nothing is kept any more, after something was."""

    @abstractmethod
    def lost(self) -> None:
        """The connection is gone."""


Answer = Response | Deferred | Stream | Coroutine[Any, Any, Response]
Handler = Callable[[Request], Answer]
