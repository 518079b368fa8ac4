"""The head memo: what request heads meant that aiohttp's parser and the dispatch have accepted before."""

from server.dispatch import Admitted


class Known:
    """What the exact bytes of a head mean. Nothing of a connection, a body or an answer is in it.

    `guarded`: it has a token, with `expires` in microseconds; `generation`: of keys and revocations
    when it was checked. `account`, `cost`: what the limit is taken from. `length`: of the body.
    `request_id`: as the client gave it, "" if it gave none.
    """

    __slots__ = (
        "account",
        "admitted",
        "bodiless",
        "cost",
        "expires",
        "generation",
        "guarded",
        "handler",
        "index",
        "length",
        "origin",
        "principal",
        "recent",
        "request_id",
    )

    def __init__(
        self, admitted: Admitted, length: int, generation: int, request_id: str, origin: str
    ) -> None:
        endpoint, principal = admitted.endpoint, admitted.head.principal
        self.admitted = admitted
        self.handler = endpoint.handler
        self.index = endpoint.index
        self.bodiless = admitted.head.method == "HEAD"
        self.principal = principal
        self.length = length
        self.generation = generation
        self.request_id = request_id
        self.origin = origin
        self.guarded = endpoint.scope is not None
        self.cost = endpoint.cost if self.guarded else 0
        self.account = principal.account
        self.expires = int(principal.expires * 1_000_000)
        # Used since the hand of the clock came by.
        self.recent = False


class HeadMemo:
    """At most `entries` heads of `size` bytes together.

    What makes room is chosen by second chance (the clock algorithm): nearly the least recently used,
    without a move at each use.
    """

    def __init__(self, entries: int, size: int) -> None:
        self._entries = entries
        self._size = size
        self._known: dict[bytes, Known] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, head: bytes) -> Known | None:
        """What these bytes mean, if they are known."""
        known = self._known.get(head)
        if known is None:
            self.misses += 1
            return None
        self.hits += 1
        known.recent = True
        return known

    def put(self, head: bytes, known: Known) -> None:
        """Remember a head."""
        if head not in self._known:
            self.bytes += len(head)
        self._known[head] = known
        while len(self._known) > self._entries or self.bytes > self._size:
            self._make_room()

    def drop(self, head: bytes) -> None:
        """Forget a head."""
        if self._known.pop(head, None) is not None:
            self.bytes -= len(head)

    def _make_room(self) -> None:
        while True:
            head, known = next(iter(self._known.items()))
            if not known.recent:
                self.drop(head)
                self.evictions += 1
                return
            known.recent = False
            self._known[head] = self._known.pop(head)
