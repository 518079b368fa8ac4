import re
from pathlib import Path
from typing import Any

import pytest

from storage.postgres import reader as postgres_reader
from storage.sqlite import reader as sqlite_reader
from tests.handlers.wire import all_items, bearer, problem, raw
from tests.running import Running, run_gate

LATEST = "/v1/devices/demo.a/latest"
RANGE = "/v1/devices/demo.a/readings"
HOUR = 3_600_000


def reading(ts: int, value: object = 1, metric: str = "t", **more: object) -> dict[str, Any]:
    return {"metric": metric, "value": value, "ts": ts, **more}


# -- latest ----------------------------------------------------------------------------------------


async def test_latest_is_per_metric_the_reading_with_the_greatest_ts(gate: Running) -> None:
    await gate.write("demo.a", reading(2000, "new"), reading(1000, "old"), reading(500, 5, "u"))
    for _ in range(2):
        reply = await gate.get(LATEST)
        answer = reply.json
        epoch = answer["position"].rpartition("-")[0]
        assert answer == {
            "device": "demo.a",
            "metrics": {
                "t": {"ts": "1970-01-01T00:00:02Z", "value": "new", "offset": 1},
                "u": {"ts": "1970-01-01T00:00:00.500000Z", "value": 5, "offset": 3},
            },
            "position": f"{epoch}-3",
        }
        # Once from the database and once from the cache, which later writes keep current.
        await gate.write("demo.b", reading(1))
    await gate.write("demo.a", reading(1500, "late"))
    answer = (await gate.get(LATEST)).json
    assert answer["metrics"]["t"]["value"] == "new"
    assert answer["position"] == f"{epoch}-5"
    await gate.write("demo.a", reading(3000, False))
    assert (await gate.get(LATEST)).json["metrics"]["t"]["value"] is False


async def test_times_are_given_as_asked(gate: Running) -> None:
    await gate.write("demo.a", {"metric": "t", "value": 1, "ts": "2024-01-01T00:00:00.123456Z"})
    for query, ts in (
        ("", "2024-01-01T00:00:00.123456Z"),
        ("?time=rfc3339", "2024-01-01T00:00:00.123456Z"),
        ("?time=ms", 1_704_067_200_123),
        ("?time=us", 1_704_067_200_123_456),
    ):
        assert (await gate.get(LATEST + query)).json["metrics"]["t"]["ts"] == ts
        assert (await gate.get(RANGE + query)).json["items"][0]["ts"] == ts
        assert (await gate.get("/v1/latest" + query)).json["items"][0]["metrics"]["t"]["ts"] == ts
        assert (await gate.get("/v1/readings" + query)).json["items"][0]["ts"] == ts
        device = (await gate.get("/v1/devices/demo.a" + query)).json
        assert type(device["created_at"]) is type(device["last_seen"]) is type(ts)
    problem(await gate.get(LATEST + "?time=s"), 400, "invalid_parameter")


async def test_latest_has_a_weak_etag_from_its_position_and_304_for_who_knows_it(gate: Running) -> None:
    await gate.write("demo.a", reading(1))
    reply = await gate.get(LATEST)
    etag = reply.headers["ETag"]
    assert etag == f'W/"{reply.json["position"]}"'
    opaque = etag.removeprefix("W/")
    for condition in (etag, opaque, "*", f'"other", {etag}', f'W/"x",{opaque} , "y"'):
        for method in ("GET", "HEAD"):
            same = await gate.call(method, LATEST, headers={"If-None-Match": condition})
            assert (same.status, same.body) == (304, b"")
            assert same.headers["ETag"] == etag
            assert same.headers["Cache-Control"] == "private, no-cache"
            assert same.headers["Vary"] == "Accept, Authorization"
            assert "Content-Type" not in same.headers
    for condition in ('"other"', "", opaque.strip('"')):
        assert (await gate.get(LATEST, headers={"If-None-Match": condition})).status == 200
    await gate.write("demo.a", reading(0))
    changed = await gate.get(LATEST, headers={"If-None-Match": etag})
    assert changed.status == 200
    assert changed.headers["ETag"] != etag
    assert changed.headers["Cache-Control"] == "private, no-cache"
    assert changed.headers["Vary"] == "Accept, Authorization"


