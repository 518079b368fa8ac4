import asyncio

import pytest

from auth.grants import Grants
from auth.principal import Principal, Scope
from auth.revocation import MARGIN, Revocations
from storage.errors import NotFound, Unavailable
from storage.models import Client, Revocation
from tests.auth.doubles import ISSUER, MemoryAccounts
from tests.clock import NOW, Clock

LIFETIME = 3600


class Worker:
    """The revocations of one process, with the changes it was told of counted."""

    def __init__(self, accounts: MemoryAccounts, clock: Clock) -> None:
        self.changes = 0
        self.revocations = Revocations(accounts, self.count, issuer=ISSUER, lifetime=LIFETIME, clock=clock)

    def count(self) -> None:
        self.changes += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts() -> MemoryAccounts:
    return MemoryAccounts()


@pytest.fixture
def worker(accounts: MemoryAccounts, clock: Clock) -> Worker:
    return Worker(accounts, clock)


def holder(
    subject: str = "boiler", token_id: str = "one", issued: float = NOW, issuer: str = ISSUER
) -> Principal:
    return Principal(subject, issuer, subject, Scope.NONE, Grants(()), token_id, issued, issued + LIFETIME)


async def add(accounts: MemoryAccounts, id: str) -> None:
    await accounts.add_client(Client(id, b"", (), (), 0, 0))


async def test_a_revoked_token_is_ended_and_no_other(worker: Worker) -> None:
    await worker.revocations.revoke_token("one", NOW + 60)
    assert worker.revocations.is_revoked(holder())
    assert not worker.revocations.is_revoked(holder(token_id="two"))
    assert not worker.revocations.is_revoked(holder(token_id=""))
    assert worker.changes == 1


async def test_token_ids_of_two_issuers_are_two_tokens(worker: Worker) -> None:
    await worker.revocations.revoke_token("one", NOW + 60, "https://other.example")
    assert not worker.revocations.is_revoked(holder())
    assert worker.revocations.is_revoked(holder(issuer="https://other.example"))


async def test_removing_a_client_ends_the_tokens_it_had(worker: Worker, accounts: MemoryAccounts) -> None:
    await add(accounts, "boiler")
    await worker.revocations.remove_client("boiler")
    assert await accounts.client("boiler") is None
    assert worker.revocations.cutoff("boiler") == NOW + MARGIN
    assert worker.revocations.is_revoked(holder(issued=NOW - LIFETIME))
    assert worker.revocations.is_revoked(holder(issued=NOW + MARGIN))
    assert not worker.revocations.is_revoked(holder(issued=NOW + MARGIN + 1))
    assert not worker.revocations.is_revoked(holder(subject="pump"))
    assert worker.changes == 1


async def test_a_subject_of_another_issuer_is_not_our_client(
    worker: Worker, accounts: MemoryAccounts
) -> None:
    await add(accounts, "boiler")
    await worker.revocations.remove_client("boiler")
    assert not worker.revocations.is_revoked(holder(issuer="https://other.example"))


async def test_removing_a_client_twice_in_a_second_ends_the_tokens_between(
    worker: Worker, accounts: MemoryAccounts
) -> None:
    for _ in range(2):
        await add(accounts, "boiler")
        issued = worker.revocations.cutoff("boiler") + 1
        await worker.revocations.remove_client("boiler")
        assert worker.revocations.is_revoked(holder(issued=issued))


async def test_removing_nobody_changes_nothing(worker: Worker) -> None:
    with pytest.raises(NotFound):
        await worker.revocations.remove_client("nobody")
    assert worker.revocations.cutoff("nobody") == 0
    assert worker.changes == 0


async def test_another_worker_learns_of_it_at_the_next_refresh(
    accounts: MemoryAccounts, clock: Clock
) -> None:
    one, two = Worker(accounts, clock), Worker(accounts, clock)
    await add(accounts, "boiler")
    await one.revocations.remove_client("boiler")
    await one.revocations.revoke_token("two", NOW + 60)
    assert not two.revocations.is_revoked(holder())
    await two.revocations.refresh()
    assert two.revocations.is_revoked(holder())
    assert two.revocations.is_revoked(holder(subject="pump", token_id="two"))
    assert two.changes == 1


async def test_a_refresh_that_brings_nothing_new_is_no_change(worker: Worker) -> None:
    await worker.revocations.revoke_token("one", NOW + 60)
    await worker.revocations.refresh()
    assert worker.changes == 1


async def test_a_refresh_that_read_before_a_revocation_does_not_undo_it(clock: Clock) -> None:
    class Slow(MemoryAccounts):
        async def revocations(self) -> list[Revocation]:
            read = await super().revocations()
            await asyncio.sleep(0.01)
            return read

    worker = Worker(Slow(), clock)
    refresh = asyncio.create_task(worker.revocations.refresh())
    await asyncio.sleep(0)
    await worker.revocations.revoke_token("one", NOW + 60)
    await refresh
    assert worker.revocations.is_revoked(holder())


async def test_what_cannot_be_stored_is_not_revoked_here_only(clock: Clock) -> None:
    class Away(MemoryAccounts):
        async def revoke(self, revocation: Revocation) -> None:
            raise Unavailable("away")

    worker = Worker(Away(), clock)
    with pytest.raises(Unavailable):
        await worker.revocations.revoke_token("one", NOW + 60)
    assert not worker.revocations.is_revoked(holder())
    assert worker.changes == 0


async def test_revocations_are_forgotten_when_no_token_can_be_alive(
    worker: Worker, accounts: MemoryAccounts, clock: Clock
) -> None:
    await add(accounts, "boiler")
    await worker.revocations.remove_client("boiler")
    await worker.revocations.revoke_token("one", NOW + 59.5)
    clock.now = NOW + 59.9
    await worker.revocations.refresh()
    assert len(worker.revocations) == 2
    clock.now = NOW + 60
    await worker.revocations.refresh()
    assert len(worker.revocations) == 1
    # The last token that the cut-off ends was issued in its second and lived as long as one may.
    clock.now = NOW + MARGIN + LIFETIME - 0.1
    await worker.revocations.refresh()
    assert len(worker.revocations) == 1
    clock.now = NOW + MARGIN + LIFETIME
    await worker.revocations.refresh()
    assert len(worker.revocations) == 0
    assert worker.changes == 2
