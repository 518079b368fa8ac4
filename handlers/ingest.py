"""From the bytes of a write to readings, with a verdict per item.

The usual body is decoded in one go. Only where that fails is it taken apart, item by item, to
tell which are bad and where.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from auth.grants import Grants
from handlers.bodies import NOT_WELL_FORMED, escape, malformed, verdict
from handlers.exchange import Media
from handlers.problems import FAULTS_MAX, Fault, Problem
from handlers.schemas import DeviceItem, Item
from handlers.times import InvalidTime, parse_time
from storage.models import INTEGER_MAX, TEXT_MAX, Draft, Value, is_device, is_metric

READINGS_MAX = 10_000
# Names found valid are remembered; past this many the memory starts anew.
NAMES_MAX = 100_000


class Intake:
    """What a body holds.

    `readings` are the good ones. `faults`: the first bad items; `rejected`: how many there are,
    `forbidden`: how many of these for want of a grant.
    """

    __slots__ = (
        "_fault_items",
        "_from_values",
        "_items",
        "_single",
        "faults",
        "forbidden",
        "readings",
        "rejected",
    )

    def __init__(self) -> None:
        self.readings: list[Draft] = []
        self.faults: list[Fault] = []
        self.rejected = 0
        self.forbidden = 0
        # Per reading and per fault the number of the item that it stood in; which readings stood in
        # its `values`.
        self._items: list[int] = []
        self._fault_items: list[int] = []
        self._from_values: set[int] = set()
        self._single = False

    def pointer(self, reading: int) -> str:
        """Where reading number `reading` stood in the body."""
        base = self.base(self._items[reading])
        if reading in self._from_values:
            return f"{base}/values/{escape(self.readings[reading][1])}"
        return base

    def base(self, item: int) -> str:
        """Where an item stands in the body."""
        return "" if self._single else f"/{item}"

    def places(self) -> bytes:
        """Which items of the body the readings stood in."""
        return array("I", self._items).tobytes()

    def reject(self, item: int, place: str, code: str, detail: str) -> None:
        """Count a bad item; `place`: the pointer from the item on."""
        self.add_fault(item, Fault(self.base(item) + place, code, detail))

    def add_fault(self, item: int, fault: Fault) -> None:
        """Count a bad item."""
        self.rejected += 1
        if fault.code == "forbidden":
            self.forbidden += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(fault)
            self._fault_items.append(item)

    def with_conflicts(self, conflicts: Sequence[int], detail: str) -> list[Fault]:
        """The first bad items in the order of the body, readings that are in conflict among them."""
        placed = list(zip(self._fault_items, self.faults, strict=True))
        placed += [
            (self._items[reading], Fault(self.pointer(reading), "conflict", detail))
            for reading in conflicts[:FAULTS_MAX]
        ]
        placed.sort(key=itemgetter(0))
        return [fault for _, fault in placed[:FAULTS_MAX]]

    def is_single(self) -> None:
        """The body is one item, not an array."""
        self._single = True

    def add(self, item: int, reading: Draft) -> None:
        """Take a good reading."""
        self.readings.append(reading)
        self._items.append(item)

    def add_from_values(self, item: int, reading: Draft) -> None:
        """Take a good reading that is one of several in its item."""
        self._from_values.add(len(self.readings))
        self.add(item, reading)


class _Known:
    """A check of names that remembers those that passed."""

    __slots__ = ("_check", "names")

    def __init__(self, check: Callable[[str], bool]) -> None:
        self._check = check
        self.names: set[str] = set()

    def __call__(self, name: str) -> bool:
        if name in self.names:
            return True
        if not self._check(name):
            return False
        if len(self.names) >= NAMES_MAX:
            self.names.clear()
        self.names.add(name)
        return True


class _Form(Struct, frozen=True):
    """How bodies of one media type are decoded: into the item type, or into whatever they hold."""

    kind: type[Item]
    whole: Callable[[bytes], Any]
    anything: Callable[[bytes], Any]


def _lenient_json(body: bytes) -> Any:
    """JSON as the standard library takes it: with NaN, Infinity, 1e999, endless integers and lone
    surrogates, which some encoders write.

    So that only those values are refused, with a pointer, and not all that comes with them.
    """
    return json.loads(body.decode("utf-8"), parse_int=_lenient_integer)


def _lenient_integer(digits: str) -> int | float:
    # Python refuses to read thousands of digits; no integer of the wire has them.
    return int(digits) if len(digits) <= _DIGITS_MAX else float(digits)


def _forms(item: type[Item]) -> dict[Media, _Form]:
    whole: Any = item | list[item]  # type: ignore[valid-type]
    return {
        Media.JSON: _Form(item, msgspec.json.Decoder(whole).decode, _lenient_json),
        Media.NDJSON: _Form(item, msgspec.json.Decoder(item).decode, _lenient_json),
        Media.MSGPACK: _Form(item, msgspec.msgpack.Decoder(whole).decode, msgspec.msgpack.Decoder().decode),
    }


class Ingest:
    """Decodes the bodies of writes; one for the life of the process."""

    def __init__(self) -> None:
        self._item_forms = _forms(Item)
        self._device_item_forms = _forms(DeviceItem)
        self._known_device = _Known(is_device)
        self._known_metric = _Known(is_metric)
        self._metrics = self._known_metric.names

    def of_device(self, device: str, media: Media, body: bytes) -> Intake:
        """The body of a write to one device. Problem: malformed 400, too_large 413, invalid 422."""
        intake = Intake()
        for number, item in _items(self._item_forms[media], body, media, intake):
            self._take(device, number, item, intake)
        return _checked(intake)

    def of_any(self, grants: Grants, media: Media, body: bytes) -> Intake:
        """The body of a write whose items name their devices; those without a grant are rejected."""
        intake = Intake()
        for number, item in _items(self._device_item_forms[media], body, media, intake):
            device = item.device
            if device is UNSET:
                intake.reject(number, "", "invalid", "`device` is missing")
            elif not self._known_device(device):
                intake.reject(number, "/device", "invalid", _DEVICE_EXPECTED)
            elif not grants.allow(device):
                intake.reject(number, "/device", "forbidden", f"the token has no grant for {device}")
            else:
                self._take(device, number, item, intake)
        return _checked(intake)

    # -- items to readings ---------------------------------------------------------------------

    def _take(self, device: str, number: int, item: Item, intake: Intake) -> None:
        """Check one item and add its readings."""
        ts: int | None = None
        if item.ts is not UNSET:
            try:
                ts = parse_time(item.ts)
            except InvalidTime as error:
                intake.reject(number, "/ts", "invalid", str(error))
                return
        metric, value, values = item.metric, item.value, item.values
        if values is UNSET and value.__class__ is float and metric in self._metrics and value - value == 0.0:
            # Most items: nothing is wrong with them, as the checks below would find one by one.
            intake.add(number, (device, metric, ts, value))
        elif values is not UNSET:
            self._take_values(device, number, ts, item, values, intake)
        elif metric is UNSET or value is UNSET:
            missing = "metric" if metric is UNSET else "value"
            intake.reject(number, "", "invalid", f"`{missing}` is missing")
        elif not self._known_metric(metric):
            intake.reject(number, "/metric", "invalid", _METRIC_EXPECTED)
        elif (fault := _fault_of(value)) is not None:
            intake.reject(number, "/value", *fault)
        else:
            intake.add(number, (device, metric, ts, value))

    def _take_values(
        self,
        device: str,
        number: int,
        ts: int | None,
        item: Item,
        values: Mapping[str, Value],
        intake: Intake,
    ) -> None:
        if item.metric is not UNSET or item.value is not UNSET:
            intake.reject(number, "", "invalid", "expected either `values` or `metric` and `value`, not both")
            return
        if not values:
            intake.reject(number, "/values", "invalid", "expected at least one metric")
        for metric, value in values.items():
            if not self._known_metric(metric):
                intake.reject(number, f"/values/{escape(metric)}", "invalid", _METRIC_EXPECTED)
            elif (fault := _fault_of(value)) is not None:
                intake.reject(number, f"/values/{escape(metric)}", *fault)
            else:
                intake.add_from_values(number, (device, metric, ts, value))


def _items(form: _Form, body: bytes, media: Media, intake: Intake) -> Iterable[tuple[int, Any]]:
    """The items of a body with their numbers; those that do not fit the schema are rejected."""
    if media is Media.NDJSON:
        return _lines(form, body, intake)
    try:
        found = form.whole(body)
    except msgspec.ValidationError:
        return _apart(form, body, intake)
    except NOT_WELL_FORMED as error:
        # The standard library may take it; to blame is the value then, not the body.
        if media is Media.JSON and type(error) is not RecursionError:
            return _apart(form, body, intake)
        raise malformed(error) from error
    if type(found) is list:
        _limit(len(found))
        return enumerate(found)
    intake.is_single()
    return ((0, found),)


_DEVICE_EXPECTED = "expected a device id: 1 to 128 characters, tokens of A-Z a-z 0-9 _ - joined by dots"
_METRIC_EXPECTED = "expected a metric: 1 to 64 characters of A-Z a-z 0-9 _ . : / % -"
# A float of more digits is infinite.
_DIGITS_MAX = 1000


def _fault_of(value: Value) -> tuple[str, str] | None:
    """What is wrong with a value: its code and detail."""
    kind = type(value)
    if kind is float:
        # Only the difference of a finite number with itself is zero.
        if value - value != 0.0:  # type: ignore[operator]
            return "invalid", "expected a finite number"
    elif kind is int:
        if not -INTEGER_MAX <= value <= INTEGER_MAX:  # type: ignore[operator]
            return "invalid", "expected an integer within +-2^53"
    elif kind is str:
        text = str(value)
        if "\0" in text:
            return "invalid", "expected text without U+0000"
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return "invalid", "expected text without lone surrogates"
        if size > TEXT_MAX:
            return "too_large", f"expected text of at most {TEXT_MAX} bytes"
    return None


def _apart(form: _Form, body: bytes, intake: Intake) -> Iterator[tuple[int, Any]]:
    """The items of a body that does not fit as a whole."""
    try:
        content = form.anything(body)
    except NOT_WELL_FORMED as error:
        raise malformed(error) from error
    if type(content) is list:
        _limit(len(content))
    elif type(content) is dict:
        intake.is_single()
        content = [content]
    else:
        raise Problem(
            "invalid", "the body does not fit", [Fault("", "invalid", "expected an object or an array")]
        )
    for number, part in enumerate(content):
        yield from _fitting(form, part, number, intake)


def _fitting(form: _Form, part: object, number: int, intake: Intake) -> Iterator[tuple[int, Any]]:
    """The item that `part` is, if it fits the schema."""
    try:
        item = msgspec.convert(part, form.kind)
    except msgspec.ValidationError as error:
        intake.add_fault(number, verdict(str(error), part, intake.base(number)))
    except UnicodeEncodeError:
        intake.reject(number, "", "invalid", "expected names without lone surrogates")
    else:
        yield number, item


def _lines(form: _Form, body: bytes, intake: Intake) -> Iterator[tuple[int, Any]]:
    """The items of NDJSON: a bad line spoils only itself, empty lines are passed over."""
    found = 0
    for number, line in enumerate(body.split(b"\n")):
        if not line or line.isspace():
            continue
        found += 1
        _limit(found)
        try:
            item = form.whole(line)
        except NOT_WELL_FORMED:
            yield from _line_apart(form, line, number, intake)
        else:
            yield number, item


def _line_apart(form: _Form, line: bytes, number: int, intake: Intake) -> Iterator[tuple[int, Any]]:
    """The item of a line that does not fit as it is."""
    try:
        part = form.anything(line)
    except NOT_WELL_FORMED as error:
        intake.reject(number, "", "invalid", f"the line is not JSON: {malformed(error).detail}")
    else:
        yield from _fitting(form, part, number, intake)


def _checked(intake: Intake) -> Intake:
    count = len(intake.readings) + intake.rejected
    if 0 < count <= READINGS_MAX:
        return intake
    if count == 0:
        raise Problem(
            "invalid",
            "there is no reading in the body",
            [Fault("", "invalid", f"expected 1 to {READINGS_MAX} readings")],
        )
    _limit(count)
    return intake


def _limit(count: int) -> None:
    if count > READINGS_MAX:
        raise Problem("too_large", f"a write has at most {READINGS_MAX} readings")
