"""What browsers are told about pages of other origins."""

from collections.abc import Iterable

from handlers.exchange import Headers


class Cors:
    """Which origins browsers may call from (the Fetch standard)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def lines(self, origin: str) -> str:
        """Header lines for an answer to a page of this origin."""
        if not self._origins or not origin:
            return ""
        if origin not in self._origins and "*" not in self._origins:
            return "Vary: Origin\r\n"
        return (
            f"Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n"
            "Access-Control-Expose-Headers: ETag, Link, Location, RateLimit, RateLimit-Policy, "
            "Retry-After, X-Request-ID, Preference-Applied\r\n"
        )

    def preflight(self, headers: Headers, allowed: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Headers of the answer to OPTIONS."""
        origin = headers.get("Origin", "")
        if not headers.get("Access-Control-Request-Method", "") or (
            origin not in self._origins and "*" not in self._origins
        ):
            return ()
        return (
            ("Access-Control-Allow-Methods", ", ".join(allowed)),
            (
                "Access-Control-Allow-Headers",
                "Authorization, Content-Type, Content-Encoding, Accept, Prefer, Idempotency-Key, "
                "If-None-Match, Last-Event-ID, X-Request-ID",
            ),
            ("Access-Control-Max-Age", "600"),
        )
