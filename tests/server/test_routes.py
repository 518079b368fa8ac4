"""The table of routes says what API.md says."""

import pytest

from auth.principal import Scope
from handlers.exchange import Kind
from server.dispatch import SCOPE_NAMES, Endpoint
from server.router import Route
from server.routes import METRICS, OPERATIONS
from tests.running import Running

# Method, path, scope: the endpoints of API.md.
API = {
    ("POST", "/v1/devices/{device}/readings"): Scope.READINGS_WRITE,
    ("POST", "/v1/readings"): Scope.READINGS_WRITE,
    ("GET", "/v1/devices/{device}/latest"): Scope.READINGS_READ,
    ("GET", "/v1/latest"): Scope.READINGS_READ,
    ("GET", "/v1/devices/{device}/readings"): Scope.READINGS_READ,
    ("GET", "/v1/readings"): Scope.READINGS_READ,
    # What a socket needs depends on what is said over it.
    ("GET", "/v1/stream"): Scope.NONE,
    ("GET", "/v1/events"): Scope.READINGS_READ,
    ("GET", "/v1/devices"): Scope.DEVICES_READ,
    ("GET", "/v1/devices/{device}"): Scope.DEVICES_READ,
    ("PUT", "/v1/devices/{device}"): Scope.DEVICES_WRITE,
    ("DELETE", "/v1/devices/{device}"): Scope.DEVICES_WRITE,
    ("POST", "/v1/clients"): Scope.ADMIN,
    ("GET", "/v1/clients"): Scope.ADMIN,
    ("DELETE", "/v1/clients/{id}"): Scope.ADMIN,
    ("POST", "/v1/token"): None,
    ("POST", "/v1/token/revoke"): None,
    ("GET", "/.well-known/jwks.json"): None,
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    ("GET", "/problems"): None,
    ("GET", "/problems/{code}"): None,
    ("GET", "/metrics"): None,
    ("GET", "/"): None,
}


def rows(gate: Running) -> list[Route[Endpoint]]:
    return gate.gate.routes


async def test_every_endpoint_has_the_scope_that_api_md_gives_it(gate: Running) -> None:
    assert {(row.method, row.template): row.target.scope for row in rows(gate)} == API


async def test_whatever_needs_a_scope_costs_and_is_refused_without_a_token(gate: Running) -> None:
    for row in rows(gate):
        path = row.template.replace("{", "").replace("}", "")
        answer = await gate.call(row.method, path, token="")
        if row.target.scope is None:
            assert answer.status != 403
        else:
            assert row.target.cost >= 1
            assert answer.status == 401, row


async def test_no_two_routes_are_counted_in_one_place(gate: Running) -> None:
    assert [row.target.index for row in rows(gate)] == list(range(len(API)))
    assert METRICS in OPERATIONS


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_token_with_one_scope_opens_the_endpoints_of_that_scope_alone(
    gate: Running, scope: Scope
) -> None:

    token = gate.token((SCOPE_NAMES[scope],))
    for row in rows(gate):
        if not row.target.scope:
            continue
        path = row.template.replace("{", "").replace("}", "")
        if row.target.kind is Kind.STREAM:
            # An answer that would have no end.
            path += "?latest=maybe"
        answer = await gate.call(row.method, path, token=token)
        lacks = answer.status == 403 and answer.json["code"] == "insufficient_scope"
        assert lacks == (row.target.scope != scope), row
