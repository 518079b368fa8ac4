import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.handlers.wire import JSON, MSGPACK, NDJSON, all_items, held_commit, pointers, problem
from tests.running import Running

A = "/v1/devices/demo.a/readings"


def reading(value: object = 1.5, ts: object = 1000, metric: str = "t", **more: object) -> dict[str, Any]:
    return {"metric": metric, "value": value, "ts": ts, **more}


async def test_one_reading_is_taken_and_the_answer_counts_it_and_names_its_position(gate: Running) -> None:
    reply = await gate.post(A, reading())
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    answer = reply.json
    epoch, _, offset = answer.pop("position").rpartition("-")
    assert epoch
    assert offset == "1"
    assert answer == {"accepted": 1, "duplicates": 0, "rejected_count": 0, "rejected": []}


async def test_the_values_form_is_one_reading_per_metric_at_one_time(gate: Running) -> None:
    values = {"temperature": 21.5, "door_open": False, "state": "ok", "n": 3}
    reply = await gate.post(A, {"ts": 5000, "values": values})
    assert reply.json["accepted"] == 4
    latest = (await gate.get("/v1/devices/demo.a/latest?time=ms")).json["metrics"]
    assert {name: sample["value"] for name, sample in latest.items()} == values
    assert {sample["ts"] for sample in latest.values()} == {5000}


async def test_an_array_may_mix_both_forms(gate: Running) -> None:
    reply = await gate.post(A, [reading(), {"values": {"a": 1, "b": True}, "ts": 1}])
    assert reply.json["accepted"] == 3


async def test_readings_of_many_devices_name_them_in_each_item(gate: Running) -> None:
    reply = await gate.post("/v1/readings", [reading(device="demo.a"), reading(device="demo.b")])
    assert reply.json["accepted"] == 2
    reply = await gate.post("/v1/readings", reading(device="demo.c"))
    assert reply.json["accepted"] == 1
    assert [d["device"] for d in (await gate.get("/v1/devices")).json["items"]] == [
        "demo.a",
        "demo.b",
        "demo.c",
    ]


async def test_items_for_one_device_must_not_name_another(gate: Running) -> None:
    problem(reply := await gate.post(A, reading(device="demo.b")), 422, "invalid")
    assert pointers(reply) == [("/device", "invalid")]


async def test_ndjson_is_one_item_a_line_and_a_pointer_counts_the_lines_before_it(gate: Running) -> None:
    lines = [
        json.dumps(reading(device="demo.a")),
        "",
        "no json",
        json.dumps(reading("x" * 2000, device="demo.a", metric="big")),
        json.dumps({"device": "demo.a", "ts": 7, "values": {"a~/b": None}}),
        '{"device": "demo.a", "metric": "nan", "value": NaN}\r',
        json.dumps(reading(device="demo.b")) + "\r",
    ]
    for body in ("\n".join(lines), "\n".join(lines) + "\n"):
        reply = await gate.post("/v1/readings", data=body.encode(), headers={"Content-Type": NDJSON})
        assert reply.status == 200, reply
        assert pointers(reply, "rejected") == [
            ("/2", "invalid"),
            ("/3/value", "too_large"),
            ("/4/values/a~0~1b", "invalid"),
            ("/5/value", "invalid"),
        ]
    assert reply.json["duplicates"] == 2
    reply = await gate.post(
        A, data=json.dumps(reading(metric="nd")).encode(), headers={"Content-Type": NDJSON}
    )
    assert reply.json["accepted"] == 1


