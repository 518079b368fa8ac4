import re
from contextlib import suppress
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.router import BadPath, MethodNotAllowed, NotFound, Route, RouteError, Router

TABLE = [
    Route("GET", "/", "home"),
    Route("GET", "/v1/devices", "list"),
    Route("GET", "/v1/devices/{device}", "show"),
    Route("PUT", "/v1/devices/{device}", "put"),
    Route("DELETE", "/v1/devices/{device}", "delete"),
    Route("GET", "/v1/devices/{device}/readings", "range"),
    Route("POST", "/v1/devices/{device}/readings", "write"),
    Route("GET", "/v1/devices/self/latest", "own"),
    Route("GET", "/v1/devices/{device}/{view}", "view"),
    Route("POST", "/v1/token", "token"),
    Route("GET", "/.well-known/jwks.json", "jwks"),
]
ROUTER = Router(TABLE)


def naive(path: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Targets by method, and params: each template as a regex, the most literal one that fits."""
    canonical = "/".join(quote(unquote(segment), safe="") for segment in path.split("/"))
    found = []
    for template in {route.template for route in TABLE}:
        variable = r"(?P<\1>(?!\\.{1,2}(?:/|$))[^/]+)"
        expression = re.sub(r"\\\{(\w+)\\\}", variable, re.escape(template))
        if match := re.fullmatch(expression, canonical):
            found.append((template.count("{"), template, match))
    if not found:
        return None
    _, template, match = min(found)
    targets = {route.method: route.target for route in TABLE if route.template == template}
    return targets, {name: unquote(value) for name, value in match.groupdict().items()}


def test_static_paths_and_templates_lead_to_their_targets() -> None:
    assert ROUTER.resolve("GET", "/").target == "home"
    assert ROUTER.resolve("GET", "/.well-known/jwks.json").target == "jwks"
    match = ROUTER.resolve("POST", "/v1/devices/acme.plant7/readings")
    assert (match.target, match.params) == ("write", {"device": "acme.plant7"})


def test_the_template_that_is_literal_wins_and_the_variable_one_has_the_rest() -> None:
    assert ROUTER.resolve("GET", "/v1/devices/self/latest").target == "own"
    match = ROUTER.resolve("GET", "/v1/devices/self/readings")
    assert (match.target, match.params) == ("range", {"device": "self"})
    match = ROUTER.resolve("GET", "/v1/devices/self/other")
    assert (match.target, match.params) == ("view", {"device": "self", "view": "other"})


def test_head_goes_where_get_goes_and_only_there() -> None:
    assert ROUTER.resolve("HEAD", "/v1/devices/a").target == "show"
    with pytest.raises(MethodNotAllowed):
        ROUTER.resolve("HEAD", "/v1/token")


def test_another_method_is_told_the_allowed_ones_in_order() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        ROUTER.resolve("PATCH", "/v1/devices/a")
    assert caught.value.allowed == ("DELETE", "GET", "HEAD", "OPTIONS", "PUT")
    assert ROUTER.allowed("/v1/token") == ("OPTIONS", "POST")
    assert ROUTER.allowed("/v1/devices/a/readings") == ("GET", "HEAD", "OPTIONS", "POST")


def test_methods_are_case_sensitive() -> None:
    with pytest.raises(MethodNotAllowed):
        ROUTER.resolve("get", "/v1/devices")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "v1/devices",
        "//",
        "/v1",
        "/v1/",
        "/v1/devices/",
        "/v1//devices",
        "//v1/devices",
        "/v1/devices//readings",
        "/v1/devices/.",
        "/v1/devices/..",
        "/v1/devices/%2e%2E",
        "/v1/devices/a/../b",
        "/v1/token/",
        "/v1/Devices",
        "/v1/devices%2Fa",
        "/v1/devices/a/readings/more",
        "http://host/v1/devices",
    ],
)
def test_what_no_template_fits_exactly_is_not_found_and_never_a_redirect(path: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.resolve("GET", path)
    with pytest.raises(NotFound):
        ROUTER.allowed(path)


def test_an_encoded_slash_stays_inside_its_segment() -> None:
    assert ROUTER.resolve("GET", "/v1/devices/a%2Fb%2f..").params == {"device": "a/b/.."}


def test_a_segment_is_decoded_once() -> None:
    assert ROUTER.resolve("GET", "/v1/devices/%2541%20+%C3%A9").params == {"device": "%41 +é"}


def test_a_literal_may_come_encoded() -> None:
    assert ROUTER.resolve("GET", "/v1/%64evices").target == "list"
    assert ROUTER.resolve("GET", "/v1/devices/%73elf/latest").target == "own"


@pytest.mark.parametrize("segment", ["%", "%4", "%zz", "a%G0", "%ff", "%C3", "%C3%28", "%ED%A0%80", "\udc80"])
def test_what_is_not_percent_encoded_utf_8_is_a_bad_path(segment: str) -> None:
    with pytest.raises(BadPath):
        ROUTER.resolve("GET", f"/v1/devices/{segment}")


@pytest.mark.parametrize(
    ("method", "template"),
    [
        ("get", "/x"),
        ("", "/x"),
        ("GET", ""),
        ("GET", "x"),
        ("GET", "/x/"),
        ("GET", "//x"),
        ("GET", "/x/../y"),
        ("GET", "/x/{a}b"),
        ("GET", "/x/{A}"),
        ("GET", "/x/{}"),
        ("GET", "/x y"),
        ("GET", "/%78"),
        ("GET", "/{a}/{a}"),
        ("GET", "/x?y"),
    ],
)
def test_a_route_that_cannot_be_read_is_refused_at_build_time(method: str, template: str) -> None:
    with pytest.raises(RouteError):
        Router([Route(method, template, 0)])


@pytest.mark.parametrize(
    ("one", "other"),
    [("/x", "/x"), ("/{a}", "/{a}"), ("/{a}", "/{b}"), ("/{a}/x", "/y/{b}"), ("/{a}/x/{b}", "/{a}/{c}/z")],
)
def test_routes_that_contradict_are_refused_at_build_time(one: str, other: str) -> None:
    with pytest.raises(RouteError):
        Router([Route("GET", one, 0), Route("GET", other, 1)])


@pytest.mark.parametrize(
    ("one", "other"), [("/{a}/x", "/{b}/y"), ("/x", "/{b}"), ("/{a}", "/{a}/{b}"), ("/", "/{a}")]
)
def test_templates_that_share_no_path_or_are_ordered_live_together(one: str, other: str) -> None:
    Router([Route("GET", one, 0), Route("GET", other, 1)])


segments = st.one_of(
    st.sampled_from(["v1", "devices", "self", "latest", "readings", "token", "", ".", "..", "%2e", "%73elf"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(lambda text: quote(text, safe="")),
)
prefixes = st.sampled_from(["/", "/v1/devices/", "/v1/devices/self/", ""])


@given(
    prefix=prefixes,
    tail=st.lists(segments, max_size=4).map("/".join),
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"]),
)
def test_the_trie_agrees_with_a_naive_matcher_on_any_path(prefix: str, tail: str, method: str) -> None:
    path = prefix + tail
    expected = naive(path)
    try:
        match = ROUTER.resolve(method, path)
    except NotFound:
        assert expected is None
    except MethodNotAllowed as refusal:
        assert expected is not None
        allowed = {*expected[0], "OPTIONS"} | ({"HEAD"} if "GET" in expected[0] else set())
        assert refusal.allowed == tuple(sorted(allowed))  # noqa: PT017
    else:
        assert expected is not None
        targets, params = expected
        assert match.target == targets["GET" if method == "HEAD" else method]
        assert match.params == params


@given(path=st.text().map(lambda text: "/" + text), method=st.text())
def test_any_text_is_resolved_or_refused_by_name(path: str, method: str) -> None:
    with suppress(BadPath, NotFound, MethodNotAllowed):
        ROUTER.resolve(method, path)
