import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.exchange import Media, Preferences
from handlers.negotiation import MEDIA_TYPES, accepted, content_media, preferences
from tests.handlers.wire import JSON, MSGPACK, problem
from tests.running import Running

DATA = (Media.JSON, Media.MSGPACK)
EXPORT = (*DATA, Media.CSV, Media.NDJSON)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("header", "offers", "chosen"),
    [
        ("", DATA, Media.JSON),
        (" , ", DATA, Media.JSON),
        ("*/*", DATA, Media.JSON),
        (BROWSER, DATA, Media.JSON),
        (BROWSER, EXPORT, Media.JSON),
        ("application/*", DATA, Media.JSON),
        ("APPLICATION/MsgPack", DATA, Media.MSGPACK),
        ("application/x-msgpack", DATA, Media.MSGPACK),
        ("application/msgpack, application/json", DATA, Media.MSGPACK),
        ("application/json, application/msgpack", DATA, Media.JSON),
        ("application/json;q=0.5, application/msgpack;q=0.6", DATA, Media.MSGPACK),
        ("application/msgpack, */*", DATA, Media.MSGPACK),
        ("application/msgpack;q=0.1, */*;q=0.5", DATA, Media.JSON),
        ("application/json;q=0, */*", DATA, Media.MSGPACK),
        ("application/json; charset=utf-8", DATA, Media.JSON),
        ("text/html, application/msgpack;q=0.001", DATA, Media.MSGPACK),
        ("text/csv", EXPORT, Media.CSV),
        ("text/*", EXPORT, Media.CSV),
        ("text/csv, application/json;q=0.9", EXPORT, Media.CSV),
        ("application/x-ndjson", EXPORT, Media.NDJSON),
        ("text/csv", DATA, None),
        ("text/html", EXPORT, None),
        ("application/json;q=0", (Media.JSON,), None),
        ("*/*;q=0", DATA, None),
        ("application/*;q=0, */*", EXPORT, Media.CSV),
        ("json", DATA, None),
    ],
)
def test_the_client_gets_the_form_it_likes_best(
    header: str, offers: tuple[Media, ...], chosen: Media | None
) -> None:
    assert accepted(header, offers) == chosen


ranges = st.sampled_from(
    [*MEDIA_TYPES, "*/*", "application/*", "text/*", "nonsense", "", "a/b", "*", "/", "text/"]
)
qualities = st.sampled_from(["", ";q=0", ";q=1", ";q=0.5", "; q=0.001", ";q=2", ";q=x", ";v=1;q=0.3", ";;"])


@settings(deadline=None)
@given(st.lists(st.tuples(ranges, qualities).map("".join)).map(",".join) | st.text())
def test_any_accept_gets_an_offer_or_none(header: str) -> None:
    assert accepted(header, EXPORT) in (*EXPORT, None)


@settings(deadline=None)
@given(st.text())
def test_any_content_type_is_known_or_not(header: str) -> None:
    assert content_media(header) in (*MEDIA_TYPES.values(), None)


@settings(deadline=None)
@given(st.lists(st.text()))
def test_any_prefer_is_read(headers: list[str]) -> None:
    preferences(headers)


def test_the_first_handling_counts_and_the_rest_is_passed_over() -> None:
    assert preferences([]) == Preferences()
    assert preferences(["handling=strict", "handling=lenient"]) == Preferences(strict=True)
    assert preferences(['Handling="lenient"; x=1, return=minimal']) == Preferences(lenient=True)
    assert preferences(["respond-async, wait=10"]) == Preferences(respond_async=True)
    assert preferences(["handling=other, strict"]) == Preferences()


# -- over HTTP -------------------------------------------------------------------------------------

READS = [
    "/v1/devices",
    "/v1/devices/a",
    "/v1/devices/a/latest",
    "/v1/devices/a/readings",
    "/v1/devices/a/readings?every=1m",
    "/v1/latest",
    "/v1/readings",
    "/v1/clients",
    "/problems",
]


async def test_every_answer_is_the_same_in_json_and_messagepack(gate: Running) -> None:
    await gate.write("a", {"metric": "t", "value": 1.5, "ts": 1}, {"metric": "s", "value": "x", "ts": 2})
    await gate.post("/v1/clients", {"scopes": [], "devices": []})
    for path in READS:
        json, browser = await gate.get(path), await gate.get(path, headers={"Accept": BROWSER})
        assert json.headers["Content-Type"] == browser.headers["Content-Type"] == JSON, path
        assert json.body == browser.body
        packed = await gate.get(path, headers={"Accept": MSGPACK})
        assert packed.headers["Content-Type"] == MSGPACK
        assert msgspec.msgpack.decode(packed.body) == json.json, path
        problem(await gate.get(path, headers={"Accept": "text/html"}), 406, "not_acceptable")


async def test_devices_and_clients_come_as_messagepack_too(gate: Running) -> None:
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    body = msgspec.msgpack.encode({"name": "Boiler", "labels": {"a": "b"}})
    reply = await gate.call("PUT", "/v1/devices/a", data=body, headers=headers)
    assert reply.status == 201
    assert msgspec.msgpack.decode(reply.body)["name"] == "Boiler"
    body = msgspec.msgpack.encode({"id": "packed", "scopes": [], "devices": []})
    reply = await gate.post("/v1/clients", data=body, headers=headers)
    assert (reply.status, msgspec.msgpack.decode(reply.body)["id"]) == (201, "packed")


async def test_a_problem_is_always_problem_json(gate: Running) -> None:
    for accept in (MSGPACK, "text/csv"):
        problem(await gate.get("/v1/devices/none/readings", headers={"Accept": accept}), 404, "not_found")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "nonsense", "text/csv"])
async def test_an_unknown_content_type_is_415_and_the_answer_says_what_is_known(
    gate: Running, content_type: str
) -> None:
    for method, path in (("POST", "/v1/readings"), ("PUT", "/v1/devices/a"), ("POST", "/v1/clients")):
        reply = await gate.call(method, path, data=b"{}", headers={"Content-Type": content_type})
        problem(reply, 415, "unsupported_media_type")
        assert JSON in reply.headers["Accept"]


async def test_parameters_of_the_content_type_do_not_matter(gate: Running) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    reply = await gate.post("/v1/readings", data=b'{"device":"a","metric":"t","value":1}', headers=headers)
    assert reply.status == 200
