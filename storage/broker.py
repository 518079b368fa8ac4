"""What processes of one gate tell each other at once. It may be lost, and then nothing is lost with it:
the database says the same a moment later.
"""

from typing import Protocol

from msgspec import Struct

from storage.models import Batch, Revocation


class Committed(Struct, frozen=True, array_like=True, tag="committed", gc=False):
    """A batch was added to the log of this epoch."""

    epoch: str
    batch: Batch


class Revoked(Struct, frozen=True, array_like=True, tag="revoked"):
    """Tokens ended before their time."""

    revocation: Revocation


class DeviceForgotten(Struct, frozen=True, array_like=True, tag="forgotten"):
    """A device was deleted when the head of the log was at `offset`."""

    device: str
    offset: int


class CacheCleared(Struct, frozen=True, array_like=True, tag="cleared"):
    """Whatever is kept of the newest values may be wrong: readings were removed, or messages were missed."""


Message = Committed | Revoked | DeviceForgotten | CacheCleared


class Figures:
    """What a broker counts. `dropped`: messages that were not sent, or had to go without an answer."""

    __slots__ = ("dropped", "received", "reconnects", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.dropped = 0
        self.reconnects = 0


class Broker(Protocol):
    """Brings messages to all other processes of the gate, as far as it can.

    Whoever makes one says who receives the messages of the others, on the event loop: never those of
    this process. Where some may have been missed, CacheCleared comes first.
    """

    figures: Figures

    @property
    def healthy(self) -> bool:
        """Whether messages pass, as far as is known."""

    def publish(self, message: Message) -> None:
        """Send it soon. Never waits and never raises."""


class Alone:
    """There is no other process."""

    healthy = True

    def __init__(self) -> None:
        self.figures = Figures()

    def publish(self, message: Message) -> None:
        """Nobody to tell."""
