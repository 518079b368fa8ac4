"""The paths of the micro benchmarks answer what they say, and a path that does not is no figure."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from bench.micro.drive import Driver, prepare
from bench.micro.gate import InProcess, in_process
from bench.micro.paths import PATHS


@pytest.fixture
async def in_gate() -> AsyncIterator[InProcess]:
    async with in_process() as gate:
        yield gate


@pytest.mark.parametrize("name", PATHS)
async def test_a_path_gives_its_answers(in_gate: InProcess, name: str) -> None:
    driver = await prepare(in_gate, PATHS[name])
    assert await driver.run(3) >= 0
    memo = in_gate.gate.memo
    if "cold" in name:
        assert len(memo) <= 2
    else:
        assert memo.hits > 0


async def test_an_answer_that_is_not_the_path_s_ends_the_measurement(in_gate: InProcess) -> None:
    path = msgspec.structs.replace(PATHS["latest"], answer=b"something else")
    with pytest.raises(RuntimeError, match="expected 200 with b'something else'"):
        await prepare(in_gate, path)


async def test_a_refusal_ends_the_measurement(in_gate: InProcess) -> None:
    with pytest.raises(RuntimeError, match="expected 200"):
        await Driver(in_gate, PATHS["write"], "not.a.token").run(1)
