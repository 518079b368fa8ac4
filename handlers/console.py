"""The live console: one page with its style and script in it, nothing from elsewhere."""

import base64
import hashlib
from importlib import resources

from handlers.exchange import Request, Response
from handlers.reading import matches

# In the order in which they need each other.
_SCRIPTS = ("format.js", "events.js", "gate.js", "series.js", "chart.js", "devices.js", "console.js")


def _read(name: str) -> str:
    return resources.files("handlers").joinpath("web", name).read_text("utf-8")


def _source(text: str) -> str:
    """How a Content-Security-Policy names what stands between two tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _assemble() -> tuple[bytes, str]:
    """The page, and the policy that lets nothing run in it but what it is made of."""
    style = _read("console.css")
    script = "\n".join(map(_read, _SCRIPTS))
    page = _read("console.html")
    page = page.replace("/* console.css */", style).replace("/* console.js */", script)
    policy = (
        "default-src 'none'",
        f"script-src {_source(script)}",
        f"style-src {_source(style)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Markup cannot be made from text at all, whatever a device calls itself.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return page.encode(), "; ".join(policy)


class Console:
    """The handler of `/`."""

    def __init__(self) -> None:
        self._page, policy = _PAGE
        self._etag = f'"{hashlib.sha256(self._page).hexdigest()[:32]}"'
        self._headers = (
            ("ETag", self._etag),
            ("Cache-Control", "no-cache"),
            ("Content-Security-Policy", policy),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
        )

    def page(self, request: Request) -> Response:
        """`GET /`."""
        condition = ", ".join(request.head.headers.getall("If-None-Match", []))
        if condition and matches(condition, self._etag):
            return Response(304, headers=self._headers)
        return Response(200, self._page, "text/html; charset=utf-8", self._headers)


_PAGE = _assemble()
