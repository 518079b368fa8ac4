"""Gates die and come back behind nginx while devices write: what was answered is stored, once."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.deploy.nodes import Writer, two_nodes

pytestmark = pytest.mark.system


async def test_a_gate_killed_under_load_loses_no_write_that_was_answered(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as nodes:
        stop = asyncio.Event()
        writers = [Writer(nodes, f"d{number}", keyed=False) for number in range(16)]
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(stop))
            await _progress(writers, 300)
            await nodes.nodes[0].end(signal.SIGKILL)
            await _progress(writers, 300)
            await nodes.nodes[0].start()
            await _progress(writers, 300)
            await nodes.nodes[1].end(signal.SIGTERM)
            await _progress(writers, 300)
            await nodes.nodes[1].start()
            await _progress(writers, 300)
            stop.set()
        stored = await nodes.stored()
        acked = {(writer.device, value) for writer in writers for value in writer.acked}
        assert acked - stored.keys() == set()
        # Only what a gate had in its hands when it went was answered otherwise.
        answers = sum((writer.answers for writer in writers), Counter[int]())
        assert answers[200] == len(acked)
        assert answers[0] == answers[409] == 0
        assert answers[503] <= 2 * len(writers), answers


async def _progress(writers: list[Writer], count: int) -> None:
    """Wait until so many more were answered."""
    goal = sum(len(writer.acked) for writer in writers) + count
    async with asyncio.timeout(20):
        while sum(len(writer.acked) for writer in writers) < goal:
            await asyncio.sleep(0.01)
