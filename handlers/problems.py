"""Errors as clients see them: the one table from exception to RFC 9457 problem."""

import math

import msgspec
from msgspec import Struct

from auth.rate_limit import LimitExceeded
from auth.tokens import TokenError
from handlers.exchange import Response
from storage import errors


class Fault(Struct, frozen=True):
    """One bad place in the input. `pointer`: RFC 6901, from the root of the body."""

    pointer: str
    code: str
    detail: str


class Entry(Struct, frozen=True):
    """A row of the catalogue."""

    code: str
    status: int
    title: str


CATALOGUE = {
    entry.code: entry
    for entry in (
        Entry("malformed", 400, "The request is malformed"),
        Entry("invalid_parameter", 400, "A query parameter is invalid"),
        Entry("token_missing", 401, "A bearer token is needed"),
        Entry("token_malformed", 401, "The bearer token is malformed"),
        Entry("token_invalid", 401, "The bearer token is not valid here"),
        Entry("token_expired", 401, "The bearer token has expired"),
        Entry("token_revoked", 401, "The bearer token was revoked"),
        Entry("insufficient_scope", 403, "The token lacks the scope for this"),
        Entry("forbidden", 403, "The token has no grant for this device"),
        Entry("not_found", 404, "There is nothing here"),
        Entry("method_not_allowed", 405, "The method is not allowed here"),
        Entry("not_acceptable", 406, "None of the accepted media types can be given"),
        Entry("request_timeout", 408, "The request did not arrive in time"),
        Entry("conflict", 409, "It contradicts what is stored"),
        Entry("idempotency_running", 409, "The first request with this Idempotency-Key is still running"),
        Entry("position_gone", 410, "The log cannot be continued from this position"),
        Entry("length_required", 411, "A Content-Length is needed"),
        Entry("too_large", 413, "The request is too large"),
        Entry("uri_too_long", 414, "The request target is too long"),
        Entry("unsupported_media_type", 415, "The media type or content coding is not supported"),
        Entry("expectation_failed", 417, "The expectation cannot be met"),
        Entry("invalid", 422, "The content is well-formed but invalid"),
        Entry("idempotency_mismatch", 422, "The Idempotency-Key was used with another body"),
        Entry("upgrade_required", 426, "This is a WebSocket"),
        Entry("rate_limited", 429, "Too many requests"),
        Entry("headers_too_large", 431, "The header fields are too large"),
        Entry("internal", 500, "An error of the gate"),
        Entry("unavailable", 503, "The gate cannot serve this now"),
        Entry("overloaded", 503, "Too much is waiting already"),
        Entry("timeout", 503, "The database did not answer in time; a write may be stored or not"),
        Entry("version_not_supported", 505, "HTTP 1.0 and 1.1 are spoken here"),
        Entry("storage_full", 507, "The storage is full; nothing was stored"),
    )
}

# So many faults are listed; more are counted where the answer has a count.
FAULTS_MAX = 100

_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """An error with a place in the catalogue. `members`: further members of the document."""

    def __init__(
        self,
        code: str,
        detail: str,
        faults: list[Fault] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        members: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.entry = CATALOGUE[code]
        self.detail = detail
        self.faults = faults or []
        self.headers = headers
        self.members = members or {}

    def response(self, request_id: str) -> Response:
        """The problem document."""
        entry = self.entry
        document: dict[str, object] = {
            "type": f"/problems/{entry.code}",
            "title": entry.title,
            "status": entry.status,
            "detail": self.detail,
            "instance": request_id,
            "code": entry.code,
            **self.members,
        }
        if self.faults:
            document["errors"] = self.faults[:FAULTS_MAX]
        return Response(entry.status, _encode(document), "application/problem+json", self.headers)


def challenge(error: str = "", description: str = "", scope: str = "") -> tuple[str, str]:
    """The `WWW-Authenticate` of RFC 6750."""
    parts = ['Bearer realm="tidegate"']
    if error:
        parts.append(f'error="{error}"')
    if description:
        parts.append('error_description="' + description.replace("\\", "").replace('"', "'") + '"')
    if scope:
        parts.append(f'scope="{scope}"')
    return "WWW-Authenticate", ", ".join(parts)


def retry_after(seconds: float) -> tuple[str, str]:
    """`Retry-After` in whole seconds, at least one."""
    return "Retry-After", str(max(1, math.ceil(seconds)))


# Storage errors: code, and the seconds after which another try makes sense (0: it never does).
_STORAGE: dict[type[errors.StorageError], tuple[str, float]] = {
    errors.NotFound: ("not_found", 0),
    errors.KeyRunning: ("idempotency_running", 1),
    errors.KeyReused: ("idempotency_mismatch", 0),
    errors.Conflict: ("conflict", 0),
    errors.Refused: ("invalid", 0),
    errors.Full: ("storage_full", 10),
    errors.Timeout: ("timeout", 1),
    errors.Overloaded: ("overloaded", 1),
    errors.StorageError: ("unavailable", 1),
}


def problem_of(error: Exception) -> Problem:
    """The problem that an exception is; `internal` for what nobody foresaw."""
    match error:
        case Problem():
            return error
        case TokenError():
            return Problem(error.code, error.detail, headers=(challenge("invalid_token", error.detail),))
        case LimitExceeded():
            return Problem("rate_limited", str(error), headers=(retry_after(error.retry_after),))
        case errors.StorageError():
            code, seconds = next(_STORAGE[kind] for kind in type(error).__mro__ if kind in _STORAGE)
            return Problem(code, str(error), headers=(retry_after(seconds),) if seconds else ())
        case _:
            return Problem("internal", "the error was logged under the request id")
