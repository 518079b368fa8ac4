"""Which followers a reading is for: an index whose cost grows with the matches, not with the filters."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from storage.patterns import Pattern, Selection

T = TypeVar("T")

Series = tuple[str, str]

# Series whose followers are remembered; past it the memory starts anew.
KNOWN_MAX = 100_000


class Filter:
    """The readings that one subscription is for: patterns, metrics (none: all), cut to the grants.

    Filters that ask for the same have the same `key`.
    """

    __slots__ = ("grants", "key", "match", "metrics")

    def __init__(
        self, match: Iterable[Pattern], grants: Iterable[Pattern], metrics: Iterable[str] = ()
    ) -> None:
        self.match = tuple(match)
        self.grants = tuple(grants)
        self.metrics = frozenset(metrics)
        self.key = (
            frozenset(pattern.text for pattern in self.match),
            self.metrics,
            frozenset(pattern.text for pattern in self.grants),
        )

    @property
    def possible(self) -> bool:
        """Whether there can be a device that is both asked for and granted."""
        return any(wish.overlaps(grant) for wish in self.match for grant in self.grants)

    def takes(self, device: str, metric: str) -> bool:
        """Whether this series is wanted and granted."""
        return (
            (not self.metrics or metric in self.metrics)
            and any(pattern.matches(device) for pattern in self.match)
            and any(pattern.matches(device) for pattern in self.grants)
        )

    def selection(self) -> Selection:
        """The same for reading the log, with a memory of verdicts of its own."""
        return Selection(self.match, self.grants, self.metrics)


class _Entry(Generic[T]):
    """A filter in the trie, and whom it leads to."""

    __slots__ = ("grants", "metrics", "target")

    def __init__(self, filter: Filter, target: T) -> None:
        self.metrics = filter.metrics
        self.grants = filter.grants
        self.target = target

    def takes(self, device: str, metric: str) -> bool:
        return (not self.metrics or metric in self.metrics) and any(
            pattern.matches(device) for pattern in self.grants
        )


class _Node(Generic[T]):
    """One place in the trie of tokens.

    `ending`: filters whose pattern ends here; `deeper`: those that take in all that is below.
    """

    __slots__ = ("deeper", "ending", "tokens")

    def __init__(self) -> None:
        # The key `*` is the wildcard: no device id has such a token.
        self.tokens: dict[str, _Node[T]] = {}
        self.ending: set[_Entry[T]] = set()
        self.deeper: set[_Entry[T]] = set()

    @property
    def empty(self) -> bool:
        return not (self.tokens or self.ending or self.deeper)


class FilterIndex(Generic[T]):
    """Finds the targets of a series. A target may have several filters; it is found once."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._known: dict[Series, tuple[T, ...]] = {}
        self._entries: dict[T, list[tuple[Filter, _Entry[T]]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, target: T, filters: Iterable[Filter]) -> None:
        """Lead what any of the filters takes in to `target`, which is not in the index yet."""
        entries = [(wish, _Entry(wish, target)) for wish in filters]
        for wish, entry in entries:
            for pattern in wish.match:
                node = self._root
                for token in pattern.tokens:
                    node = node.tokens.setdefault(token, _Node())
                (node.deeper if pattern.deeper else node.ending).add(entry)
        self._entries[target] = entries
        self._known.clear()

    def remove(self, target: T) -> None:
        """Forget a target and its filters."""
        for wish, entry in self._entries.pop(target):
            for pattern in wish.match:
                _take_out(self._root, pattern, entry)
        self._known.clear()

    def find(self, series: Series) -> tuple[T, ...]:
        """The targets of a series (device, metric), each once."""
        known = self._known.get(series)
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            device, metric = series
            found = (
                entry.target
                for entry in _descend(self._root, device.split("."), 0)
                if entry.takes(device, metric)
            )
            known = self._known[series] = tuple(dict.fromkeys(found))
        return known


def _descend(node: _Node[T], tokens: list[str], depth: int) -> Iterator[_Entry[T]]:
    """All entries whose pattern takes in the tokens; visits a node at most once."""
    if depth == len(tokens):
        yield from node.ending
        return
    yield from node.deeper
    for key in (tokens[depth], "*"):
        below = node.tokens.get(key)
        if below is not None:
            yield from _descend(below, tokens, depth + 1)


def _take_out(root: _Node[T], pattern: Pattern, entry: _Entry[T]) -> None:
    """Remove an entry, and the nodes that lead nowhere without it."""
    path = [root]
    for token in pattern.tokens:
        below = path[-1].tokens.get(token)
        if below is None:
            # The same pattern stood twice in the filter.
            return
        path.append(below)
    (path[-1].deeper if pattern.deeper else path[-1].ending).discard(entry)
    for above, token in zip(path[-2::-1], reversed(pattern.tokens), strict=True):
        if above.tokens[token].empty:
            del above.tokens[token]