async def test_several_if_none_match_headers_are_one_list(gate: Running) -> None:
    await gate.write("demo.a", reading(1))
    etag = (await gate.get(LATEST)).headers["ETag"]
    async with gate.session.get(
        gate.url + LATEST,
        headers=[
            ("Authorization", f"Bearer {gate.token()}"),
            ("If-None-Match", '"a"'),
            ("If-None-Match", etag),
        ],
    ) as response:
        assert response.status == 304


async def test_a_device_that_never_wrote_has_no_metrics_and_an_unknown_one_is_404(gate: Running) -> None:
    problem(await gate.get(LATEST), 404, "not_found")
    problem(await gate.get(RANGE), 404, "not_found")
    await gate.call("PUT", "/v1/devices/demo.a", {})
    answer = (await gate.get(LATEST)).json
    assert answer["metrics"] == {}
    assert answer["position"].endswith("-0")
    assert (await gate.get(RANGE)).json == {"items": [], "next": None}


async def test_the_latest_of_many_devices_come_in_pages(gate: Running) -> None:
    devices = [f"demo.d{n:02}.x" for n in range(25)]
    await gate.post("/v1/readings", [reading(n, n, device=name) for n, name in enumerate(devices)])
    await gate.write("other", reading(1))
    items = await all_items(gate, "/v1/latest?match=demo.%3E&limit=7")
    assert [item["device"] for item in items] == devices
    for item in items:
        assert item == (await gate.get(f"/v1/devices/{item['device']}/latest")).json
    one = await all_items(gate, "/v1/latest?match=demo.*.x&match=other&limit=100")
    assert len(one) == 26
    assert (await gate.get("/v1/latest?match=nobody")).json == {"items": [], "next": None}


# -- ranges ----------------------------------------------------------------------------------------


async def test_a_range_takes_in_from_and_leaves_out_to(gate: Running) -> None:
    await gate.write("demo.a", *[reading(ts, ts) for ts in (1000, 2000, 3000)])

    async def values(query: str) -> list[int]:
        return [item["value"] for item in (await gate.get(f"{RANGE}?{query}")).json["items"]]

    assert await values("") == [1000, 2000, 3000]
    assert await values("from=1000&to=3000") == [1000, 2000]
    assert await values("from=1001") == [2000, 3000]
    assert await values("to=1970-01-01T00:00:03Z") == [1000, 2000]
    assert await values("to=1970-01-01T00:00:03.000001Z") == [1000, 2000, 3000]
    assert await values("from=1970-01-01T01:00:02%2B01:00") == [2000, 3000]
    assert await values("from=1970-01-01T01:00:02+01:00") == [2000, 3000]
    assert await values("from=3000&to=1000") == []
    assert await values("order=desc&from=2000") == [3000, 2000]
    item = (await gate.get(RANGE)).json["items"][0]
    assert item == {"offset": 1, "metric": "t", "ts": "1970-01-01T00:00:01Z", "value": 1000}


