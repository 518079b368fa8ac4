"""Clients and their tokens: RFC 6749 client credentials, RFC 7009 revocation, RFC 7517 keys."""

import base64
import binascii
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote_plus

import msgspec
from msgspec import UNSET

from auth.clients import Credentials, InvalidClient
from auth.keys import KeyRing
from auth.principal import Principal
from auth.rate_limit import FailureLimiter
from auth.revocation import Revocations
from auth.tokens import KeyUnknown, TokenError, TokenIssuer, TokenVerifier
from handlers import parameters
from handlers.bodies import decode
from handlers.exchange import Media, Request, Response
from handlers.pages import cursor, page
from handlers.parameters import stamp
from handlers.problems import Fault, Problem
from handlers.schemas import ClientIn, ClientOut, TokenOut, encode_json, respond
from handlers.times import InvalidTime, Stamp, parse_duration
from storage.accounts import Accounts
from storage.models import Client

# RFC 6749 section 5.1: nobody may keep a token.
_UNCACHED = (("Cache-Control", "no-store"), ("Pragma", "no-cache"))
FORM_FIELDS_MAX = 20

_decoders: dict[Media, Callable[[bytes], ClientIn]] = {
    Media.JSON: msgspec.json.Decoder(ClientIn).decode,
    Media.MSGPACK: msgspec.msgpack.Decoder(ClientIn).decode,
}


