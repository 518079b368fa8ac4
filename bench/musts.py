"""What the gate must reach: the table Speed of issue 3, as ratios inside one run."""

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
)

DEADLINES = (
    Deadline("latest-open@tidegate", 3.0),
    Deadline("write-open@tidegate", 3.0),
    Deadline("latest-open@tidegate", 1.5, stretch=True),
    Deadline("write-open@tidegate", 1.5, stretch=True),
)
