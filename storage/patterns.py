"""Which devices and metrics somebody means or may touch.

A pattern over device ids is a list of tokens joined by dots: `*` is one token, a last `>` is one
or more, `>` alone is every device (the subjects of NATS).
"""

import re
from collections.abc import Iterable

from msgspec import Struct

from storage.models import DEVICE_MAX

_TOKEN = re.compile(r"[A-Za-z0-9_-]+|\*", re.ASCII)


class InvalidPattern(ValueError):
    """The text is not a pattern; the message says what is wrong."""


class Pattern(Struct, frozen=True):
    """A parsed pattern. `prefix`: what every matching device id starts with."""

    text: str
    prefix: str
    expression: re.Pattern[str]

    def matches(self, device: str) -> bool:
        """Whether the pattern takes in this device id."""
        return self.expression.fullmatch(device) is not None


def parse_pattern(text: str) -> Pattern:
    """Read a pattern; InvalidPattern says what is wrong with it."""
    if not text or len(text) > DEVICE_MAX:
        raise InvalidPattern(f"a pattern has 1 to {DEVICE_MAX} characters")
    tokens = text.split(".")
    last = len(tokens) - 1
    parts = []
    for index, token in enumerate(tokens):
        if token == ">" and index == last:
            parts.append(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
        elif token == "*":
            parts.append(r"[A-Za-z0-9_-]+")
        elif _TOKEN.fullmatch(token):
            parts.append(re.escape(token))
        else:
            raise InvalidPattern(
                f"token {index + 1} of the pattern {text!r} is {token!r}; expected letters, "
                "digits, _ and -, or *, or > as the last one"
            )
    literal = [token for token in tokens if token not in ("*", ">")]
    fixed = tokens.index(next((t for t in tokens if t in ("*", ">")), tokens[0]))
    prefix = text if len(literal) == len(tokens) else "".join(t + "." for t in tokens[:fixed])
    return Pattern(text, prefix, re.compile(r"\.".join(parts), re.ASCII))


class Selection:
    """The devices and metrics that a reader gets: asked for by pattern, and granted.

    `match`: any of these (empty: no wish, all). `grants`: and any of these. `metrics`: and one of
    these names (empty: all).
    """

    __slots__ = ("_known", "grants", "match", "metrics")

    # Verdicts remembered per device id; past it the memory starts anew.
    KNOWN_MAX = 100_000

    def __init__(
        self,
        match: Iterable[Pattern],
        grants: Iterable[Pattern],
        metrics: Iterable[str] = (),
    ) -> None:
        self.match = tuple(match)
        self.grants = tuple(grants)
        self.metrics = frozenset(metrics)
        self._known: dict[str, bool] = {}

    def takes_device(self, device: str) -> bool:
        """Whether readings of this device are wanted and granted."""
        known = self._known.get(device)
        if known is None:
            if len(self._known) >= self.KNOWN_MAX:
                self._known.clear()
            known = any(p.matches(device) for p in self.grants) and (
                not self.match or any(p.matches(device) for p in self.match)
            )
            self._known[device] = known
        return known

    def takes(self, device: str, metric: str) -> bool:
        """Whether this series is wanted and granted."""
        return (not self.metrics or metric in self.metrics) and self.takes_device(device)

    def prefixes(self) -> list[str]:
        """Disjoint prefixes in order that together hold every device of the selection."""
        found: list[str] = []
        for prefix in sorted({p.prefix for p in self.match or self.grants}):
            if not found or not prefix.startswith(found[-1]):
                found.append(prefix)
        return found
