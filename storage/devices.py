"""Devices: what every engine offers to keep them."""

from typing import Protocol

from storage.models import Device
from storage.patterns import Selection


class Devices(Protocol):
    """The registered devices. Every call has a deadline; errors: Unavailable, Timeout, NotFound, Full."""

    async def device(self, device: str) -> Device:
        """The device with this id; NotFound."""

    async def devices(self, selection: Selection, after: str, limit: int) -> list[Device]:
        """Selected devices with an id greater than `after`, in order of id."""

    async def put_device(self, device: str, name: str, labels: dict[str, str]) -> bool:
        """Register a device or change its name and labels; True if it is new."""

    async def delete_device(self, device: str, *, readings: bool) -> None:
        """Forget a device, with `readings` all that it wrote; NotFound."""
