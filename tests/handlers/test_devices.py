from typing import Any

import pytest

from handlers.devices import LABEL_MAX, LABELS_MAX, NAME_MAX
from tests.handlers.wire import all_items, pointers, problem
from tests.running import Running

A = "/v1/devices/demo.a"
READING = {"metric": "t", "value": 1, "ts": 1000}


async def test_a_device_is_made_with_201_and_changed_with_200(gate: Running) -> None:
    reply = await gate.call("PUT", A, {"name": "Boiler", "labels": {"plant": "7", "ä": ""}})
    assert reply.status == 201
    assert reply.headers["Location"] == A
    device = reply.json
    assert set(device) == {"device", "name", "labels", "created_at", "last_seen", "metrics"}
    assert (device["device"], device["name"], device["labels"]) == (
        "demo.a",
        "Boiler",
        {"plant": "7", "ä": ""},
    )
    assert (device["last_seen"], device["metrics"]) == (None, [])
    reply = await gate.call("PUT", A, {"name": "Kettle"})
    assert (reply.status, reply.json["name"], reply.json["labels"]) == (200, "Kettle", {})
    assert reply.json["created_at"] == device["created_at"]
    assert (await gate.get(A)).json == reply.json


async def test_writing_keeps_the_name_and_says_when_and_what(gate: Running) -> None:
    await gate.call("PUT", A, {"name": "Boiler"})
    await gate.write("demo.a", {**READING, "metric": "z"}, {**READING, "metric": "a"})
    device = (await gate.get(A)).json
    assert device["name"] == "Boiler"
    assert device["metrics"] == ["a", "z"]
    assert device["last_seen"] >= device["created_at"]


async def test_devices_are_listed_by_pattern_in_pages(gate: Running) -> None:
    names = [f"demo.p{n % 3}.d{n:02}" for n in range(20)]
    await gate.post("/v1/readings", [{**READING, "device": name} for name in [*names, "demo", "other.x"]])
    for match, expected in (
        ("", [*names, "demo", "other.x"]),
        ("match=demo.%3E", names),
        ("match=demo.p1.*", [name for name in names if ".p1." in name]),
        ("match=*.p1.*&match=*.p2.%3E", [name for name in names if ".p0." not in name]),
        ("match=*", ["demo"]),
        ("match=demo", ["demo"]),
        ("match=*.x&match=other.x", ["other.x"]),
    ):
        items = await all_items(gate, f"/v1/devices?limit=3&{match}")
        assert [item["device"] for item in items] == sorted(expected), match
        assert all(item["metrics"] == ["t"] for item in items)


async def test_a_deleted_device_is_gone_and_its_readings_stay_unless_told(gate: Running) -> None:
    await gate.write("demo.a", READING)
    reply = await gate.call("DELETE", A)
    assert (reply.status, reply.body) == (204, b"")
    assert "Content-Length" not in reply.headers
    for path in (A, A + "/latest", A + "/readings"):
        problem(await gate.get(path), 404, "not_found")
    problem(await gate.call("DELETE", A), 404, "not_found")
    assert len((await gate.get("/v1/readings")).json["items"]) == 1
    assert (await gate.write("demo.a", READING)).json["duplicates"] == 1


@pytest.mark.parametrize("query", ["?readings=false", ""])
async def test_a_device_that_comes_back_finds_the_readings_that_stayed(gate: Running, query: str) -> None:
    await gate.write("demo.a", READING)
    assert (await gate.call("DELETE", A + query)).status == 204
    await gate.write("demo.a", {**READING, "ts": 2000})
    assert len((await gate.get(A + "/readings")).json["items"]) == 2


async def test_with_its_readings_a_device_is_gone_from_every_answer_at_once(gate: Running) -> None:
    await gate.write("demo.a", READING, {**READING, "metric": "u"})
    await gate.write("demo.b", READING)
    assert (await gate.get(A + "/latest")).status == 200
    assert (await gate.call("DELETE", A + "?readings=true")).status == 204
    for path in (A, A + "/latest", A + "/readings"):
        problem(await gate.get(path), 404, "not_found")
    assert [item["device"] for item in (await gate.get("/v1/readings")).json["items"]] == ["demo.b"]
    reply = await gate.write("demo.a", {**READING, "value": 2})
    assert reply.json["accepted"] == 1
    assert list((await gate.get(A + "/latest")).json["metrics"]) == ["t"]
    assert '"device_removed"' in gate.logged()


async def test_devices_outside_the_grants_do_not_exist_for_a_token(gate: Running) -> None:
    await gate.write("demo.a", READING)
    token = gate.token(devices=["mine.>"])
    problem(await gate.get(A, token=token), 404, "not_found")
    problem(await gate.call("PUT", A, {}, token=token), 404, "not_found")
    problem(await gate.call("PUT", "/v1/devices/demo.new", {}, token=token), 404, "not_found")
    problem(await gate.call("DELETE", A, token=token), 404, "not_found")
    assert (await gate.call("PUT", "/v1/devices/mine.x", {}, token=token)).status == 201
    assert (await gate.get(A)).status == 200


async def test_what_cannot_be_a_device_id_is_404(gate: Running) -> None:
    for name in ("a..b", "a%20b", "a" * 129, "%C3%A4"):
        for method in ("GET", "PUT", "DELETE"):
            content: Any = {} if method == "PUT" else None
            problem(await gate.call(method, f"/v1/devices/{name}", content), 404, "not_found")


@pytest.mark.parametrize(
    ("content", "pointer"),
    [
        ({"name": 1}, "/name"),
        ({"name": "x" * (NAME_MAX + 1)}, "/name"),
        ({"name": "a\0b"}, "/name"),
        ({"nickname": "x"}, "/nickname"),
        ({"labels": []}, "/labels"),
        ({"labels": {"a": 1}}, "/labels"),
        ({"labels": {"": "x"}}, "/labels/"),
        ({"labels": {"a/b~c": "x" * (LABEL_MAX + 1)}}, "/labels/a~1b~0c"),
        ({"labels": {"k" * (LABEL_MAX + 1): "x"}}, "/labels"),
        ({"labels": {"k": "\0"}}, "/labels/k"),
        ({"labels": {str(n): "" for n in range(LABELS_MAX + 1)}}, "/labels"),
        ([], ""),
        ("text", ""),
    ],
)
async def test_a_bad_description_is_422_with_a_pointer(gate: Running, content: Any, pointer: str) -> None:
    problem(reply := await gate.call("PUT", A, content), 422, "invalid")
    assert [place for place, _ in pointers(reply)] == [pointer]
    problem(await gate.get(A), 404, "not_found")


async def test_a_bad_parameter_of_devices_is_400_and_named(gate: Running) -> None:
    await gate.write("demo.a", READING)
    for method, path, name in (
        ("DELETE", A + "?readings=maybe", "readings"),
        ("GET", "/v1/devices?match=a%20b", "match"),
        ("GET", "/v1/devices?limit=0", "limit"),
        ("GET", A + "?time=x", "time"),
    ):
        document = problem(await gate.call(method, path), 400, "invalid_parameter")
        assert document["detail"].startswith(name + ": ")
    assert (await gate.get(A)).status == 200