async def test_metrics_may_be_chosen_several_at_a_time(gate: Running) -> None:
    await gate.write("demo.a", reading(1, metric="a"), reading(2, metric="b/x"), reading(3, metric="c"))
    for query, metrics in (
        ("", ["a", "b/x", "c"]),
        ("metric=a&metric=c", ["a", "c"]),
        ("metric=b/x", ["b/x"]),
        ("metric=none", []),
    ):
        items = (await gate.get(f"{RANGE}?{query}")).json["items"]
        assert [item["metric"] for item in items] == metrics


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_a_range_lose_nothing_and_double_nothing_while_data_are_written(
    gate: Running, order: str
) -> None:
    before = [reading(ts, ts, metric) for ts in range(0, 400, 10) for metric in ("a", "b", "c")]
    await gate.write("demo.a", *before)
    seen: list[tuple[int, str]] = []
    path = f"{RANGE}?order={order}&limit=7&from=0"
    turn = 0
    while path:
        page = (await gate.get(path)).json
        seen += [(item["value"], item["metric"]) for item in page["items"]]
        turn += 1
        extra = [reading(turn * 10 + odd, -1, metric) for odd in (1, 5) for metric in ("a", "d")]
        await gate.write("demo.a", *extra)
        path = f"{RANGE}?order={order}&limit=7&from=0&cursor={page['next']}" if page["next"] else ""
    old = [place for place in seen if place[0] >= 0]
    assert sorted(old) == sorted((item["value"], item["metric"]) for item in before)
    assert [place[0] for place in old] == sorted((place[0] for place in old), reverse=order == "desc")


async def test_the_link_header_leads_to_the_next_page(gate: Running) -> None:
    await gate.write("demo.a", *[reading(ts, ts) for ts in range(5)])
    reply = await gate.get(RANGE + "?limit=2&metric=t&order=asc")
    link = reply.headers["Link"]
    assert link.startswith(f"<{RANGE}?limit=2&metric=t&order=asc&cursor=")
    following = await gate.get(link[1 : link.index(">")])
    assert [item["value"] for item in following.json["items"]] == [2, 3]
    link = following.headers["Link"]
    assert link.count("cursor=") == 1
    last = await gate.get(link[1 : link.index(">")])
    assert last.json["next"] is None
    assert "Link" not in last.headers


async def test_a_pattern_that_came_unescaped_does_not_break_the_link(gate: Running) -> None:
    for name in ("acme.a", "acme.b", "acme.c"):
        await gate.write(name, reading(1))
    for path in ("/v1/latest", "/v1/devices"):
        head = f"GET {path}?match=acme.>&limit=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
        reply = await raw(gate, head + await bearer(gate) + b"\r\n")
        reference = re.fullmatch(r'<([^<>"]+)>; rel="next"', reply.headers["Link"])
        assert reference is not None, reply
        following = (await gate.get(reference[1])).json
        assert [item["device"] for item in following["items"]] == ["acme.c"]


# -- buckets ---------------------------------------------------------------------------------------


async def test_buckets_are_aligned_to_the_epoch_and_count_numbers_only(gate: Running) -> None:
    start = 10 * HOUR
    await gate.write(
        "demo.a",
        reading(start + 59_999, 2),
        reading(start + 1, 4.5),
        reading(start + 30_000, True),
        reading(start + 31_000, "text"),
        reading(start + 60_000, 10),
        reading(start + 240_000, "only text"),
        reading(start + 1, 7, "u"),
    )
    query = f"{RANGE}?every=1m&time=ms&" + "&".join(
        f"fn={fn}" for fn in ("avg", "min", "max", "count", "sum", "first", "last")
    )
    first = {"avg": 3.25, "min": 2, "max": 4.5, "count": 2, "sum": 6.5, "first": 4.5, "last": 2}
    ten = dict.fromkeys(("avg", "min", "max", "sum", "first", "last"), 10)
    seven = dict.fromkeys(("avg", "min", "max", "sum", "first", "last"), 7)
    assert (await gate.get(query)).json["items"] == [
        {"ts": start, "metric": "t", **first},
        {"ts": start, "metric": "u", **seven, "count": 1},
        {"ts": start + 60_000, "metric": "t", **ten, "count": 1},
    ]
    assert await all_items(gate, query + "&limit=1") == (await gate.get(query)).json["items"]
    items = (await gate.get(f"{RANGE}?every=1h&fn=count&metric=t")).json["items"]
    assert items == [{"ts": "1970-01-01T10:00:00Z", "metric": "t", "count": 3}]


