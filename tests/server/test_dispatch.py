"""The chain that every request walks, seen from outside: who is let in, and what the others are told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from server.cors import Cors
from server.dispatch import RequestIds, split_target
from tests.running import Running, run_gate

WRITE = {"metric": "m", "value": 1}
PATH = "/v1/devices/d/readings"


def test_a_sane_request_id_is_kept_and_another_is_replaced_by_one_of_ours() -> None:
    ids = RequestIds()
    assert ids.choose("from-client/1") == "from-client/1"
    made = [ids.choose(bad) for bad in ("", "a b", "x" * 129, "\u00e9", 'a"b', "a\r\nb", "\u0661")]
    assert len(set(made)) == len(made)
    assert all(RequestIds().choose(id) == id for id in made)
    assert RequestIds().choose("") not in made


@pytest.mark.parametrize(
    ("target", "split"),
    [
        ("/", ("/", "")),
        ("/a?b=c?d", ("/a", "b=c?d")),
        ("/a?", ("/a", "")),
        ("/a#b?c", ("/a", "")),
        ("*", ("*", "")),
        ("http://host/a?b", ("/a", "b")),
        ("HTTPS://host:80?b", ("/", "b")),
        ("http://host", ("/", "")),
    ],
)
def test_targets_are_understood_in_every_form(target: str, split: tuple[str, str]) -> None:
    assert split_target(target) == split


# -- who is let in -----------------------------------------------------------------------------


async def test_without_a_token_401_and_the_challenge_says_what_is_missing(gate: Running) -> None:
    answer = await gate.write("d", WRITE, token="")
    assert (answer.status, answer.json["code"]) == (401, "token_missing")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="tidegate"'


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Basic YTpi", "token_malformed"),
        ("Bearer", "token_malformed"),
        ("Bearer abc", "token_malformed"),
        ("Bearer \u00e9.a.b", "token_malformed"),
        ("Bearer a.b.c d", "token_malformed"),
        ("token", "token_malformed"),
    ],
)
async def test_a_malformed_token_is_401_with_an_error_in_the_challenge(
    gate: Running, header: str, code: str
) -> None:
    answer = await gate.write("d", WRITE, headers={"Authorization": header})
    assert (answer.status, answer.json["code"]) == (401, code)
    assert 'error="inval' in answer.headers["WWW-Authenticate"]


async def test_two_tokens_are_none(gate: Running) -> None:
    token = f"Bearer {gate.token()}"
    headers = [("Authorization", token), ("Authorization", token)]
    async with gate.session.get(f"{gate.url}/v1/devices", headers=headers) as answer:
        assert answer.status == 401


async def test_the_scheme_of_the_token_is_read_in_any_case(gate: Running) -> None:
    headers = {"Authorization": f"bEARER  {gate.token()} "}
    assert (await gate.get("/v1/devices", headers=headers)).status == 200


async def test_without_the_scope_403_and_the_challenge_names_it(gate: Running) -> None:
    answer = await gate.write("d", WRITE, token=gate.token(("readings:read",)))
    assert (answer.status, answer.json["code"]) == (403, "insufficient_scope")
    assert 'scope="readings:write"' in answer.headers["WWW-Authenticate"]


async def test_a_token_is_asked_for_before_the_body_is_looked_at(gate: Running) -> None:
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    assert (await gate.post(PATH, data=b"x", headers=headers, token="")).status == 401


# -- what is asked for -------------------------------------------------------------------------


async def test_an_unknown_path_is_404_and_a_method_that_is_not_allowed_405_with_allow(gate: Running) -> None:
    assert (await gate.get("/v2/nothing")).json["code"] == "not_found"
    answer = await gate.call("PATCH", "/v1/devices/d")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}


@pytest.mark.parametrize("path", ["/v1/devices/%ff", "/v1/devices/%ed%a0%80", "/v1/devices/%zz"])
async def test_a_path_that_cannot_be_decoded_is_400_or_404_and_never_500(gate: Running, path: str) -> None:
    async with gate.session.get(_encoded(gate.url + path), headers=_bearer(gate)) as answer:
        assert answer.status in (400, 404)


@pytest.mark.parametrize(
    "query", ["match=%ff", "limit=%00", "&".join("a=b" for _ in range(201)), "time=%ed%a0%80"]
)
async def test_a_query_that_cannot_be_decoded_is_400(gate: Running, query: str) -> None:
    async with gate.session.get(_encoded(f"{gate.url}/v1/devices?{query}"), headers=_bearer(gate)) as answer:
        assert answer.status == 400


async def test_what_cannot_be_given_is_406_and_what_cannot_be_taken_415(gate: Running) -> None:
    answer = await gate.get("/v1/devices", headers={"Accept": "image/png"})
    assert (answer.status, answer.json["code"]) == (406, "not_acceptable")
    answer = await gate.post(PATH, data=b"{}", headers={"Content-Type": "text/html"})
    assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")
    assert "application/json" in answer.headers["Accept"]
    headers = {"Content-Type": "application/json", "Content-Encoding": "br"}
    answer = await gate.post(PATH, data=b"{}", headers=headers)
    assert answer.status == 415
    assert "gzip" in answer.headers["Accept-Encoding"]


async def test_a_body_is_json_if_nothing_is_said_and_uncoded_if_identity_is(gate: Running) -> None:
    headers = {"Content-Type": "", "Content-Encoding": "identity"}
    assert (await gate.post(PATH, data=b'{"metric":"m","value":1}', headers=headers)).status == 200


# -- what every answer has ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/livez"), ("GET", "/nowhere"), ("GET", "/v1/devices"), ("OPTIONS", "/livez")],
)
async def test_every_answer_has_its_date_its_id_and_nosniff(gate: Running, method: str, path: str) -> None:
    answer = await gate.call(method, path, headers={"X-Request-ID": "mine"})
    assert answer.headers["Date"].endswith(" GMT")
    assert answer.headers["X-Request-ID"] == "mine"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "RateLimit" not in answer.headers


async def test_an_error_that_nobody_foresaw_is_500_and_logged_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def provoke() -> None:
        async with run_gate(tmp_path / "data") as gate:
            monkeypatch.setattr(gate.gate.engine, "devices", broken)
            answer = await gate.get("/v1/devices", headers={"X-Request-ID": "find-me"})
            assert (answer.status, answer.json["code"]) == (500, "internal")
            assert "secret detail" not in answer.body.decode()
            assert (await gate.get("/livez")).status == 200

    async def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    with pytest.raises(AssertionError, match="unexpected error"):
        await provoke()
    log = (tmp_path / "data.log").read_text()
    assert "find-me" in log
    assert "secret detail" in log


# -- limits ------------------------------------------------------------------------------------


async def test_a_limit_is_shown_counted_per_principal_and_told_by_429(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", RATE_LIMIT="60", POINT_LIMIT="6000") as gate:
        one, other = gate.token(subject="one"), gate.token(subject="other")
        answer = await gate.get("/v1/devices", token=one)
        assert answer.status == 200
        assert "60" in answer.headers["RateLimit-Policy"]
        assert "RateLimit" in answer.headers
        statuses = [(await gate.get("/v1/devices", token=one)).status for _ in range(8)]
        assert statuses[-1] == 429
        answer = await gate.get("/v1/devices", token=one)
        assert answer.json["code"] == "rate_limited"
        assert "RateLimit" in answer.headers
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await gate.get("/v1/devices", token=other)).status == 200
        assert "RateLimit" not in (await gate.get("/livez")).headers


# -- browsers ----------------------------------------------------------------------------------

ORIGIN = "https://app.example"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


@pytest.fixture
async def open_gate(tmp_path: Path) -> AsyncIterator[Running]:
    """A gate that a page may call."""
    async with run_gate(tmp_path / "data", CORS_ORIGINS=ORIGIN) as running:
        yield running


async def test_options_tells_the_methods_and_no_origin_is_allowed_unless_set(gate: Running) -> None:
    answer = await gate.call("OPTIONS", PATH, headers=PREFLIGHT, token="")
    assert answer.status == 204
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert (await gate.call("OPTIONS", "/nowhere", token="")).status == 404


async def test_a_page_of_an_allowed_origin_may_call_and_another_may_not(open_gate: Running) -> None:
    answer = await open_gate.call("OPTIONS", PATH, headers=PREFLIGHT, token="")
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    answer = await open_gate.write("d", WRITE, headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Vary"] == "Origin"
    for origin in ("https://evil.example", "null", ORIGIN + ".evil.example"):
        answer = await open_gate.write("d", WRITE, headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers
        answer = await open_gate.call("OPTIONS", PATH, headers={**PREFLIGHT, "Origin": origin}, token="")
        assert "Access-Control-Allow-Methods" not in answer.headers
    # A page must be able to read why it was refused.
    refused = await open_gate.write("d", WRITE, headers={"Origin": ORIGIN}, token="")
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_a_star_allows_every_origin() -> None:
    assert "Access-Control-Allow-Origin: https://a\r\n" in Cors(["*"]).lines("https://a")


def _bearer(gate: Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {gate.token()}"}


def _encoded(url: str) -> URL:
    return URL(url, encoded=True)
