"""One reading that the database refuses spoils only its own request (DESIGN.md, the group commit)."""

import asyncio
from pathlib import Path

import apsw

from tests.running import Running

WRITERS = 64
POISON = 666


def poison(data: Path) -> None:
    """Make the database refuse one value, behind the gate's back."""
    connection = apsw.Connection(str(data / "tidegate.db"))
    connection.set_busy_timeout(5000)
    connection.execute(
        f"CREATE TRIGGER poison BEFORE INSERT ON readings WHEN new.value = {POISON} "
        "BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
    )
    connection.close()


async def test_one_poisoned_reading_among_64_writers_fails_its_own_request_alone(gate: Running) -> None:
    await asyncio.to_thread(poison, gate.settings.data)
    for turn in range(5):
        culprit = (turn * 13) % WRITERS

        async def write(number: int, turn: int = turn, culprit: int = culprit) -> int:
            value = POISON if number == culprit else number
            items = [{"metric": "m", "ts": 10 * turn + n, "value": value if n else 1} for n in range(3)]
            answer = await gate.write(f"d{number}", *items)
            if answer.status == 422:
                assert answer.json["code"] == "invalid"
            return answer.status

        statuses = await asyncio.gather(*map(write, range(WRITERS)))
        assert statuses == [422 if number == culprit else 200 for number in range(WRITERS)]
    items = []
    page = {"next": "earliest", "end": False}
    while not page["end"]:
        page = (await gate.get(f"/v1/readings?limit=1000&since={page['next']}")).json
        items += page["items"]
    # Nothing of the poisoned requests, all of the others, no hole in the offsets.
    assert len(items) == 5 * (WRITERS - 1) * 3
    assert [item["offset"] for item in items] == list(range(1, len(items) + 1))
    assert not [item for item in items if item["value"] == POISON]
