"""Writing readings: `POST /v1/devices/{device}/readings` and `POST /v1/readings`."""

import hashlib
import re
from collections.abc import Callable
from functools import partial

from auth.rate_limit import Limiter
from handlers.exchange import Answer, Deferred, Handler, Head, Preferences, Request, Response
from handlers.ingest import Ingest, Intake
from handlers.parameters import device as device_of
from handlers.problems import Problem
from handlers.schemas import Promised, Written, representation, respond
from storage.commit import GroupCommit
from storage.errors import StorageError
from storage.log import Log
from storage.models import Idempotency, Result, Write

# draft-ietf-httpapi-idempotency-key-header: a structured field string; a bare token is taken too.
_KEY = re.compile(r'"([\x20-\x7e]{1,255})"|([\x21\x23-\x7e][\x21-\x7e]{0,254})', re.ASCII)

# What a reading in the queue costs beside its bytes.
_READING_SIZE = 200


class Writing:
    """Handlers that write. `points`: the limit in readings, None if there is none."""

    def __init__(self, commit: GroupCommit, log: Log, points: Limiter | None) -> None:
        self._commit = commit
        self._log = log
        self._points = points
        self._ingest = Ingest()
        # Items refused before the commit was asked.
        self.rejected = 0

    def of_device(self, head: Head) -> Handler:
        """Readings of the device in the path."""
        device = device_of(head)
        if not head.principal.grants.allow(device):
            raise Problem("forbidden", f"the token has no grant for {device}")
        return self._handler(head, partial(self._ingest.of_device, device, head.content))

    def of_any(self, head: Head) -> Handler:
        """Readings that name their devices."""
        return self._handler(head, partial(self._ingest.of_any, head.principal.grants, head.content))

    def _handler(self, head: Head, read: Callable[[bytes], Intake]) -> Handler:
        """A handler that stores what `read` finds in a body."""
        prefer, account, points, submit = (
            head.prefer,
            head.principal.account,
            self._points,
            self._commit.submit,
        )
        strict, keyed = prefer.strict, "Idempotency-Key" in head.headers
        # What an Idempotency-Key answers is known only after the commit.
        promises = prefer.respond_async and not keyed
        render = partial(self._render, head, _applied(prefer, promised=False), *representation(head.accept))

        def write(request: Request) -> Answer:
            body = request.body
            intake = read(body)
            readings = intake.readings
            if intake.rejected:
                self.rejected += intake.rejected
                if strict or not readings:
                    raise _refusal(head, intake)
            count = len(readings)
            if points is not None:
                points.take(account, count)
            idempotency = _idempotency(request, intake) if keyed else None
            size = len(body) + _READING_SIZE * count
            write = Write(readings, request.received, size, strict, idempotency)
            submit(write)
            if promises:
                answer = Promised(count, intake.rejected, intake.faults)
                return respond(head.accept, answer, 202, _applied(prefer, promised=True))
            return Deferred(write, partial(render, intake))

        return write

    def _render(
        self,
        head: Head,
        applied: tuple[tuple[str, str], ...],
        encode: Callable[[object], bytes],
        content_type: str,
        intake: Intake,
        result: Result,
    ) -> Response:
        """The answer to a write from what became of it."""
        if isinstance(result, StorageError):
            raise result
        rejected, faults = intake.rejected, intake.faults
        if result.conflicts:
            rejected += len(result.conflicts)
            faults = intake.with_conflicts(result.conflicts, _CONFLICT)
            if head.prefer.strict:
                raise Problem("conflict", "nothing was stored: " + _CONFLICT, faults, applied)
            if not result.accepted and not result.duplicates:
                raise Problem("invalid", "no item was stored", faults)
        position = f"{self._log.state().epoch}-{result.offset}"
        written = Written(result.accepted, result.duplicates, rejected, faults, position)
        return Response(200, encode(written), content_type, applied)


_CONFLICT = "another value is stored for this device, metric and ts"


def _refusal(head: Head, intake: Intake) -> Problem:
    strict = head.prefer.strict
    applied = _applied(head.prefer, promised=False) if strict else ()
    if intake.forbidden == intake.rejected and not intake.readings:
        return Problem("forbidden", "the token has no grant for these devices", intake.faults, applied)
    detail = f"{intake.rejected} bad of {intake.rejected + len(intake.readings)} items; nothing was stored"
    return Problem(
        "invalid", detail + (", as handling=strict asks" if strict else ""), intake.faults, applied
    )


def _idempotency(request: Request, intake: Intake) -> Idempotency:
    keys = request.head.headers.getall("Idempotency-Key", [])
    found = _KEY.fullmatch(keys[0])
    if found is None or len(keys) > 1:
        raise Problem("malformed", "Idempotency-Key: expected 1 to 255 printable characters, once")
    head = request.head
    digest = hashlib.blake2b(digest_size=16)
    strict = b"strict" if head.prefer.strict else b""
    # With other grants the same body is another write: its answer would speak of other items.
    places = intake.places() if intake.forbidden else b""
    for part in (head.raw_path.encode(), bytes((head.content,)), strict, places, request.body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return Idempotency(head.principal.account, found[1] or found[2], digest.digest())


def _applied(prefer: Preferences, *, promised: bool) -> tuple[tuple[str, str], ...]:
    """`Preference-Applied` with what was honoured (RFC 7240)."""
    names = []
    if prefer.strict:
        names.append("handling=strict")
    elif prefer.lenient:
        names.append("handling=lenient")
    if promised:
        names.append("respond-async")
    return (("Preference-Applied", ", ".join(names)),) if names else ()
