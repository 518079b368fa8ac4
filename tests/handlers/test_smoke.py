from tests.running import Running


async def test_a_reading_is_read_back(gate: Running) -> None:
    reply = await gate.write("demo.a", {"metric": "t", "value": 1.5, "ts": 1000})
    assert reply.status == 200, reply
    assert reply.json["accepted"] == 1
    reply = await gate.get("/v1/devices/demo.a/latest")
    assert reply.json["metrics"]["t"]["value"] == 1.5
    assert (await gate.get("/metrics")).status == 200
    assert (await gate.get("/readyz")).status == 200
