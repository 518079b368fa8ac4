"""Pure routing: (method, path) to a target and the variable parts of the path, or an exact refusal.

A template is `/` or segments of unreserved characters and `{name}` variables, each a whole segment:
`/v1/devices/{device}/readings`. Where several templates fit a path, the one that is literal where
the others are variable has it, alone; templates that do not order this way are refused at start.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import Struct

T = TypeVar("T")

_METHOD = re.compile(r"[A-Z]+", re.ASCII)
_LITERAL = re.compile(r"[A-Za-z0-9._~-]+", re.ASCII)
_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]*)\}", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})", re.ASCII)
# What a segment must not be: nothing, or a step that some client or proxy would have resolved.
_NO_NAMES = frozenset(("", ".", ".."))


class RouteError(ValueError):
    """The table of routes is wrong: a template cannot be read, or two of them contradict."""


class NotFound(Exception):
    """No template fits the path."""


class BadPath(Exception):
    """The path is not percent-encoded UTF-8."""


class MethodNotAllowed(Exception):
    """The path exists, the method does not. `allowed`: the methods that do, sorted."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = allowed


class Route(Struct, Generic[T], frozen=True):
    """One row of the table: requests of `method` to `template` belong to `target`."""

    method: str
    template: str
    target: T


class Match(Struct, Generic[T], frozen=True):
    """Where a request belongs. `params`: the variable segments by name, decoded."""

    target: T
    params: dict[str, str]


class _Endpoint(Generic[T]):
    """All that one template answers. `shape`: its segments, None where one is variable."""

    __slots__ = ("allowed", "shape", "targets", "template", "variables")

    def __init__(self, template: str, targets: Mapping[str, T]) -> None:
        shape: list[str | None] = []
        variables: dict[str, int] = {}
        for index, segment in enumerate(_split(template)):
            if found := _VARIABLE.fullmatch(segment):
                if found[1] in variables:
                    raise RouteError(f"{template!r} names {found[1]!r} twice")
                variables[found[1]] = index
                shape.append(None)
            elif _LITERAL.fullmatch(segment) and segment not in _NO_NAMES:
                shape.append(segment)
            else:
                raise RouteError(f"segment {index + 1} of {template!r} is neither a literal nor a variable")
        self.template = template
        self.shape = tuple(shape)
        self.variables = tuple(variables.items())
        self.targets = dict(targets)
        if "GET" in targets:
            self.targets.setdefault("HEAD", targets["GET"])
        self.allowed = tuple(sorted({*self.targets, "OPTIONS"}))


class _Node(Generic[T]):
    """One place in the trie of segments."""

    __slots__ = ("endpoint", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.variable: _Node[T] | None = None
        self.endpoint: _Endpoint[T] | None = None

    def insert(self, endpoint: _Endpoint[T]) -> None:
        """Grow the path that leads to the endpoint."""
        node = self
        for segment in endpoint.shape:
            if segment is not None:
                node = node.literals.setdefault(segment, _Node())
            else:
                node.variable = node.variable or _Node()
                node = node.variable
        node.endpoint = endpoint

    def find(self, segments: list[str], depth: int) -> _Endpoint[T] | None:
        """The most literal endpoint for the segments from `depth` on; visits a node at most once."""
        if depth == len(segments):
            return self.endpoint
        literal = self.literals.get(segments[depth])
        found = literal.find(segments, depth + 1) if literal is not None else None
        if found is None and self.variable is not None:
            found = self.variable.find(segments, depth + 1)
        return found


class Router(Generic[T]):
    """Resolves requests against a table of routes that never changes. RouteError if it is wrong."""

    __slots__ = ("_static", "_trie")

    def __init__(self, routes: Iterable[Route[T]]) -> None:
        table: dict[str, dict[str, T]] = {}
        for route in routes:
            if not _METHOD.fullmatch(route.method):
                raise RouteError(f"{route.method!r} {route.template} is not a method in capitals")
            targets = table.setdefault(route.template, {})
            if route.method in targets:
                raise RouteError(f"{route.method} {route.template} stands twice in the table")
            targets[route.method] = route.target
        endpoints = [_Endpoint(template, targets) for template, targets in table.items()]
        for one, other in combinations(endpoints, 2):
            _check_order(one, other)
        # Static paths stand in both: the dict has them as they are usually written, the trie for
        # those who encode a character that needs no encoding (RFC 3986, 6.2.2.2).
        self._static = {e.template: e for e in endpoints if not e.variables}
        self._trie: _Node[T] = _Node()
        for endpoint in endpoints:
            self._trie.insert(endpoint)

    def resolve(self, method: str, path: str) -> Match[T]:
        """Where a request belongs; HEAD goes where GET does.

        `path`: as received, percent-encoded, without query. Each segment is decoded once, after
        the split, so an encoded slash stays inside its segment. Errors: BadPath, NotFound,
        MethodNotAllowed.
        """
        endpoint = self._static.get(path)
        if endpoint is not None:
            params: dict[str, str] = {}
        else:
            segments, endpoint = self._search(path)
            params = {name: segments[index] for name, index in endpoint.variables}
        try:
            target = endpoint.targets[method]
        except KeyError:
            raise MethodNotAllowed(endpoint.allowed) from None
        return Match(target, params)

    def allowed(self, path: str) -> tuple[str, ...]:
        """The methods of a path, sorted: what OPTIONS answers. Errors: BadPath, NotFound."""
        endpoint = self._static.get(path) or self._search(path)[1]
        return endpoint.allowed

    def _search(self, path: str) -> tuple[list[str], _Endpoint[T]]:
        if not path.startswith("/"):
            raise NotFound
        segments = _split(path)
        if "%" in path or not path.isascii():
            segments = _decode(segments)
        endpoint = self._trie.find(segments, 0) if _NO_NAMES.isdisjoint(segments) else None
        if endpoint is None:
            raise NotFound
        return segments, endpoint


def _split(path: str) -> list[str]:
    """The segments of a path or template; none for the root."""
    if path == "/":
        return []
    before, *segments = path.split("/")
    if before or not segments:
        raise RouteError(f"{path!r} does not start with a slash")
    return segments


def _decode(segments: list[str]) -> list[str]:
    """Percent-decode each segment once."""
    try:
        if any(map(_BAD_ESCAPE.search, segments)):
            raise BadPath("a percent sign is not followed by two hexadecimal digits")
        return [unquote_to_bytes(segment).decode() for segment in segments]
    except UnicodeError:
        raise BadPath("the path is not UTF-8") from None


def _check_order(one: _Endpoint[T], other: _Endpoint[T]) -> None:
    """Refuse two templates that some path would fit without saying whose it is."""
    pairs = list(zip(one.shape, other.shape, strict=False))
    if len(one.shape) != len(other.shape) or any(a != b and None not in (a, b) for a, b in pairs):
        return
    more_literal = {a is not None for a, b in pairs if a != b}
    if len(more_literal) != 1:
        raise RouteError(f"{one.template!r} and {other.template!r} fit the same paths")
