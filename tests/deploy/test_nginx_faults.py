"""Gates die and come back behind nginx while devices write: what was answered is stored, once."""

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.deploy.nodes import Writer, two_nodes

pytestmark = pytest.mark.system


async def test_a_gate_killed_under_load_loses_no_write_that_was_answered_and_doubles_none(
    tmp_path: Path, postgres_url: str
) -> None:
    """Promise: a gate may go at any time, by SIGKILL or by SIGTERM.

    Of the writes that nginx must not repeat only those are answered 503 which that gate had in its hands;
    those with an Idempotency-Key are answered 200 all the same.
    """
    async with two_nodes(tmp_path, DATABASE_URL=postgres_url) as nodes:
        stop = asyncio.Event()
        timed = [Writer(nodes, f"timed{number}", keyed=False) for number in range(8)]
        keyed = [Writer(nodes, f"keyed{number}", keyed=True) for number in range(8)]
        writers = [*timed, *keyed]
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(stop))
            for node, number in zip(nodes.nodes, (signal.SIGKILL, signal.SIGTERM), strict=True):
                await _progress(writers, 300)
                await node.end(number)
                await _progress(writers, 300)
                await node.start()
            await _progress(writers, 300)
            stop.set()
        log = await nodes.stored()
    assert [item["offset"] for item in log] == list(range(1, len(log) + 1))
    stored = Counter((item["device"], item["value"]) for item in log)
    assert set(stored.values()) == {1}
    assert {(writer.device, value) for writer in writers for value in writer.acked} == stored.keys()
    answers = [sum((writer.answers for writer in some), Counter[int]()) for some in (timed, keyed)]
    assert answers[0].keys() <= {200, 503}
    assert answers[0][503] <= 2 * len(timed), answers
    assert answers[1].keys() == {200}, answers


async def _progress(writers: Sequence[Writer], count: int) -> None:
    """Wait until so many more were answered."""
    goal = sum(len(writer.acked) for writer in writers) + count
    async with asyncio.timeout(20):
        while sum(len(writer.acked) for writer in writers) < goal:
            await asyncio.sleep(0.01)
