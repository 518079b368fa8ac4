import asyncio
from typing import Any

import jwt
import pytest

from tests.handlers.wire import (
    FORM,
    basic,
    create_client,
    expired_token,
    log_in,
    pointers,
    problem,
    send_form,
)
from tests.running import Reply, Running, run_gate

READING = {"metric": "t", "value": 1, "ts": 1}


def oauth_error(reply: Reply, status: int, error: str) -> None:
    """RFC 6749 section 5.2."""
    assert reply.status == status, reply
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.json["error"] == error
    assert set(reply.json) <= {"error", "error_description", "error_uri"}
    assert ("WWW-Authenticate" in reply.headers) == (status == 401)


# -- clients ---------------------------------------------------------------------------------------


async def test_a_client_is_made_with_a_secret_that_is_shown_once(gate: Running) -> None:
    content = {"id": "boiler", "scopes": ["readings:write"], "devices": ["acme.>"], "ttl": "30m"}
    reply = await gate.post("/v1/clients", content)
    assert reply.status == 201
    assert reply.headers["Location"] == "/v1/clients/boiler"
    assert reply.headers["Cache-Control"] == "no-store"
    secret = reply.json["secret"]
    assert len(secret) >= 32
    listed = (await gate.get("/v1/clients")).json["items"]
    assert [(c["id"], c["scopes"], c["devices"], c["ttl"]) for c in listed] == [
        ("boiler", ["readings:write"], ["acme.>"], 1800)
    ]
    assert "secret" not in listed[0]
    assert secret not in gate.logged()


async def test_a_client_gets_an_id_if_it_has_none_and_never_that_of_another(gate: Running) -> None:
    one, two = await create_client(gate), await create_client(gate)
    assert one["id"] != two["id"]
    reply = await gate.post("/v1/clients", {"id": one["id"], "scopes": [], "devices": []})
    problem(reply, 409, "conflict")


async def test_clients_come_in_pages(gate: Running) -> None:
    for n in range(5):
        await create_client(gate, id=f"c{n}")
    page = (await gate.get("/v1/clients?limit=3")).json
    rest = (await gate.get(f"/v1/clients?limit=3&cursor={page['next']}")).json
    assert [c["id"] for c in page["items"] + rest["items"]] == [f"c{n}" for n in range(5)]
    assert rest["next"] is None


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"id": "a b"}, "/id"),
        ({"id": ""}, "/id"),
        ({"id": "x" * 129}, "/id"),
        ({"id": 5}, "/id"),
        ({"scopes": ["readings:read", "root"]}, "/scopes/1"),
        ({"scopes": "admin"}, "/scopes"),
        ({"scopes": [1]}, "/scopes/0"),
        ({"devices": ["a.>", "a..b"]}, "/devices/1"),
        ({"devices": ["a"] * 65}, "/devices"),
        ({"devices": None}, "/devices"),
        ({"ttl": -1}, "/ttl"),
        ({"ttl": 10**12}, "/ttl"),
        ({"ttl": "soon"}, "/ttl"),
        ({"ttl": "999ms"}, "/ttl"),
        ({"ttl": True}, "/ttl"),
        ({"secret": "mine"}, "/secret"),
    ],
)
async def test_a_bad_client_is_422_with_a_pointer(
    gate: Running, change: dict[str, Any], pointer: str
) -> None:
    reply = await gate.post("/v1/clients", {"scopes": [], "devices": [], **change})
    problem(reply, 422, "invalid")
    assert [place for place, _ in pointers(reply)] == [pointer]
    assert (await gate.get("/v1/clients")).json["items"] == []


async def test_a_client_needs_scopes_and_devices(gate: Running) -> None:
    contents: list[Any] = [{}, {"scopes": []}, {"devices": []}]
    for content in contents:
        problem(await gate.post("/v1/clients", content), 422, "invalid")


async def test_only_an_admin_sees_and_makes_clients(gate: Running) -> None:
    token = gate.token(["readings:write", "readings:read", "devices:write", "devices:read"])
    for method, path in (("POST", "/v1/clients"), ("GET", "/v1/clients"), ("DELETE", "/v1/clients/x")):
        content: Any = {"scopes": [], "devices": []} if method == "POST" else None
        problem(await gate.call(method, path, content, token=token), 403, "insufficient_scope")


