"""Devices: list, look up, describe, remove."""

from collections.abc import Callable

import msgspec

from handlers import parameters
from handlers.bodies import decode, escape
from handlers.exchange import Media, Request, Response
from handlers.pages import cursor, page
from handlers.parameters import readable_device, selection, stamp
from handlers.problems import Fault, Problem
from handlers.schemas import DeviceIn, DeviceOut, respond
from handlers.times import Stamp
from storage.devices import Devices
from storage.models import Device

NAME_MAX = 200
LABELS_MAX = 64
LABEL_MAX = 256

_decoders: dict[Media, Callable[[bytes], DeviceIn]] = {
    Media.JSON: msgspec.json.Decoder(DeviceIn).decode,
    Media.MSGPACK: msgspec.msgpack.Decoder(DeviceIn).decode,
}
_YES_NO = {"true": True, "false": False}


class DeviceHandlers:
    """Handlers of devices. `forget(device)` and `audit(event, **fields)` are told of removals."""

    def __init__(self, devices: Devices, forget: Callable[[str], None], audit: Callable[..., None]) -> None:
        self._devices = devices
        self._forget = forget
        self._audit = audit

    async def list(self, request: Request) -> Response:
        """`GET /v1/devices?match=`."""
        limit, style = parameters.limit(request.head.query), stamp(request.head)
        after = cursor(request.head.query, str) or ""
        found = await self._devices.devices(selection(request.head), after, limit + 1)
        items = [_shown(device, style) for device in found[:limit]]
        return page(request, items, found[limit - 1].device if len(found) > limit else None)

    async def get(self, request: Request) -> Response:
        """`GET /v1/devices/{device}`."""
        device = await self._devices.device(readable_device(request.head))
        return respond(request.head.accept, _shown(device, stamp(request.head)))

    async def put(self, request: Request) -> Response:
        """`PUT /v1/devices/{device}`: 201 for a new one, 200 for a known one."""
        name = readable_device(request.head)
        content = decode(_decoders[request.head.content], request.body)
        _check(content)
        created = await self._devices.put_device(name, content.name, content.labels)
        device = await self._devices.device(name)
        headers = (("Location", f"/v1/devices/{name}"),) if created else ()
        return respond(
            request.head.accept, _shown(device, stamp(request.head)), 201 if created else 200, headers
        )

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/devices/{device}`, with `?readings=true` all that it wrote too."""
        name = readable_device(request.head)
        readings = parameters.choice(request.head.query, "readings", _YES_NO, False)
        await self._devices.delete_device(name, readings=readings)
        self._forget(name)
        self._audit(
            "device_removed",
            device=name,
            readings=readings,
            by=request.head.principal.subject,
            request_id=request.id,
        )
        return Response(204)


def _check(content: DeviceIn) -> None:
    faults = []
    if len(content.name) > NAME_MAX or not _is_text(content.name):
        faults.append(Fault("/name", "invalid", f"expected text of at most {NAME_MAX} characters"))
    if len(content.labels) > LABELS_MAX:
        faults.append(Fault("/labels", "too_large", f"expected at most {LABELS_MAX} labels"))
    for key, value in content.labels.items():
        if not 0 < len(key) <= LABEL_MAX or len(value) > LABEL_MAX or not _is_text(key + value):
            pointer = "/labels/" + escape(key) if len(key) <= LABEL_MAX else "/labels"
            faults.append(Fault(pointer, "invalid", f"expected names and texts of at most {LABEL_MAX}"))
    if faults:
        raise Problem("invalid", "the description of the device is invalid", faults)


def _is_text(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(device: Device, style: Stamp) -> DeviceOut:
    return DeviceOut(
        device.device,
        device.name,
        device.labels,
        style(device.created_at),
        style(device.last_seen) if device.last_seen else None,
        device.metrics,
    )
