"""A writer in a process of its own, so that what it measures is the gate.

`python -m tests.reliability.writing PORT TOKEN FIRST PID` writes small batches until its standard input
ends. Then it prints how many seconds each took, as a JSON array, less those that other processes took from
this one or the gate, whose process has the id PID.
"""

import asyncio
import http.client
import json
import random
import select
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.running import PATIENCE, ROOT, GateProcess
from tests.watching import own_time

DEVICES = 100


def write(port: int, token: str, first: int, pid: int) -> list[float]:
    """Write readings with values from `first` on until told to stop; the seconds that each batch took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    chance, took, value = random.Random(first), [], first
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        items = [
            {"device": f"d{ts % DEVICES}", "metric": "m", "ts": ts, "value": ts}
            for ts in range(value, value + chance.choice((1, 5, 20)))
        ]
        value += len(items)
        begun = own_time(pid)
        connection.request("POST", "/v1/readings", json.dumps(items), headers)
        answer = connection.getresponse()
        body = answer.read()
        took.append(own_time(pid) - begun)
        assert answer.status == 200, body
        assert json.loads(body)["accepted"] == len(items), body
    connection.close()
    return took


class Writing:
    """What a writer process has measured; complete when it has ended."""

    def __init__(self) -> None:
        self.took: list[float] = []


@asynccontextmanager
async def writer_process(gate: GateProcess, first: int) -> AsyncIterator[Writing]:
    """Let another process write as long as the context lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.reliability.writing", str(gate.port), gate.token(), str(first), str(gate.process.pid)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    writing = Writing()
    try:
        yield writing
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate(b"")
        assert process.returncode == 0
        writing.took = sorted(json.loads(output))
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


if __name__ == "__main__":
    print(json.dumps(write(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