async def test_a_bucket_at_the_edge_of_the_range_holds_what_lies_in_the_range(gate: Running) -> None:
    await gate.write("demo.a", *[reading(ts, ts) for ts in (0, 20_000, 40_000, 60_000, 80_000)])
    query = f"{RANGE}?every=1m&fn=first&fn=last&fn=count&from=20000&to=80000&time=ms"
    expected = [
        {"ts": 0, "metric": "t", "first": 20_000, "last": 40_000, "count": 2},
        {"ts": 60_000, "metric": "t", "first": 60_000, "last": 60_000, "count": 1},
    ]
    assert (await gate.get(query)).json["items"] == expected
    assert await all_items(gate, query + "&limit=1") == expected


async def test_without_fn_a_bucket_has_the_average(gate: Running) -> None:
    await gate.write("demo.a", reading(0, 1), reading(1, 2))
    assert (await gate.get(RANGE + "?every=1d")).json["items"] == [
        {"ts": "1970-01-01T00:00:00Z", "metric": "t", "avg": 1.5}
    ]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("every=1m&fn=median", "fn"),
        ("every=1", "every"),
        ("every=0s", "every"),
        ("every=", "every"),
        ("every=1m&every=2m", "every"),
        ("every=1m&order=desc", "order"),
        ("fn=avg", "fn"),
        ("order=up", "order"),
        ("from=yesterday", "from"),
        ("to=-1", "to"),
        ("to=99999999999999999999999", "to"),
        ("from=1&from=2", "from"),
        ("metric=a%20b", "metric"),
        ("metric=", "metric"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=5&limit=6", "limit"),
        ("time=s", "time"),
    ],
)
async def test_a_bad_parameter_of_a_range_is_400_and_named(gate: Running, query: str, name: str) -> None:
    await gate.write("demo.a", reading(1))
    document = problem(await gate.get(f"{RANGE}?{query}"), 400, "invalid_parameter")
    assert document["detail"].startswith(f"{name}: ")


# -- the log ---------------------------------------------------------------------------------------


async def test_the_log_is_read_in_order_from_any_position_to_its_end(gate: Running) -> None:
    for n in range(25):
        await gate.write(f"demo.d{n % 3}", reading(1000 - n, n))
    seen: list[int] = []
    path = "/v1/readings?since=earliest&limit=10"
    while True:
        page = (await gate.get(path)).json
        assert set(page) == {"items", "next", "end"}
        seen += [item["value"] for item in page["items"]]
        if page["end"]:
            break
        path = f"/v1/readings?since={page['next']}&limit=10"
    assert seen == list(range(25))
    item = page["items"][-1]
    assert item == {"offset": 25, "device": "demo.d0", "metric": "t", "ts": item["ts"], "value": 24}
    written = await gate.write("demo.d0", reading(5000, 25))
    more = (await gate.get(f"/v1/readings?since={page['next']}")).json
    assert [item["value"] for item in more["items"]] == [25]
    assert more["next"] == written.json["position"]
    nothing = (await gate.get(f"/v1/readings?since={more['next']}")).json
    assert nothing == {"items": [], "next": more["next"], "end": True}


async def test_the_log_begins_at_the_earliest_and_an_empty_one_ends_at_once(gate: Running) -> None:
    empty = (await gate.get("/v1/readings")).json
    assert (empty["items"], empty["end"]) == ([], True)
    await gate.write("demo.a", reading(1))
    assert len((await gate.get(f"/v1/readings?since={empty['next']}")).json["items"]) == 1
    assert (await gate.get("/v1/readings")).json == (await gate.get("/v1/readings?since=earliest")).json


async def test_the_log_shows_what_matches(gate: Running) -> None:
    for device in ("acme.p1.boiler", "acme.p2.boiler", "acme.p1.fan", "other"):
        await gate.write(device, reading(1, 1, "t"), reading(1, 2, "u"))
    for query, count in (
        ("match=acme.*.boiler", 4),
        ("match=acme.%3E&metric=u", 3),
        ("match=other&match=acme.p1.%3E", 6),
        ("match=%3E&metric=t&metric=u", 8),
        ("metric=t", 4),
        ("match=acme", 0),
    ):
        page = (await gate.get(f"/v1/readings?{query}")).json
        assert (len(page["items"]), page["end"]) == (count, True), query


