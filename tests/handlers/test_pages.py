import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.pages import cursor
from handlers.problems import Problem
from tests.handlers.wire import create_client, problem
from tests.running import Running


@settings(deadline=None)
@given(st.text(), st.sampled_from([str, tuple[int, int], tuple[int, str]]))
def test_any_text_is_a_cursor_or_refused(text: str, kind: type[object]) -> None:
    try:
        place = cursor({"cursor": [text]}, kind)
    except Problem as refusal:
        code = refusal.entry.code
    else:
        code = ""
        msgspec.convert(place, kind)
    assert code in ("", "invalid_parameter")


async def cursors(gate: Running) -> dict[str, str]:
    """A cursor of each list."""
    for device in ("a", "b"):
        await gate.write(device, *[{"metric": m, "value": 1, "ts": n} for n in range(2) for m in ("t", "u")])
        await create_client(gate, id=device)
    found = {}
    for path in LISTS:
        reply = await gate.get(path + ("&" if "?" in path else "?") + "limit=1")
        found[path] = reply.json["next"]
    return found


LISTS = [
    "/v1/devices/a/readings",
    "/v1/devices/a/readings?every=1ms",
    "/v1/latest",
    "/v1/devices",
    "/v1/clients",
]


async def test_a_cursor_is_opaque_and_fits_into_a_url_as_it_is(gate: Running) -> None:
    for text in (await cursors(gate)).values():
        assert text.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "bad", ["", "x", "!!!!", "AAAA", "%FF", "ä", "a b", "zwE=", "wqE", "kgEB", "ks__________zwE", "k___"]
)
async def test_a_cursor_that_no_list_gave_out_is_400(gate: Running, bad: str) -> None:
    await gate.write("a", {"metric": "t", "value": 1, "ts": 1})
    for path in LISTS:
        reply = await gate.get(f"{path}{'&' if '?' in path else '?'}cursor={bad}")
        if bad == "kgEB" and path == LISTS[0]:
            assert reply.status == 200
        elif bad == "%FF":
            problem(reply, 400, "malformed")
        else:
            assert problem(reply, 400, "invalid_parameter")["detail"].startswith("cursor: "), (path, reply)


async def test_cursors_and_positions_never_mix(gate: Running) -> None:
    found = await cursors(gate)
    position = (await gate.get("/v1/readings")).json["next"]
    for path, text in found.items():
        join = "&" if "?" in path else "?"
        problem(await gate.get(f"{path}{join}cursor={position}"), 400, "invalid_parameter")
        problem(await gate.get(f"/v1/readings?since={text}"), 400, "invalid_parameter")
    ranges, buckets = found[LISTS[0]], found[LISTS[1]]
    problem(await gate.get(f"{LISTS[0]}?cursor={buckets}"), 400, "invalid_parameter")
    problem(await gate.get(f"{LISTS[1]}&cursor={ranges}"), 400, "invalid_parameter")
    problem(await gate.get(f"{LISTS[0]}?cursor={found['/v1/devices']}"), 400, "invalid_parameter")


async def test_a_page_has_100_items_unless_told_and_at_most_1000(gate: Running) -> None:
    await gate.write("a", *[{"metric": "t", "value": n, "ts": n} for n in range(1200)])
    for query, count in (("", 100), ("limit=1", 1), ("limit=1000", 1000)):
        for path in ("/v1/devices/a/readings", "/v1/readings"):
            assert len((await gate.get(f"{path}?{query}")).json["items"]) == count


async def test_a_full_last_page_has_no_next(gate: Running) -> None:
    await gate.write("a", *[{"metric": "t", "value": n, "ts": n} for n in range(3)])
    reply = await gate.get("/v1/devices/a/readings?limit=3")
    assert reply.json["next"] is None
    assert "Link" not in reply.headers
