"""Order is that of bytes, whatever language the database speaks."""

import pytest

from tests.servers.postgres import PostgresServer
from tests.storage.contract.stores import PostgresStore, opened
from tests.storage.writes import EVERYTHING, numbers

# In English order: a, a_, A, a.b, b, B, z or the like.
NAMES = ["B", "Z", "_", "a", "a-b", "a.b", "a_", "aB", "ab", "b", "z"]


# The wheel's PostgreSQL has no ICU.
@pytest.mark.system
async def test_lists_are_in_order_of_bytes_in_a_database_of_another_language(
    postgres_server: PostgresServer,
) -> None:
    name = "test_english"
    await postgres_server.query(
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
    )
    try:
        assert (await postgres_server.query("SELECT 'a' < 'B'", database=name)) == [(True,)]
        async with opened(PostgresStore(postgres_server.database_url(name))) as store:
            await store.stored(*(numbers(name, metric, [1]) for name in NAMES for metric in NAMES))
            engine = store.engine
            devices, latest, after = [], [], ""
            while page := await engine.devices(EVERYTHING, after, 2):
                devices += page
                latest += await engine.latest_page(EVERYTHING, after, 2)
                after = page[-1].device
            assert [d.device for d in devices] == [each.device for each in latest] == sorted(NAMES)
            assert all(list(d.metrics) == sorted(NAMES) for d in devices)
            assert all(list(each.metrics) == sorted(NAMES) for each in latest)
    finally:
        await postgres_server.drop_database(name)
