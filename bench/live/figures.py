"""What a cell of the streams found, beside its rate."""

from msgspec import Struct


class Live(Struct, frozen=True):
    """Figures of streams.

    `deliveries`: readings times followers, all verified; `size`: bytes of one, framed. `commit_readings`:
    readings per transaction, where the target tells. `growth`: bytes by which the server's memory grew under
    the load. `follower_kib`: memory of one idle follower.
    """

    deliveries: int = 0
    size: float = 0.0
    commit_readings: float = 0.0
    growth: int = 0
    follower_kib: float = 0.0
