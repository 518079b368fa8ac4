"""Which devices and metrics somebody means or may touch.

A pattern over device ids is a list of tokens joined by dots: `*` is one token, a last `>` is one
or more, `>` alone is every device (the subjects of NATS).
"""

import re
from collections.abc import Iterable
from itertools import takewhile

from msgspec import Struct

from storage.models import DEVICE_MAX

_LITERAL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class InvalidPattern(ValueError):
    """The text is not a pattern; the message says what is wrong."""


class Pattern(Struct, frozen=True):
    """A parsed pattern.

    `prefix`: what every matching device id starts with. `tokens`: without a last `>`; `deeper`:
    whether there is one, so that one or more tokens follow.
    """

    text: str
    prefix: str
    tokens: tuple[str, ...]
    deeper: bool

    def matches(self, device: str) -> bool:
        """Whether the pattern takes in this device id."""
        if not device.startswith(self.prefix):
            return False
        found = device.split(".")
        fits = len(found) > len(self.tokens) if self.deeper else len(found) == len(self.tokens)
        return fits and all(token in ("*", other) for token, other in zip(self.tokens, found, strict=False))

    def overlaps(self, other: "Pattern") -> bool:
        """Whether there can be a device id that both take in."""
        shorter, longer = sorted((self, other), key=_length)
        if len(shorter.tokens) != len(longer.tokens) and not shorter.deeper:
            return False
        if len(shorter.tokens) == len(longer.tokens) and shorter.deeper != longer.deeper:
            return False
        pairs = zip(shorter.tokens, longer.tokens, strict=False)
        return all(a == b or "*" in (a, b) for a, b in pairs)


def _length(pattern: Pattern) -> int:
    return len(pattern.tokens)


def parse_pattern(text: str) -> Pattern:
    """Read a pattern; InvalidPattern says what is wrong with it."""
    if not text or len(text) > DEVICE_MAX:
        raise InvalidPattern(f"a pattern has 1 to {DEVICE_MAX} characters")
    tokens = text.split(".")
    deeper = tokens[-1] == ">"
    named = tokens[:-1] if deeper else tokens
    for place, word in enumerate(named, 1):
        if word != "*" and not _LITERAL.fullmatch(word):
            raise InvalidPattern(
                f"token {place} of the pattern {text!r} is {word!r}; expected letters, "
                "digits, _ and -, or *, or > as the last one"
            )
    fixed = list(takewhile("*".__ne__, named))
    prefix = text if fixed == tokens else "".join(f"{word}." for word in fixed)
    return Pattern(text, prefix, tuple(named), deeper)


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
        wishes = {pattern.prefix for pattern in self.match} or {""}
        grants = {pattern.prefix for pattern in self.grants}
        # A device that starts with both has one of them as the prefix of the other.
        both = {max(a, b, key=len) for a in wishes for b in grants if a.startswith(b) or b.startswith(a)}
        found: list[str] = []
        for prefix in sorted(both):
            if not found or not prefix.startswith(found[-1]):
                found.append(prefix)
        return found