async def test_messagepack_comes_in_and_goes_out(gate: Running) -> None:
    body = msgspec.msgpack.encode([reading(2**53), reading(True, metric="b"), reading(b"raw", metric="c")])
    reply = await gate.post(A, data=body, headers={"Content-Type": MSGPACK, "Accept": MSGPACK})
    assert reply.status == 200, reply
    assert reply.headers["Content-Type"] == MSGPACK
    answer = msgspec.msgpack.decode(reply.body)
    assert answer["accepted"] == 2
    assert [fault["pointer"] for fault in answer["rejected"]] == ["/2/value"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"metric": "t", "value": NaN}', "/value"),
        ('{"metric": "t", "value": -Infinity}', "/value"),
        ('{"metric": "t", "value": 1e999}', "/value"),
        ('{"metric": "t", "value": 9007199254740993}', "/value"),
        ('{"metric": "t", "value": -9007199254740993}', "/value"),
        (f'{{"metric": "t", "value": {"9" * 5000}}}', "/value"),
        ('{"metric": "t", "value": null}', "/value"),
        ('{"metric": "t", "value": [1]}', "/value"),
        ('{"metric": "t", "value": "a\\u0000b"}', "/value"),
        ('{"metric": "t", "value": "\\ud800"}', "/value"),
        ('{"metric": "", "value": 1}', "/metric"),
        ('{"metric": "a b", "value": 1}', "/metric"),
        ('{"metric": "\\u00e4", "value": 1}', "/metric"),
        (f'{{"metric": "{"m" * 65}", "value": 1}}', "/metric"),
        ('{"metric": 1, "value": 1}', "/metric"),
        ('{"value": 1}', ""),
        ('{"metric": "t"}', ""),
        ("{}", ""),
        ('{"metric": "t", "value": 1, "values": {"a": 1}}', ""),
        ('{"values": {}}', "/values"),
        ('{"values": {"a b": 1}}', "/values/a b"),
        ('{"values": {"\\ud800": 1}}', "/values/?"),
        ('{"values": {"a/b": "\\u0000"}}', "/values/a~1b"),
        ('{"values": {"ok": 1, "a": [1]}, "ts": 5}', "/values/a"),
        ('{"metric": "t", "value": 1, "unit": "C"}', "/unit"),
        ('{"metric": "t", "value": 1, "a/b~c": 1}', "/a~1b~0c"),
        ('{"metric": "t", "value": 1, "ts": null}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": -1}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": 253402300800000}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": "1969-12-31T23:59:59.999999Z"}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": "2024-01-01T00:00:00"}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": "yesterday"}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": 1000.5}', "/ts"),
        ('{"metric": "t", "value": 1, "ts": true}', "/ts"),
        ("3", ""),
        ("null", ""),
        ('"text"', ""),
        ("[]", ""),
    ],
)
async def test_what_is_no_reading_is_refused_with_a_pointer_and_spoils_nothing_else(
    gate: Running, body: str, pointer: str
) -> None:
    headers = {"Content-Type": JSON}
    problem(reply := await gate.post(A, data=body.encode(), headers=headers), 422, "invalid")
    assert pointers(reply) == [(pointer, "invalid")]
    if body[0] != "{":
        return
    good = json.dumps(reading(metric="good"))
    reply = await gate.post(A, data=f"[{good}, {body}]".encode(), headers=headers)
    assert reply.status == 200, reply
    assert reply.json["rejected_count"] == 1
    assert pointers(reply, "rejected") == [("/1" + pointer, "invalid")]
    assert "good" in (await gate.get("/v1/devices/demo.a")).json["metrics"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"metric": "t", "value": 01}', b"\xff", b"[1", b"[" * 100_000, b"{} {}"]
)
async def test_what_is_not_well_formed_is_400(gate: Running, body: bytes) -> None:
    problem(await gate.post(A, data=body, headers={"Content-Type": JSON}), 400, "malformed")
    if body:
        problem(await gate.post(A, data=b"\xc1" + body, headers={"Content-Type": MSGPACK}), 400, "malformed")


async def test_values_come_back_as_they_were_sent(gate: Running) -> None:
    values: dict[str, Any] = {
        "true": True,
        "false": False,
        "int": 2**53,
        "least": -(2**53),
        "zero": 0,
        "float": 0.1,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "empty": "",
        "text": "Grüße \U0001f321 \x01",
        "longest": "ä" * 512,
        "number.like": "1",
    }
    assert (await gate.post(A, {"ts": 1, "values": values})).json["accepted"] == len(values)
    items = (await gate.get(A)).json["items"]
    assert {item["metric"]: (item["value"], type(item["value"])) for item in items} == {
        name: (value, type(value)) for name, value in values.items()
    }


