"""Tasks end when their owner says so, whatever becomes of a cancellation."""

import asyncio
import contextlib

import pytest

from storage import tasks


async def test_a_task_that_loses_its_first_cancellation_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN", 0.05)
    waiting, lost = asyncio.Event(), 0

    async def deaf() -> None:
        nonlocal lost
        with contextlib.suppress(asyncio.CancelledError):
            waiting.set()
            await asyncio.Event().wait()
        lost += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await waiting.wait()
    async with asyncio.timeout(10):
        await tasks.end(task)
    assert task.cancelled()
    assert lost == 1


async def test_a_task_has_cleaned_up_when_its_end_is_told() -> None:
    waiting, cleaned = asyncio.Event(), False

    async def tidy() -> None:
        nonlocal cleaned
        try:
            waiting.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned = True

    task = asyncio.create_task(tidy())
    await waiting.wait()
    await tasks.end(task)
    assert cleaned
    assert task.cancelling() == 1


async def test_what_a_task_ended_with_is_kept_for_who_watches_it() -> None:
    async def broken() -> None:
        raise ArithmeticError

    task = asyncio.create_task(broken())
    await asyncio.wait((task,))
    await tasks.end(task)
    assert isinstance(task.exception(), ArithmeticError)
