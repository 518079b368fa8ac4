"""What the gate must reach: the tables Speed of issues 3 and 5, as ratios inside one run."""

from msgspec import Struct


class Must(Struct, frozen=True):
    """`cell` at `against` must be at least `factor`; `stretch` is what would be better."""

    cell: str
    against: str
    factor: float
    stretch: bool = False


class Deadline(Struct, frozen=True):
    """The open loop's p99 of `cell` must be at most `milliseconds`, for writes over what the disk takes."""

    cell: str
    milliseconds: float
    stretch: bool = False


class Cost(Struct, frozen=True):
    """The target's CPU for each request of `cell` must be at most `factor` of what `against` takes.

    All its processes count, what runs beside it does not.
    """

    cell: str
    against: str
    factor: float
    stretch: bool = False


L1 = "hello@raw_httptools"

MUSTS = (
    Must("latest@tidegate", L1, 0.70),
    Must("write@tidegate", L1, 0.50),
    Must("latest-cold@tidegate", L1, 0.45),
    Must("write-cold@tidegate", L1, 0.35),
    Must("batch@tidegate", "batch@bare_sqlite", 0.6),
    Must("page@tidegate", "page@fastapi_sqlite", 8.0),
    Must("latest@tidegate", L1, 0.85, stretch=True),
    Must("latest@tidegate", "hello@freastal_asgi", 1.0, stretch=True),
    Must("latest@tidegate", "hello@fastapi_sqlite", 9.0, stretch=True),
    Must("write@tidegate", L1, 0.65, stretch=True),
    Must("write@tidegate", "hello@granian_rsgi", 1.0, stretch=True),
    Must("latest-cold@tidegate", L1, 0.55, stretch=True),
    Must("write-cold@tidegate", L1, 0.45, stretch=True),
    Must("batch@tidegate", "batch@bare_sqlite", 0.8, stretch=True),
    # Issue 5, measured by `bench growing`.
    *(
        must
        for name in ("write", "write-256")
        for must in (
            Must(f"{name}@tidegate_postgres", f"{name}@fastapi_asyncpg", 12.0),
            Must(f"{name}@tidegate_postgres", f"{name}@aiohttp_aiopg", 6.0),
            Must(f"{name}@tidegate_postgres", f"{name}@fastapi_asyncpg", 20.0, stretch=True),
        )
    ),
    Must("batch@tidegate_postgres", "batch@psql_copy", 0.5),
    Must("batch@tidegate_postgres", "batch@psql_copy", 0.8, stretch=True),
    Must("latest-many@tidegate_miss", "latest-many@uvicorn_uncached", 1.0),
    Must("latest-many@tidegate_redis", "latest-many@tidegate_miss", 5.0),
)

# Two workers against one, then limits that are shared against those of a process.
COSTS = (
    Cost("latest@tidegate_two", "latest@tidegate_postgres", 1.1),
    Cost("page@tidegate_two", "page@tidegate_postgres", 1.1),
    Cost("latest@tidegate_two", "latest@tidegate_postgres", 1.0, stretch=True),
    Cost("page@tidegate_two", "page@tidegate_postgres", 1.0, stretch=True),
    Cost("latest@tidegate_shared", "latest@tidegate_postgres", 1.05),
    Cost("write@tidegate_shared", "write@tidegate_postgres", 1.05),
    Cost("latest@tidegate_two_shared", "latest@tidegate_two", 1.05),
    Cost("write@tidegate_two_shared", "write@tidegate_two", 1.05),
)

DEADLINES = (
    Deadline("latest-open@tidegate", 3.0),
    Deadline("write-open@tidegate", 3.0),
    Deadline("latest-open@tidegate", 1.5, stretch=True),
    Deadline("write-open@tidegate", 1.5, stretch=True),
)
