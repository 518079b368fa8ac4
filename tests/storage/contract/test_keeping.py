"""Devices, accounts, the state of the log, retention, the end."""

import asyncio

import pytest

from storage.errors import Conflict, NotFound, Unavailable
from storage.log import LogState
from storage.models import Client, Revocation
from tests.storage.contract.stores import Store
from tests.storage.writes import EVERYTHING, numbers


async def test_accounts_and_devices_are_kept_and_end(store: Store) -> None:
    engine = store.engine
    client = Client("c", b"\x00hash\xff", ("a", "b"), ("x.>", "y"), 60, 5)
    await engine.add_client(client)
    with pytest.raises(Conflict):
        await engine.add_client(client)
    assert await engine.client("c") == client
    assert await engine.client("d") is None
    assert await engine.clients("", 10) == [client]
    assert await engine.clients("c", 10) == []
    end = Revocation("subject", "c", 1, 2)
    await engine.remove_client("c", end)
    with pytest.raises(NotFound):
        await engine.remove_client("c", end)
    assert await engine.client("c") is None
    assert await engine.revocations() == [end]
    assert await engine.put_device("d", "n", {"b": "1", "a": "2"})
    assert (await engine.device("d")).labels == {"b": "1", "a": "2"}
    assert not await engine.put_device("d", "other", {"b": "1", "a": '"\\{}'})
    device = await engine.device("d")
    assert (device.name, device.labels) == ("other", {"b": "1", "a": '"\\{}'})
    assert (device.created_at, device.last_seen, device.metrics) == (store.now, 0, ())
    assert (await engine.latest("d")).offset == 0
    await engine.delete_device("d", readings=False)
    for ask in (engine.device("d"), engine.delete_device("d", readings=False)):
        with pytest.raises(NotFound):
            await ask


async def test_of_two_revocations_the_later_cutoff_stays_until_the_later_end(store: Store) -> None:
    for cutoff, expires in ((5, 10), (3, 20), (4, 4)):
        await store.engine.revoke(Revocation("token", "t", cutoff, expires))
    await store.engine.revoke(Revocation("subject", "t", 1, 3))
    store.now = 3_999_999
    assert await store.engine.revocations() == [
        Revocation("subject", "t", 1, 3),
        Revocation("token", "t", 5, 20),
    ]
    store.now = 21_000_000
    await store.engine.sweep(0)
    assert await store.count("revocations") == 0


async def test_clients_are_listed_in_order_of_their_bytes(store: Store) -> None:
    ids = ["B", "Z", "_", "a", "b-c", "b.c", "bc"]
    for id in reversed(ids):
        await store.engine.add_client(Client(id, b"", (), (), 0, 0))
    assert [c.id for c in await store.engine.clients("", 4)] == sorted(ids)[:4]
    assert [c.id for c in await store.engine.clients(sorted(ids)[3], 9)] == sorted(ids)[4:]


async def test_deletion_is_seen_at_once_and_swept_in_steps_while_commits_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{store.sweeping}.SWEEP_ROWS", 10)
    engine = store.engine
    await store.stored(numbers("d", "m", range(1_000)))
    await store.stored(numbers("e", "m", range(1_000)))
    await engine.delete_device("d", readings=True)
    with pytest.raises(NotFound):
        await engine.latest("d")
    page = await engine.read_from(0, engine.state().head, 5_000, EVERYTHING)
    assert {r.device for r in page.readings} == {"e"}
    sweeping = asyncio.create_task(engine.sweep(0))
    meanwhile = 0
    while not sweeping.done():
        await store.stored(numbers("d", "m", [10_000 + meanwhile]))
        meanwhile += 1
    await sweeping
    assert meanwhile >= 5
    latest = await engine.latest("d")
    assert latest.metrics["m"].ts == 9_999 + meanwhile
    assert engine.state() == LogState(engine.state().epoch, 2_000 + meanwhile, 0)
    assert await store.count("readings") == 1_000 + meanwhile


async def test_retention_raises_the_floor_that_state_tells(store: Store) -> None:
    engine = store.engine
    await store.stored(numbers("d", "m", range(10, 20)))
    for _ in range(2):
        await engine.sweep(15)
        assert engine.state() == LogState(engine.state().epoch, 10, 5)
    assert await engine.refresh() == engine.state()
    page = await engine.read_from(0, 10, 100, EVERYTHING)
    assert (page.floor, [r.offset for r in page.readings]) == (5, [6, 7, 8, 9, 10])


async def test_state_never_tells_of_a_commit_before_its_answer(store: Store) -> None:
    engine = store.engine
    await store.stored(numbers("d", "m", [10]))
    future = engine.append([numbers("d", "m", [11])])
    held = asyncio.create_task(engine.sweep(1))
    while not future.done():
        assert engine.state().head == 1
        await asyncio.sleep(0)
    await held
    assert engine.state().head == 2


async def test_a_restart_finds_the_log_where_it_was(store: Store) -> None:
    await store.stored(numbers("d", "m", range(10, 20)))
    await store.engine.sweep(12)
    before = store.engine.state()
    await store.reopen()
    assert store.engine.migrated == []
    assert store.engine.state() == before == LogState(before.epoch, 10, 2)
    assert len(before.epoch) >= 8
    assert (await store.engine.latest("d")).offset == 10


async def test_a_closed_engine_says_that_it_is_unavailable(store: Store) -> None:
    engine = store.engine
    await engine.ping()
    pending = engine.append([numbers("d", "m", [1])])
    await engine.close()
    assert pending.result().batch is not None
    for call in (engine.ping, lambda: engine.latest("d"), lambda: engine.sweep(0)):
        with pytest.raises(Unavailable):
            await call()
    await store.open()
