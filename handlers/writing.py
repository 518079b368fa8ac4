"""Writing readings: `POST /v1/devices/{device}/readings` and `POST /v1/readings`."""

import hashlib
import re

from auth.rate_limit import Limiter
from handlers.exchange import Answer, Deferred, Request, Response
from handlers.ingest import Ingest, Intake
from handlers.parameters import device as device_of
from handlers.problems import Problem
from handlers.schemas import Promised, Written, respond
from storage.commit import GroupCommit
from storage.log import Log
from storage.models import Idempotency, Outcome, Write

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

    def of_device(self, request: Request) -> Answer:
        """Readings of the device in the path."""
        device = device_of(request)
        if not request.head.principal.grants.allow(device):
            raise Problem("forbidden", f"the token has no grant for {device}")
        return self._write(request, self._ingest.of_device(device, request.body, request.head.content))

    def of_any(self, request: Request) -> Answer:
        """Readings that name their devices."""
        intake = self._ingest.of_any(request.head.principal.grants, request.body, request.head.content)
        return self._write(request, intake)

    def _write(self, request: Request, intake: Intake) -> Answer:
        prefer = request.head.prefer
        self.rejected += intake.rejected
        if intake.rejected and (prefer.strict or not intake.readings):
            raise _refusal(request, intake)
        if self._points is not None:
            self._points.take(request.head.principal.account, len(intake.readings))
        idempotency = _idempotency(request, intake)
        write = Write(
            intake.readings,
            request.received,
            len(request.body) + _READING_SIZE * len(intake.readings),
            strict=prefer.strict,
            idempotency=idempotency,
        )
        self._commit.submit(write)
        # What an Idempotency-Key answers is known only after the commit.
        if prefer.respond_async and idempotency is None:
            answer = Promised(len(intake.readings), intake.rejected, intake.faults)
            return respond(request.head.accept, answer, 202, _applied(request, promised=True))
        return Deferred(write, lambda write: self._answer(request, intake, write))

    def _answer(self, request: Request, intake: Intake, write: Write) -> Response:
        match write.result:
            case Outcome() as outcome:
                return self._written(request, intake, outcome)
            case None:
                raise RuntimeError("an answer was rendered before its write was settled")
            case error:
                raise error

    def _written(self, request: Request, intake: Intake, outcome: Outcome) -> Response:
        rejected, faults = intake.rejected, intake.faults
        if outcome.conflicts:
            rejected += len(outcome.conflicts)
            faults = intake.with_conflicts(outcome.conflicts, _CONFLICT)
            if request.head.prefer.strict:
                applied = _applied(request, promised=False)
                raise Problem("conflict", "nothing was stored: " + _CONFLICT, faults, applied)
            if not outcome.accepted and not outcome.duplicates:
                raise Problem("invalid", "no item was stored", faults)
        state = self._log.state()
        answer = Written(
            outcome.accepted, outcome.duplicates, rejected, faults, f"{state.epoch}-{outcome.offset}"
        )
        return respond(request.head.accept, answer, 200, _applied(request, promised=False))


_CONFLICT = "another value is stored for this device, metric and ts"


def _refusal(request: Request, intake: Intake) -> Problem:
    strict = request.head.prefer.strict
    applied = _applied(request, promised=False) if strict else ()
    if intake.forbidden == intake.rejected and not intake.readings:
        return Problem("forbidden", "the token has no grant for these devices", intake.faults, applied)
    detail = f"{intake.rejected} bad of {intake.rejected + len(intake.readings)} items; nothing was stored"
    return Problem(
        "invalid", detail + (", as handling=strict asks" if strict else ""), intake.faults, applied
    )


def _idempotency(request: Request, intake: Intake) -> Idempotency | None:
    keys = request.head.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
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


def _applied(request: Request, *, promised: bool) -> tuple[tuple[str, str], ...]:
    """`Preference-Applied` with what was honoured (RFC 7240)."""
    names = []
    if request.head.prefer.strict:
        names.append("handling=strict")
    elif request.head.prefer.lenient:
        names.append("handling=lenient")
    if promised:
        names.append("respond-async")
    return (("Preference-Applied", ", ".join(names)),) if names else ()
