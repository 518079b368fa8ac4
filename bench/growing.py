"""`bench growing`: the table Speed of issue 5, one engine and one process against another.

What is measured here alone are variants of targets by settings, and a floor (`group = "growing"`); a full run
does without them.
"""

from collections.abc import Iterable

GROUP = "growing"

# By scenario, who is asked it.
_ASKED: dict[str, tuple[str, ...]] = {
    "write": (
        "tidegate_postgres",
        "fastapi_asyncpg",
        "aiohttp_aiopg",
        "tidegate_shared",
        "tidegate_two",
        "tidegate_two_shared",
    ),
    "write-256": ("tidegate_postgres", "fastapi_asyncpg", "aiohttp_aiopg"),
    "batch": ("tidegate_postgres", "psql_copy"),
    "latest-many": ("tidegate_miss", "tidegate_redis", "uvicorn_uncached"),
    "latest": ("tidegate_postgres", "tidegate_two", "tidegate_shared", "tidegate_two_shared"),
    "page": ("tidegate_postgres", "tidegate_two"),
}


def cells(every: Iterable[str]) -> list[str]:
    """Of all cells those of the group."""
    wanted = {f"{scenario}@{target}" for scenario, targets in _ASKED.items() for target in targets}
    return [name for name in every if name in wanted]
