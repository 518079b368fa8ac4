"""The head memo: what request heads meant that aiohttp's parser and the dispatch have accepted before."""

import math

from server.dispatch import Admitted
from storage.cache import make_room


class Known:
    """What was made of a head. Nothing of a connection, a body or an answer is in it.

    `expires`: of the token, microseconds since 1970; without a token a head does not expire.
    `generation`: of keys and revocations when it was checked. `account`, `cost`: what the limit is
    taken from. `limit`: bytes that a body may have. `cors`: header lines for its origin.
    """

    __slots__ = (
        "account",
        "admitted",
        "bodiless",
        "cors",
        "cost",
        "expires",
        "generation",
        "handler",
        "head",
        "index",
        "kind",
        "limit",
        "recent",
    )

    def __init__(self, admitted: Admitted, generation: int, cors: str) -> None:
        endpoint, head = admitted.endpoint, admitted.head
        principal = head.principal
        self.admitted = admitted
        self.head = head
        self.handler = admitted.handler
        self.kind = endpoint.kind
        self.index = endpoint.index
        self.bodiless = head.method == "HEAD"
        self.limit = admitted.limit
        self.generation = generation
        self.cors = cors
        guarded = endpoint.scope is not None
        self.cost = endpoint.cost if guarded else 0
        self.account = principal.account
        self.expires = principal.expires * 1_000_000 if guarded else math.inf
        # Used since the hand of the clock came by.
        self.recent = False


class KnownHead(Known):
    """What the exact bytes of a head mean.

    `length`: of the body. `request_id`: as the client gave it, "" if it gave none.
    """

    __slots__ = ("length", "request_id")

    def __init__(self, known: Known, length: int, request_id: str) -> None:
        super().__init__(known.admitted, known.generation, known.cors)
        self.length = length
        self.request_id = request_id


class HeadMemo:
    """At most `entries` heads of `size` bytes together.

    What makes room is chosen by second chance (the clock algorithm): nearly the least recently used,
    without a move at each use.
    """

    def __init__(self, entries: int, size: int) -> None:
        self._entries = entries
        self._size = size
        self._known: dict[bytes, KnownHead] = {}
        # What these bytes mean, None if they are not known. Who looks counts hits and misses.
        self.find = self._known.get
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._known)

    def put(self, head: bytes, known: KnownHead) -> None:
        """Remember a head."""
        self.drop(head)
        # Before it comes in: one that was never looked up would be the first to go.
        while self._known and (len(self._known) >= self._entries or self.bytes + len(head) > self._size):
            self.bytes -= len(make_room(self._known))
            self.evictions += 1
        self._known[head] = known
        self.bytes += len(head)

    def drop(self, head: bytes) -> None:
        """Forget a head."""
        if self._known.pop(head, None) is not None:
            self.bytes -= len(head)
