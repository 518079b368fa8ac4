"""What a replay understands of the gate's answers (API.md, "Writing" and "Common")."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec
from msgspec import Struct

from server.replay_csv import REJECTS_SHOWN, Batch, Reject

AGAIN = frozenset((408, 429, 502, 503, 504, 507))  # answers that may be better next time
BACKOFF = 0.2  # seconds before the first retry, doubled for each further one
BACKOFF_MAX = 10.0


class Fault(Struct):
    """One bad item, in a problem or in an answer's `rejected`."""

    pointer: str = ""
    code: str = ""
    detail: str = ""


class Answer(Struct):
    """The answer to a write that was taken, in part at least."""

    accepted: int
    duplicates: int
    rejected_count: int
    rejected: list[Fault]
    position: str

    @property
    def epoch(self) -> str:
        """The log that the readings went to."""
        return self.position.rpartition("-")[0]


class Problem(Struct):
    """A refusal (RFC 9457)."""

    title: str = ""
    detail: str = ""
    errors: list[Fault] = []

    def about_items(self, batch: Batch) -> bool:
        """Whether it is about single readings of the batch and nothing else."""
        return bool(self.errors) and None not in [index_of(fault, batch) for fault in self.errors]


def read_problem(body: bytes) -> Problem:
    """Read a problem document; what is none becomes the detail of one."""
    try:
        return msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        return Problem(detail=body[:200].decode(errors="replace").strip())


def index_of(fault: Fault, batch: Batch) -> int | None:
    """Which item of the batch a pointer such as /3/value points into."""
    index = fault.pointer.removeprefix("/").partition("/")[0]
    return int(index) if index.isdecimal() and int(index[:9]) < len(batch.items) else None


def rejects_of(faults: list[Fault], batch: Batch) -> list[Reject]:
    """The faults with the lines of the file that they point to."""
    found = [(index_of(fault, batch), fault) for fault in faults]
    return [
        Reject(batch.lines[index], batch.items[index].metric, fault.code, fault.detail)
        for index, fault in found
        if index is not None
    ]


def refusal(status: int, problem: Problem, batch: Batch, device: str) -> str:
    """Tell a person why a batch was refused, where in the file that is, and what may help."""
    text = f"the gate refused lines {batch.lines[0]:,} to {batch.lines[-1]:,} with {status}"
    text = ": ".join(part for part in (text, problem.title, problem.detail) if part)
    lines = [str(reject) for reject in rejects_of(problem.errors[:REJECTS_SHOWN], batch)]
    if not lines:
        lines = [f"{fault.pointer}: {fault.code}: {fault.detail}" for fault in problem.errors[:REJECTS_SHOWN]]
    if status in (401, 403):
        scope = f'--scope readings:write --devices "{device}"'
        lines.append(f"a token that may: tidegate token --sub replay {scope}")
    if status == 413:
        lines.append("smaller requests: --batch")
    return "\n  ".join([text, *lines])


def backoff(attempt: int) -> float:
    """Seconds to wait before retry number `attempt`, from 1; half of it is chance."""
    return min(BACKOFF * 2.0 ** min(attempt - 1, 16), BACKOFF_MAX) * random.uniform(0.5, 1.0)  # noqa: S311


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the gate asks to wait: 0 where it says nothing that can be understood."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