async def test_text_is_measured_in_bytes(gate: Running) -> None:
    assert (await gate.write("demo.a", reading("x" * 1024))).status == 200
    for text in ("x" * 1025, "ä" * 513):
        problem(reply := await gate.write("demo.a", reading(text, ts=2)), 422, "invalid")
        assert pointers(reply) == [("/0/value", "too_large")]


async def test_names_reach_to_their_limits(gate: Running) -> None:
    device, metric = ".".join(["Az-09_xyz"] * 12) + ".abcdefgh", "aZ09_.:/%-" + "m" * 54
    assert (len(device), len(metric)) == (128, 64)
    assert (await gate.write(device, reading(metric=metric))).status == 200
    assert list((await gate.get(f"/v1/devices/{device}/latest")).json["metrics"]) == [metric]
    for bad in (device + "x", "a..b", ".a", "a.", "a b", "", "ä", "a*", ">", "a\n"):
        reply = await gate.post("/v1/readings", reading(device=bad))
        problem(reply, 422, "invalid")
        assert pointers(reply) == [("/device", "invalid")]
    for bad in (device + "x", "a..b", "a%20b", "a%3E"):
        problem(await gate.write(bad, reading()), 404, "not_found")


async def test_a_write_has_1_to_10000_readings(gate: Running) -> None:
    full = [reading(n, ts=n) for n in range(10_000)]
    assert (await gate.post(A, full)).json["accepted"] == 10_000
    problem(await gate.post(A, [*full, reading(0, ts=10_000)]), 413, "too_large")
    values = {"ts": 5, "values": {f"m{n}": n for n in range(5_001)}}
    problem(await gate.post(A, [values, values]), 413, "too_large")
    problem(await gate.post(A, [1] * 10_001), 413, "too_large")
    lines = b'{"metric": "t", "value": 1}\n' * 10_001
    problem(await gate.post(A, data=lines, headers={"Content-Type": NDJSON}), 413, "too_large")
    problem(await gate.post(A, data=b"x\n" * 10_001, headers={"Content-Type": NDJSON}), 413, "too_large")
    problem(await gate.post(A, data=b"\n\n", headers={"Content-Type": NDJSON}), 422, "invalid")
    assert len(await all_items(gate, A + "?limit=1000")) == 10_000


async def test_the_first_100_bad_items_are_told_and_all_are_counted(gate: Running) -> None:
    reply = await gate.post(A, [reading(), *[reading(None, ts=n) for n in range(150)]])
    assert reply.json["rejected_count"] == 150
    assert pointers(reply, "rejected") == [(f"/{n}/value", "invalid") for n in range(1, 101)]


async def test_bad_items_and_conflicts_are_told_in_the_order_of_the_body(gate: Running) -> None:
    await gate.post(A, reading())
    bad = [reading(9), reading(ts="no"), reading(2, ts=2), reading(9), {"metric": 1}, reading(3, ts=2)]
    reply = await gate.post(A, bad)
    assert pointers(reply, "rejected") == [
        ("/0", "conflict"),
        ("/1/ts", "invalid"),
        ("/3", "conflict"),
        ("/4/metric", "invalid"),
        ("/5", "conflict"),
    ]
    reply = await gate.post(A, [reading(9), reading(3, ts=3), *[reading(None)] * 100])
    assert reply.json["rejected_count"] == 101
    assert pointers(reply, "rejected")[:2] == [("/0", "conflict"), ("/2/value", "invalid")]
    assert len(reply.json["rejected"]) == 100


# -- identity --------------------------------------------------------------------------------------