async def test_the_tokens_of_a_deleted_client_die_at_once(gate: Running) -> None:
    client = await create_client(gate)
    token = (await log_in(gate, client)).json["access_token"]
    assert (await gate.get("/v1/devices/x/latest", token=token)).status == 404
    reply = await gate.call("DELETE", f"/v1/clients/{client['id']}")
    assert (reply.status, reply.body) == (204, b"")
    problem(await gate.get("/v1/devices/x/latest", token=token), 401, "token_revoked")
    oauth_error(await log_in(gate, client), 401, "invalid_client")
    problem(await gate.call("DELETE", f"/v1/clients/{client['id']}"), 404, "not_found")


async def test_a_client_that_is_made_again_gets_tokens_that_live(gate: Running) -> None:
    old = await create_client(gate, id="again")
    await gate.call("DELETE", "/v1/clients/again")
    client = await create_client(gate, id="again")
    oauth_error(await log_in(gate, old), 401, "invalid_client")
    token = (await log_in(gate, client)).json["access_token"]
    assert (await gate.get("/v1/latest", token=token)).status in (200, 401)


# -- the token endpoint ----------------------------------------------------------------------------


async def test_a_client_gets_a_token_that_works_for_its_scopes_and_devices(gate: Running) -> None:
    client = await create_client(
        gate, scopes=["readings:write", "readings:read"], devices=["acme.>"], ttl=120
    )
    reply = await log_in(gate, client)
    assert reply.status == 200
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Type"] == "application/json"
    answer = reply.json
    token = answer.pop("access_token")
    assert answer == {"token_type": "Bearer", "expires_in": 120, "scope": "readings:write readings:read"}
    assert (await gate.write("acme.a", READING, token=token)).status == 200
    assert (await gate.get("/v1/devices/acme.a/latest", token=token)).status == 200
    problem(await gate.write("demo.a", READING, token=token), 403, "forbidden")
    problem(await gate.get("/v1/devices", token=token), 403, "insufficient_scope")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert {"iss", "aud", "sub", "iat", "exp", "jti", "scope", "devices"} <= set(claims)
    assert claims["sub"] == client["id"]
    assert claims["exp"] - claims["iat"] == 120
    assert claims["devices"] == ["acme.>"]
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    assert token not in gate.logged()
    assert '"token_issued"' in gate.logged()


async def test_http_basic_is_as_good_as_form_fields(gate: Running) -> None:
    client = await create_client(gate)
    form = {"grant_type": "client_credentials"}
    for scheme in ("Basic", "basic"):
        credentials = basic(client["id"], client["secret"]).replace("Basic", scheme)
        assert (await send_form(gate, "/v1/token", form, Authorization=credentials)).status == 200
    both = {**form, "client_id": client["id"], "client_secret": client["secret"]}
    credentials = basic(client["id"], client["secret"])
    oauth_error(await send_form(gate, "/v1/token", both, Authorization=credentials), 400, "invalid_request")


async def test_a_part_of_the_scopes_may_be_asked_for_and_no_other(gate: Running) -> None:
    client = await create_client(gate, scopes=["readings:write", "readings:read"])
    reply = await log_in(gate, client, scope="readings:read")
    assert reply.json["scope"] == "readings:read"
    token = reply.json["access_token"]
    problem(await gate.write("a", READING, token=token), 403, "insufficient_scope")
    for scope in ("admin", "readings:read admin", "nonsense"):
        oauth_error(await log_in(gate, client, scope=scope), 400, "invalid_scope")
    # RFC 6749 section 3.2: a field without a value counts as none.
    assert (await log_in(gate, client, scope="")).json["scope"] == "readings:write readings:read"


async def test_who_is_not_a_client_gets_invalid_client(gate: Running) -> None:
    client = await create_client(gate)
    id, secret = client["id"], client["secret"]
    form = {"grant_type": "client_credentials"}
    for fields in (
        {"client_id": id, "client_secret": "wrong"},
        {"client_id": id, "client_secret": ""},
        {"client_id": "nobody", "client_secret": secret},
        {"client_id": "a b", "client_secret": secret},
        {"client_id": id},
        {},
    ):
        oauth_error(await send_form(gate, "/v1/token", {**form, **fields}), 401, "invalid_client")
    for header in (basic(id, "wrong"), "Basic !!!", "Basic YQ==", "Basic /w==", "Bearer x"):
        reply = await send_form(gate, "/v1/token", form, Authorization=header)
        assert reply.status in (401, 429)
    assert secret not in gate.logged()


