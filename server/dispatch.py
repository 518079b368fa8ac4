"""The chain that every request walks: route, authenticate, scope, limit, negotiate; then the handler.

Both lanes call it. It knows nothing of sockets.
"""

import logging
import re
import secrets
from collections.abc import Callable
from itertools import count
from urllib.parse import parse_qsl

from msgspec import Struct

from auth.principal import ANONYMOUS, SCOPES, Principal, Scope
from auth.rate_limit import Limiter, Limits
from auth.tokens import KeyUnknown, TokenVerifier
from handlers.codings import CODINGS
from handlers.exchange import (
    Answer,
    Deferred,
    Handler,
    Head,
    Headers,
    Kind,
    Media,
    Plan,
    Request,
    Response,
)
from handlers.negotiation import accepted, content_media, media_names, preferences
from handlers.problems import Problem, challenge, problem_of
from server.cors import Cors
from server.heeded import Heeded
from server.router import BadPath, MethodNotAllowed, NotFound, Router
from storage.models import Result

_log = logging.getLogger("tidegate.dispatch")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)
_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.ASCII | re.IGNORECASE)
QUERY_FIELDS_MAX = 200
# Where requests are counted that no route took.
NO_ROUTE = -1
# Bytes of a body from somebody who is not known yet: a form with which to log in.
ANONYMOUS_BODY_MAX = 64 * 1024

SCOPE_NAMES = {scope: name for name, scope in SCOPES.items()}


class Endpoint(Struct, frozen=True, kw_only=True):
    """What a route leads to.

    `plan` makes the handler from a head, `kind`: how it answers. `scope`: what the token must have,
    None where none is asked for. `cost`: requests that one counts as. `offers`: the forms of the answer,
    the default first. `consumes`: the forms of the body; none: a body is not read. `index`: its place in
    the figures.
    """

    index: int
    template: str
    plan: Plan
    kind: Kind
    scope: Scope | None
    cost: int
    offers: tuple[Media, ...]
    consumes: tuple[Media, ...]


class Admitted(Struct, frozen=True):
    """A request whose head is in order, with the `handler` that answers it.

    `limit`: bytes that its body may have, as it comes and decoded. `coding`: the body's content
    coding, "" if none. `expects`: the client waits for 100 before it sends the body.
    """

    endpoint: Endpoint
    handler: Handler
    head: Head
    limit: int
    coding: str
    expects: bool


class NotAdmitted(Exception):
    """A request that was refused for its head, `error`, when its route and perhaps its sender were known."""

    def __init__(self, endpoint: Endpoint, principal: Principal, error: Exception) -> None:
        super().__init__(str(error))
        self.endpoint = endpoint
        self.principal = principal
        self.error = error


class Refused(Struct, gc=False):
    """How a request was answered that was not admitted, where it counts, and who sent it if that is known."""

    response: Response
    index: int
    principal: Principal


class RequestIds:
    """Request ids: the client's if it is sane, else ours, unique over processes and restarts."""

    def __init__(self) -> None:
        # One of ours: made without a frame of Python.
        self.next: Callable[[], str] = map(f"{secrets.token_hex(6)}-{{:x}}".format, count(1)).__next__

    def choose(self, given: str) -> str:
        """The id of a request; `given`: its X-Request-ID, "" if it has none."""
        if given and _REQUEST_ID.fullmatch(given):
            return given
        return self.next()