async def test_the_same_reading_again_is_a_duplicate_and_stored_once(gate: Running) -> None:
    first = await gate.post(A, reading())
    again = await gate.post(A, [reading(), reading(ts="1970-01-01T01:00:01+01:00"), reading(2, ts=2)])
    assert (again.json["accepted"], again.json["duplicates"]) == (1, 2)
    last = await gate.post(A, reading())
    assert (last.json["accepted"], last.json["duplicates"]) == (0, 1)
    assert last.json["position"] == again.json["position"] != first.json["position"]
    assert len((await gate.get(A)).json["items"]) == 2


async def test_another_value_for_the_same_identity_is_a_conflict_and_the_first_stays(gate: Running) -> None:
    await gate.post(A, reading(1))
    reply = await gate.post(A, [reading(2), reading(3, metric="other")])
    assert reply.json["accepted"] == 1
    assert reply.json["rejected_count"] == 1
    assert pointers(reply, "rejected") == [("/0", "conflict")]
    problem(reply := await gate.post(A, reading(2)), 422, "invalid")
    assert pointers(reply) == [("", "conflict")]
    problem(reply := await gate.post(A, {"ts": 1000, "values": {"t": 2}}), 422, "invalid")
    assert pointers(reply) == [("/values/t", "conflict")]
    assert (await gate.get(A + "?metric=t")).json["items"][0]["value"] == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [(1, 1.0, True), (1, True, False), (0, False, False), (0.0, False, False), ("1", 1, False)],
)
async def test_1_is_1_point_0_but_neither_true_nor_text(
    gate: Running, first: object, second: object, same: bool
) -> None:
    for kinds in ((first, second), (second, first)):
        metric = f"m{type(kinds[0]).__name__}"
        together = await gate.post(A, [reading(kinds[0], metric=metric), reading(kinds[1], metric=metric)])
        later = await gate.post(A, [reading(kinds[1], metric=metric), reading(0, metric="x" + metric)])
        for reply in (together, later):
            assert reply.json["duplicates"] == same, (kinds, reply)
            assert reply.json["rejected_count"] == (not same)


async def test_in_one_batch_the_first_wins(gate: Running) -> None:
    reply = await gate.post(A, [reading(1), reading(2), reading(1)])
    assert (reply.json["accepted"], reply.json["duplicates"]) == (1, 1)
    assert pointers(reply, "rejected") == [("/1", "conflict")]
    assert [item["value"] for item in (await gate.get(A)).json["items"]] == [1]


async def test_readings_without_ts_are_never_duplicates(gate: Running) -> None:
    bare = {"metric": "t", "value": 1}
    reply = await gate.post(A, [bare] * 50)
    assert (reply.json["accepted"], reply.json["duplicates"]) == (50, 0)
    replies = await asyncio.gather(*(gate.post(A, bare) for _ in range(10)))
    assert [reply.json["accepted"] for reply in replies] == [1] * 10
    times = [item["ts"] for item in (await gate.get(A + "?time=us")).json["items"]]
    assert len(set(times)) == 60
    reply = await gate.post(A, {"values": {"a": 1, "b": 2}})
    assert reply.json["accepted"] == 2


async def test_times_are_cut_to_the_microsecond(gate: Running) -> None:
    await gate.post(A, reading(ts="2024-02-29T12:00:00.1234569+05:30"))
    assert (await gate.get(A)).json["items"][0]["ts"] == "2024-02-29T06:30:00.123456Z"
    reply = await gate.post(A, reading(ts="2024-02-29t06:30:00.123456z"))
    assert reply.json["duplicates"] == 1


# -- preferences -----------------------------------------------------------------------------------

STRICT = {"Prefer": "handling=strict"}


async def test_strict_stores_nothing_if_any_item_is_bad(gate: Running) -> None:
    batch = [reading(), reading(None, ts=2)]
    problem(reply := await gate.post(A, batch, headers=STRICT), 422, "invalid")
    assert pointers(reply) == [("/1/value", "invalid")]
    assert reply.headers["Preference-Applied"] == "handling=strict"
    problem(await gate.get("/v1/devices/demo.a"), 404, "not_found")