async def test_rare_matches_give_empty_pages_before_the_end_and_none_is_lost(
    gate: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reader in (sqlite_reader, postgres_reader):
        monkeypatch.setattr(reader, "SEARCH_ROWS", 10)
    await gate.write("common", *[reading(ts) for ts in range(35)])
    await gate.write("rare", reading(1, "found"))
    await gate.write("common", *[reading(ts) for ts in range(100, 125)])
    pages: list[Any] = []
    since = "earliest"
    while not pages or not pages[-1]["end"]:
        pages.append((await gate.get(f"/v1/readings?match=rare&since={since}")).json)
        since = pages[-1]["next"]
    assert pages[0]["items"] == []
    assert [item["value"] for page in pages for item in page["items"]] == ["found"]
    assert len(pages) == 7


async def test_a_position_that_cannot_be_served_is_410_with_the_reason(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data", RETENTION="1h") as gate:
        await gate.write("demo.a", reading(1000), reading(2000))
        reply = await gate.write("demo.a", {"metric": "t", "value": 1})
        epoch = reply.json["position"].rpartition("-")[0]
        before = (await gate.get("/v1/readings?limit=1")).json["next"]
        await gate.gate.sweep()
        for since, reason in (
            (before, "expired"),
            (f"{epoch}-0", "expired"),
            (f"{epoch}-4", "ahead"),
            (f"{epoch}-9999999999999999999", "ahead"),
            ("deadbeef-1", "unknown_epoch"),
        ):
            document = problem(await gate.get(f"/v1/readings?since={since}"), 410, "position_gone")
            assert document["reason"] == reason
        earliest = (await gate.get("/v1/readings?since=earliest")).json
        assert [item["offset"] for item in earliest["items"]] == [3]
        assert (await gate.get(f"/v1/readings?since={epoch}-2")).json["items"] == earliest["items"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("since=", "since"),
        ("since=latest", "since"),
        ("since=a-01", "since"),
        ("since=a--1", "since"),
        ("since=earliest&since=earliest", "since"),
        ("match=a..b", "match"),
        ("match=%3E.a", "match"),
        ("match=", "match"),
        ("match=" + "a" * 129, "match"),
        ("&".join(["match=a"] * 65), "match"),
        ("&".join(["metric=a"] * 65), "metric"),
        ("limit=-1", "limit"),
    ],
)
async def test_a_bad_parameter_of_the_log_is_400_and_named(gate: Running, query: str, name: str) -> None:
    document = problem(await gate.get(f"/v1/readings?{query}"), 400, "invalid_parameter")
    assert document["detail"].startswith(f"{name}: ")


# -- grants ----------------------------------------------------------------------------------------


async def test_reading_is_cut_to_the_grants(gate: Running) -> None:
    for device in ("mine.a", "mine.b", "other"):
        await gate.write(device, reading(1))
    token = gate.token(devices=["mine.>"])
    for path in ("/v1/devices/other/latest", "/v1/devices/other/readings", "/v1/devices/none/latest"):
        problem(await gate.get(path, token=token), 404, "not_found")
    problem(
        await gate.get("/v1/devices/other/readings", token=token, headers={"Accept": "text/csv"}),
        404,
        "not_found",
    )
    for query, devices in (("", ["mine.a", "mine.b"]), ("?match=*.a", ["mine.a"]), ("?match=other", [])):
        for path in ("/v1/latest", "/v1/readings", "/v1/devices"):
            page = (await gate.get(path + query, token=token)).json
            assert [item["device"] for item in page["items"]] == devices
    nobody = gate.token(devices=[])
    for path in ("/v1/latest", "/v1/readings", "/v1/devices"):
        reply = await gate.get(path, token=nobody)
        assert (reply.status, reply.json["items"]) == (200, [])
    problem(await gate.get("/v1/devices/mine.a/latest", token=nobody), 404, "not_found")