async def test_bad_requests_get_the_errors_of_rfc_6749(gate: Running) -> None:
    client = await create_client(gate)
    oauth_error(await log_in(gate, client, grant_type="password"), 400, "unsupported_grant_type")
    oauth_error(await log_in(gate, client, grant_type=""), 400, "invalid_request")
    for body in (b"\xff=%ff", b"a=1&a=2", b"&".join([b"%d=1" % n for n in range(50)])):
        reply = await gate.post("/v1/token", data=body, headers={"Content-Type": FORM}, token="")
        oauth_error(reply, 400, "invalid_request")
    reply = await gate.call("POST", "/v1/token", {"grant_type": "client_credentials"}, token="")
    problem(reply, 415, "unsupported_media_type")


async def test_failed_logins_of_an_address_are_limited_and_good_ones_cost_nothing(gate: Running) -> None:
    client = await create_client(gate)
    for _ in range(15):
        assert (await log_in(gate, client)).status == 200
    wrong = {**client, "secret": "wrong"}
    statuses = [(await log_in(gate, wrong)).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    reply = await log_in(gate, client)
    problem(reply, 429, "rate_limited")
    assert int(reply.headers["Retry-After"]) >= 1
    reply = await log_in(gate, client, "/v1/token/revoke", token="x")
    problem(reply, 429, "rate_limited")
    # Who has a token already is not locked out.
    assert (await gate.get("/v1/clients")).status == 200
    assert '"login_failed"' in gate.logged()


async def test_failed_logins_are_counted_by_the_address_that_a_trusted_proxy_names(tmp_path: Any) -> None:
    async with run_gate(tmp_path / "data", TRUSTED_PROXIES="127.0.0.1", LOGIN_LIMIT="1") as gate:
        form = {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"}

        async def status(forwarded: str) -> int:
            return (await send_form(gate, "/v1/token", form, **{"X-Forwarded-For": forwarded})).status

        assert [await status("192.0.2.1"), await status("192.0.2.1")] == [401, 429]
        assert await status("192.0.2.1, 192.0.2.2") == 401
        assert await status("192.0.2.9, 192.0.2.1") == 429


# -- revocation ------------------------------------------------------------------------------------


async def test_a_revoked_token_is_refused_at_once_and_others_live_on(gate: Running) -> None:
    client = await create_client(gate)
    token, other = [(await log_in(gate, client)).json["access_token"] for _ in range(2)]
    assert (await gate.get("/v1/latest", token=token)).status == 200
    reply = await log_in(gate, client, "/v1/token/revoke", token=token, token_type_hint="access_token")
    assert reply.status == 200
    problem(await gate.get("/v1/latest", token=token), 401, "token_revoked")
    assert (await gate.get("/v1/latest", token=other)).status == 200
    assert (await log_in(gate, client, "/v1/token/revoke", token=token)).status == 200


async def test_revoking_what_is_no_token_is_no_error(gate: Running) -> None:
    client = await create_client(gate)
    for token in ("nonsense", "a.b.c", await expired_token(gate)):
        assert (await log_in(gate, client, "/v1/token/revoke", token=token)).status == 200
    oauth_error(await log_in(gate, client, "/v1/token/revoke"), 400, "invalid_request")
    oauth_error(
        await log_in(gate, {**client, "secret": "x"}, "/v1/token/revoke", token="x"), 401, "invalid_client"
    )


async def test_the_token_of_another_client_cannot_be_revoked(gate: Running) -> None:
    one, two, admin = (
        await create_client(gate),
        await create_client(gate),
        await create_client(gate, scopes=["admin"]),
    )
    token = (await log_in(gate, one)).json["access_token"]
    reply = await log_in(gate, two, "/v1/token/revoke", token=token)
    oauth_error(reply, 400, "unauthorized_client")
    assert (await gate.get("/v1/latest", token=token)).status == 200
    assert (await log_in(gate, admin, "/v1/token/revoke", token=token)).status == 200
    problem(await gate.get("/v1/latest", token=token), 401, "token_revoked")


async def test_many_log_in_at_once(gate: Running) -> None:
    client = await create_client(gate)
    replies = await asyncio.gather(*(log_in(gate, client) for _ in range(20)))
    tokens = {reply.json["access_token"] for reply in replies}
    assert len(tokens) == 20