class OAuthError(Exception):
    """An error of the token endpoint, in the words of RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status

    def response(self) -> Response:
        """The error document."""
        challenge = (("WWW-Authenticate", 'Basic realm="tidegate"'),) if self.status == 401 else ()
        content = {"error": self.error, "error_description": self.description}
        return Response(self.status, encode_json(content), "application/json", _UNCACHED + challenge)


class TokenHandlers:
    """Handlers of tokens and clients.

    `failures`: the limit of failed logins per address, None if there is none. `ttl`: lifetime of a
    token in seconds where the client has none of its own. `audit(event, **fields)`: the audit log.
    """

    def __init__(
        self,
        accounts: Accounts,
        credentials: Credentials,
        issuer: TokenIssuer,
        verifier: TokenVerifier,
        revocations: Revocations,
        ring: KeyRing,
        failures: FailureLimiter | None,
        ttl: int,
        audit: Callable[..., None],
    ) -> None:
        self._accounts = accounts
        self._credentials = credentials
        self._issuer = issuer
        self._verifier = verifier
        self._revocations = revocations
        self._jwks = encode_json(ring.jwks())
        self._failures = failures
        self._ttl = ttl
        self._audit = audit

    def replace_keys(self, issuer: TokenIssuer, ring: KeyRing) -> None:
        """Sign with other keys from now on, and publish them."""
        self._issuer = issuer
        self._jwks = encode_json(ring.jwks())

    async def token(self, request: Request) -> Response:
        """`POST /v1/token`: the client credentials grant."""
        try:
            form = _form(request.body)
            client = await self._login(request, form)
            if "grant_type" not in form:
                raise OAuthError("invalid_request", "expected the field grant_type")
            if form["grant_type"] != "client_credentials":
                raise OAuthError("unsupported_grant_type", "expected grant_type=client_credentials")
            scopes = _scopes(form.get("scope"), client)
        except OAuthError as error:
            return error.response()
        ttl = client.ttl or self._ttl
        token, claims = self._issuer.issue(client.id, scopes, client.devices, ttl)
        self._audit(
            "token_issued",
            client=client.id,
            jti=claims.jti,
            scope=claims.scope,
            expires=claims.exp,
            address=request.address,
            request_id=request.id,
        )
        content = TokenOut(token, "Bearer", int(claims.exp - claims.iat), claims.scope)
        return Response(200, encode_json(content), "application/json", _UNCACHED)

    async def revoke(self, request: Request) -> Response:
        """`POST /v1/token/revoke`: 200 also for a token that is none (RFC 7009 section 2.2)."""
        try:
            form = _form(request.body)
            client = await self._login(request, form)
            if "token" not in form:
                raise OAuthError("invalid_request", "expected the field token")
        except OAuthError as error:
            return error.response()
        try:
            principal = await self._verify(form["token"])
        except TokenError:
            return Response(200, headers=_UNCACHED)
        allowed = principal.account == client.id or "admin" in client.scopes
        if allowed and principal.token_id:
            await self._revocations.revoke_token(principal.token_id, principal.expires, principal.issuer)
            self._audit(
                "token_revoked",
                client=client.id,
                subject=principal.subject,
                jti=principal.token_id,
                request_id=request.id,
            )
        elif not allowed:
            return OAuthError("unauthorized_client", "the token belongs to another client").response()
        return Response(200, headers=_UNCACHED)

    def jwks(self, request: Request) -> Response:
        """`GET /.well-known/jwks.json`: the public keys of the gate."""
        headers = (("Cache-Control", "public, max-age=300"),)
        return Response(200, self._jwks, "application/jwk-set+json", headers)

    async def create_client(self, request: Request) -> Response:
        """`POST /v1/clients`: 201 with the secret, which is shown once."""
        content = decode(_decoders[request.head.content], request.body)
        try:
            client, secret = await self._credentials.create(
                content.scopes,
                content.devices,
                None if content.id is UNSET else content.id,
                0 if content.ttl is UNSET else _seconds(content.ttl),
            )
        except InvalidClient as error:
            raise Problem(
                "invalid", "the client is invalid", [Fault(error.pointer, "invalid", error.detail)]
            ) from error
        self._audit(
            "client_created",
            client=client.id,
            scopes=client.scopes,
            devices=client.devices,
            by=request.head.principal.subject,
            request_id=request.id,
        )
        shown = _shown(client, stamp(request.head), secret)
        headers = (("Location", f"/v1/clients/{client.id}"), *_UNCACHED)
        return respond(request.head.accept, shown, 201, headers)

    async def clients(self, request: Request) -> Response:
        """`GET /v1/clients`."""
        limit, style = parameters.limit(request.head.query), stamp(request.head)
        after = cursor(request.head.query, str) or ""
        found = await self._accounts.clients(after, limit + 1)
        items = [_shown(client, style) for client in found[:limit]]
        return page(request, items, found[limit - 1].id if len(found) > limit else None)

    async def delete_client(self, request: Request) -> Response:
        """`DELETE /v1/clients/{id}`: its tokens end too."""
        id = request.head.params["id"]
        await self._revocations.remove_client(id)
        self._audit("client_removed", client=id, by=request.head.principal.subject, request_id=request.id)
        return Response(204)

    async def _verify(self, token: str) -> Principal:
        try:
            return self._verifier.verify(token)
        except KeyUnknown as unknown:
            await self._verifier.fetch(unknown.issuer)
            return self._verifier.verify(token)

    async def _login(self, request: Request, form: dict[str, str]) -> Client:
        """The client that the request comes from, by HTTP Basic or form fields."""
        if self._failures is not None:
            self._failures.check(request.address)
        id, secret = _credentials(request, form)
        client = await self._credentials.authenticate(id, secret)
        if client is None:
            if self._failures is not None:
                self._failures.record(request.address)
            self._audit("login_failed", client=id[:128], address=request.address, request_id=request.id)
            raise OAuthError("invalid_client", "the client is unknown or its secret is wrong", 401)
        return client


def _form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS_MAX
        )
    except ValueError as error:
        raise OAuthError("invalid_request", "expected a form in UTF-8") from error
    if len(dict(pairs)) != len(pairs):
        raise OAuthError("invalid_request", "a field is repeated")
    # RFC 6749 section 3.2: a field without a value counts as none.
    return {name: value for name, value in pairs if value}


def _credentials(request: Request, form: dict[str, str]) -> tuple[str, str]:
    scheme, _, given = request.head.headers.get("Authorization", "").partition(" ")
    if not scheme:
        if "client_id" not in form or "client_secret" not in form:
            raise OAuthError("invalid_client", "expected client_id and client_secret, or HTTP Basic", 401)
        return form["client_id"], form["client_secret"]
    if scheme.lower() != "basic":
        raise OAuthError("invalid_client", "expected HTTP Basic", 401)
    if "client_secret" in form:
        raise OAuthError("invalid_request", "expected one way to log in, not two")
    try:
        id, colon, secret = base64.b64decode(given.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise OAuthError("invalid_client", "the credentials cannot be decoded", 401) from error
    if not colon:
        raise OAuthError("invalid_client", "expected id:secret", 401)
    # RFC 6749 section 2.3.1: both are form-encoded before they are joined.
    return unquote_plus(id), unquote_plus(secret)


def _scopes(wanted: str | None, client: Client) -> list[str]:
    if wanted is None:
        return list(client.scopes)
    scopes = list(dict.fromkeys(wanted.split()))
    if not scopes or not set(scopes) <= set(client.scopes):
        raise OAuthError("invalid_scope", f"expected some of: {' '.join(client.scopes)}")
    return scopes


def _seconds(ttl: int | str) -> int:
    if isinstance(ttl, int):
        return ttl
    try:
        seconds = parse_duration(ttl) // 1_000_000
    except InvalidTime as error:
        raise InvalidClient("/ttl", str(error)) from error
    if not seconds:
        raise InvalidClient("/ttl", "expected at least one second")
    return seconds


def _shown(client: Client, style: Stamp, secret: str | None = None) -> ClientOut:
    return ClientOut(
        client.id,
        client.scopes,
        client.devices,
        client.ttl,
        style(client.created_at),
        UNSET if secret is None else secret,
    )
