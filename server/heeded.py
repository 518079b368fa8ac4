"""The header fields that the gate heeds: all that a request can mean beside its method and target.

What is remembered of a request (server/admissions.py) is found again by its method, its target and
these fields. So nobody behind the dispatch gets to see any other field: a handler that wants one must
add it here, and a request that differs in it then is another request.
"""

from handlers.exchange import Headers

# Content-Length is not one of them: how long a body is, is looked at for each request.
HEEDED = frozenset(
    (
        "Accept",
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "Expect",
        "Idempotency-Key",
        "If-None-Match",
        "Origin",
        "Prefer",
        "Transfer-Encoding",
        "X-Forwarded-For",
    )
)


class NotHeeded(LookupError):
    """Code asks for a field that is not heeded: add it to HEEDED."""


class Heeded:
    """The heeded ones among the headers of a request; names as in HEEDED. NotHeeded for any other."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Headers) -> None:
        self._headers = headers

    def __contains__(self, name: object, /) -> bool:
        """Whether there is a header of this name."""
        if name not in HEEDED:
            raise NotHeeded(name)
        return name in self._headers

    def get(self, name: str, default: str, /) -> str:
        """The first value of this name."""
        if name not in HEEDED:
            raise NotHeeded(name)
        return self._headers.get(name, default)

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """All values of this name."""
        if name not in HEEDED:
            raise NotHeeded(name)
        return self._headers.getall(name, default)