class Dispatch:
    """The chain, built once. `requests`, `points`: the limits per principal, None where there is none.

    `cors`, `limits`: what they add to answers; see `header_lines`.
    """

    def __init__(
        self,
        router: Router[Endpoint],
        verifier: TokenVerifier,
        requests: Limiter | None,
        points: Limiter | None,
        cors: Cors,
        max_body: int,
    ) -> None:
        self._router = router
        self._verifier = verifier
        self._requests = requests
        self.limits = Limits(limiter for limiter in (requests, points) if limiter is not None)
        self.cors = cors
        self._max_body = max_body

    def admit(self, method: str, target: str, version: tuple[int, int], headers: Headers) -> Admitted:
        """Everything that can be said from the head alone: from its method, its target, those of its
        fields that are heeded, and the length that it announces.

        NotAdmitted, before there is a route what problem_of understands; KeyUnknown when the keys of
        an outside issuer must be fetched first.
        """
        if version not in ((1, 1), (1, 0)):
            raise Problem("version_not_supported", "expected HTTP/1.0 or HTTP/1.1")
        raw_path, query_string = split_target(target)
        endpoint, params = self._route(method, raw_path, headers)
        principal = ANONYMOUS
        heeded = Heeded(headers)
        try:
            if endpoint.scope is not None:
                # Browsers cannot set headers on streams.
                token = _query(query_string) if endpoint.kind is Kind.STREAM else {}
                principal = self._authenticate(heeded, token.get("access_token", []))
                self._authorise(endpoint, endpoint.scope, principal)
            query = _query(query_string)
            accept = accepted(", ".join(heeded.getall("Accept", [])), endpoint.offers)
            if accept is None:
                raise Problem("not_acceptable", f"expected Accept to take in {media_names(endpoint.offers)}")
            content, limit, coding, expects = Media.NONE, 0, "", False
            if endpoint.consumes:
                length = headers.get("Content-Length", "")
                content, limit, coding = self._body(endpoint, heeded, length)
                expects = _expects(heeded, version)
            head = Head(
                method,
                raw_path,
                query_string,
                params,
                query,
                # Streams are never remembered: they may heed whatever they need.
                headers if endpoint.kind is Kind.STREAM else heeded,
                accept,
                content,
                preferences(heeded.getall("Prefer", [])),
                principal,
            )
            return Admitted(endpoint, endpoint.plan(head), head, limit, coding, expects)
        except KeyUnknown:
            raise
        except Exception as error:
            raise NotAdmitted(endpoint, principal, error) from error

    def refused(self, error: Exception, request_id: str) -> Refused:
        """The answer to what `admit` raised."""
        match error:
            case Preflight():
                return Refused(error.response, NO_ROUTE, ANONYMOUS)
            case NotAdmitted():
                response = self.problem(error.error, request_id)
                return Refused(response, error.endpoint.index, error.principal)
            case _:
                return Refused(self.problem(error, request_id), NO_ROUTE, ANONYMOUS)

    def call(self, handler: Handler, request: Request) -> Answer:
        """Run the handler; what it raises at once becomes a problem."""
        try:
            return handler(request)
        except Exception as error:
            return self.problem(error, request.id)

    def render(self, deferred: Deferred, result: Result, request_id: str) -> Response:
        """The answer of a settled write."""
        try:
            return deferred.render(result)
        except Exception as error:
            return self.problem(error, request_id)

    def problem(self, error: Exception, request_id: str) -> Response:
        """The answer to an error; what nobody foresaw is logged under the request id."""
        problem = problem_of(error)
        if problem.entry.status == 500:
            _log.error("unexpected error", exc_info=error, extra={"request_id": request_id})
        return problem.response(request_id)

    def header_lines(self, principal: Principal, origin: str) -> str:
        """Header lines that depend on who asks: limits and CORS."""
        lines = self.cors.lines(origin) if origin else ""
        return lines if principal is ANONYMOUS else lines + self.limits.lines(principal.account)

    # -- the links of the chain ----------------------------------------------------------------

    def _route(self, method: str, raw_path: str, headers: Headers) -> tuple[Endpoint, dict[str, str]]:
        try:
            if method == "OPTIONS":
                allowed = ("OPTIONS",) if raw_path == "*" else self._router.allowed(raw_path)
                raise Preflight(allowed, self.cors.preflight(headers, allowed))
            match = self._router.resolve(method, raw_path)
        except NotFound:
            raise Problem("not_found", f"there is no {raw_path[:200]}") from None
        except BadPath as error:
            raise Problem("malformed", str(error)) from None
        except MethodNotAllowed as error:
            allow = ("Allow", ", ".join(error.allowed))
            raise Problem("method_not_allowed", f"{method} is not allowed here", headers=(allow,)) from None
        return match.target, match.params

    def _authenticate(self, headers: Headers, tokens: list[str]) -> Principal:
        given = headers.getall("Authorization", [])
        if not given and tokens:
            return self._verifier.verify(tokens[0])
        if not given:
            raise Problem("token_missing", "expected Authorization: Bearer <token>", headers=(challenge(),))
        scheme, _, token = given[0].partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer" or not token:
            detail = "expected Authorization: Bearer <token>"
            raise Problem("token_malformed", detail, headers=(challenge("invalid_request", detail),))
        return self._verifier.verify(token.strip())

    def _authorise(self, endpoint: Endpoint, scope: Scope, principal: Principal) -> None:
        if scope not in principal.scopes:
            name = SCOPE_NAMES[scope]
            raise Problem(
                "insufficient_scope",
                f"the token lacks the scope {name}",
                headers=(challenge("insufficient_scope", "", name),),
            )
        if self._requests is not None and endpoint.cost:
            self._requests.take(principal.account, endpoint.cost)

    def _body(self, endpoint: Endpoint, headers: Headers, length: str) -> tuple[Media, int, str]:
        """Form, largest size and content coding of the body; `length`: as announced, "" if it is not."""
        given = headers.get("Content-Type", "")
        media = content_media(given) if given else endpoint.consumes[0]
        if media is None or media not in endpoint.consumes:
            names = media_names(endpoint.consumes)
            raise Problem("unsupported_media_type", f"expected {names}", headers=(("Accept", names),))
        coding = ", ".join(headers.getall("Content-Encoding", [])).strip().lower()
        if coding == "identity":
            coding = ""
        if coding and coding not in CODINGS:
            known = "gzip, deflate, zstd"
            raise Problem(
                "unsupported_media_type",
                f"expected the content coding {known}, or none",
                headers=(("Accept-Encoding", known),),
            )
        limit = self._max_body if endpoint.scope is not None else min(self._max_body, ANONYMOUS_BODY_MAX)
        transfer = headers.get("Transfer-Encoding", "")
        if transfer:
            if transfer.strip().lower() != "chunked":
                raise Problem("malformed", "expected Transfer-Encoding to be chunked or nothing")
            return media, limit, coding
        if not length:
            raise Problem("length_required", "expected Content-Length or a chunked body")
        if not _LENGTH.fullmatch(length) or int(length) > limit:
            raise Problem("too_large", f"expected a body of at most {limit} bytes")
        return media, limit, coding


class Preflight(Exception):
    """Not an error: OPTIONS is answered from the table of routes."""

    def __init__(self, allowed: tuple[str, ...], headers: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self.response = Response(204, headers=(("Allow", ", ".join(allowed)), *headers))


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target in origin or absolute form (RFC 9112 section 3.2)."""
    if not target.isascii():
        raise Problem("malformed", "expected a request target in ASCII, anything else percent-encoded")
    if not target.startswith("/"):
        if target == "*":
            return "*", ""
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise Problem("malformed", "expected a request target that starts with /")
        target = target[absolute.end() :]
        if not target.startswith("/"):
            target = "/" + target
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def _query(text: str) -> dict[str, list[str]]:
    if not text:
        return {}
    query: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError as error:
        raise Problem("malformed", f"the query cannot be decoded: {error}") from error
    for name, value in pairs:
        query.setdefault(name, []).append(value)
    return query


def _expects(headers: Headers, version: tuple[int, int]) -> bool:
    expectation = headers.get("Expect", "").strip().lower()
    if not expectation:
        return False
    if expectation != "100-continue":
        raise Problem("expectation_failed", "expected Expect to be 100-continue or nothing")
    return version == (1, 1)
