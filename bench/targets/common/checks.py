"""What the Python targets check before they answer, so that all check the same: token, scope, grant, limit.

PyJWT verifies each token, as the documentation of most frameworks has it. The limit is per principal: GCRA
with a burst of a tenth. Settings come by the environment.
"""

import functools
import os
import secrets
import time
from email.utils import formatdate

import jwt

SECRET = os.environ["BENCH_SECRET"]
# Requests per minute of a principal.
LIMIT = int(os.environ["BENCH_LIMIT"])
INTERVAL = 60 / LIMIT
BURST = max(1, LIMIT // 10)
DEPTH = BURST * INTERVAL
POLICY = f'"requests";q={LIMIT};w=60'
REQUIRED = {"require": ["exp", "iat", "aud", "iss", "sub"]}
LATEST_HEADERS = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}

# Per principal when its bucket will be empty, by the monotonic clock.
_arrivals: dict[str, float] = {}


class Refused(Exception):
    """The answer is an error: its status, a code, and the headers that belong to it."""

    def __init__(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, object]:
        """As it is sent."""
        return {"type": f"/problems/{self.code}", "status": self.status, "code": self.code}


def admit(authorization: str | None, scope: str, device: str, request_id: str | None) -> dict[str, str]:
    """The headers of the answer, if the token is good for `scope` and `device`, and under its limit. Refused."""
    kind, _, token = (authorization or "").partition(" ")
    if kind != "Bearer":
        raise Refused(401, "unauthorized", {"WWW-Authenticate": "Bearer"})
    try:
        claims = jwt.decode(
            token, SECRET, algorithms=["HS256"], audience="tidegate", issuer="tidegate", options=REQUIRED
        )
    except jwt.InvalidTokenError as error:
        raise Refused(401, "unauthorized", {"WWW-Authenticate": 'Bearer error="invalid_token"'}) from error
    headers = {"X-Request-ID": known_id(request_id), **limit(claims["sub"])}
    if scope not in claims["scope"].split():
        raise Refused(403, "forbidden", headers)
    if not any(granted(pattern, device) for pattern in claims["devices"]):
        raise Refused(403 if scope.endswith(":write") else 404, "forbidden", headers)
    return headers


def limit(principal: str) -> dict[str, str]:
    """Count one request; its headers. Refused beyond the limit."""
    now = time.monotonic()
    arrival = max(_arrivals.get(principal, now), now) + INTERVAL
    fill = arrival - now
    if fill > DEPTH:
        fill -= INTERVAL
        wait = int(fill + INTERVAL - DEPTH) + 1
        raise Refused(429, "rate_limited", {"Retry-After": str(wait), **_said(fill)})
    _arrivals[principal] = arrival
    return _said(fill)


def _said(fill: float) -> dict[str, str]:
    return {
        "RateLimit-Policy": POLICY,
        "RateLimit": f'"requests";r={int((DEPTH - fill) / INTERVAL)};t={int(fill) + 1}',
    }


def granted(pattern: str, device: str) -> bool:
    """Whether a pattern like acme.> (one token or more) or acme.*.boiler (`*`: one token) matches a device."""
    wanted, tokens = pattern.split("."), device.split(".")
    for place, each in enumerate(wanted):
        if each == ">":
            return place == len(wanted) - 1 and len(tokens) > place
        if place >= len(tokens) or each not in ("*", tokens[place]):
            return False
    return len(tokens) == len(wanted)


def http_date() -> str:
    """Of now, for servers that send none."""
    return _date_of(int(time.time()))


@functools.lru_cache(1)
def _date_of(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def known_id(given: str | None) -> str:
    """The client's id of a request if it is sane, else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return secrets.token_hex(16)