async def test_strict_refuses_a_conflict_with_409_and_takes_duplicates(gate: Running) -> None:
    await gate.post(A, reading(1))
    batch = [reading(5, ts=5, metric="new"), reading(2)]
    problem(reply := await gate.post(A, batch, headers=STRICT), 409, "conflict")
    assert pointers(reply) == [("/1", "conflict")]
    assert reply.headers["Preference-Applied"] == "handling=strict"
    assert len((await gate.get(A)).json["items"]) == 1
    reply = await gate.post(A, [reading(1), reading(5, ts=5)], headers=STRICT)
    assert (reply.status, reply.json["accepted"], reply.json["duplicates"]) == (200, 1, 1)
    assert reply.headers["Preference-Applied"] == "handling=strict"
    problem(await gate.post(A, [reading(1, ts=9), reading(2, ts=9)], headers=STRICT), 409, "conflict")


async def test_only_honoured_preferences_are_named(gate: Running) -> None:
    for asked, applied in (
        ("handling=lenient", "handling=lenient"),
        ("wait=5, HANDLING=strict", "handling=strict"),
        ("wait=5", None),
        (None, None),
    ):
        reply = await gate.post(A, reading(), headers={"Prefer": asked} if asked else {})
        assert reply.status == 200
        assert reply.headers.get("Preference-Applied") == applied


async def test_respond_async_is_answered_before_the_commit_and_else_after_it(gate: Running) -> None:
    async with held_commit(gate) as held:
        waiting = asyncio.create_task(gate.post(A, reading(metric="durable")))
        await held.arrived.wait()
        reply = await gate.post(A, [reading(), {}], headers={"Prefer": "respond-async"})
        assert reply.status == 202
        assert reply.headers["Preference-Applied"] == "respond-async"
        answer = reply.json
        assert [fault["pointer"] for fault in answer.pop("rejected")] == ["/1"]
        assert answer == {"accepted": 1, "rejected_count": 1}
        assert not waiting.done()
    assert (await waiting).status == 200
    # Whatever was written after it is committed after it.
    await gate.post(A, reading(metric="last"))
    assert (await gate.get("/v1/devices/demo.a")).json["metrics"] == ["durable", "last", "t"]


async def test_a_promise_is_not_given_for_what_is_all_bad(gate: Running) -> None:
    reply = await gate.post(A, reading(None), headers={"Prefer": "respond-async"})
    problem(reply, 422, "invalid")


# -- grants ----------------------------------------------------------------------------------------


async def test_writing_outside_the_grants_is_403_and_in_a_batch_a_bad_item(gate: Running) -> None:
    token = gate.token(devices=["mine.>"])
    problem(await gate.post(A, reading(), token=token), 403, "forbidden")
    mine, other = reading(device="mine.a"), reading(device="demo.a")
    reply = await gate.post("/v1/readings", [other, mine], token=token)
    assert reply.json["accepted"] == 1
    assert pointers(reply, "rejected") == [("/0/device", "forbidden")]
    problem(reply := await gate.post("/v1/readings", [other, other], token=token), 403, "forbidden")
    assert pointers(reply) == [("/0/device", "forbidden"), ("/1/device", "forbidden")]
    problem(await gate.post("/v1/readings", [other, {}], token=token), 422, "invalid")
    problem(await gate.post("/v1/readings", [mine, other], token=token, headers=STRICT), 422, "invalid")
    problem(await gate.post("/v1/readings", [mine], token=gate.token(devices=[])), 403, "forbidden")
    problem(await gate.get("/v1/devices/demo.a"), 404, "not_found")


async def test_the_first_reading_registers_its_device(gate: Running) -> None:
    await gate.post(A, reading())
    device = (await gate.get("/v1/devices/demo.a")).json
    assert (device["name"], device["labels"], device["metrics"]) == ("", {}, ["t"])
    assert device["created_at"] == device["last_seen"]
