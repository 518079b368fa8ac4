"""No target is measured that does not keep the contract: every cheat that we could think of is caught."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench import servers, verify
from bench.acceptance import examine
from bench.cells import measure
from bench.contract import Hello
from bench.scenarios import SCENARIOS
from bench.targets import load
from bench.verify import Subject, Unverified
from tests.bench import starved
from tests.bench.planted import planted, planted_postgres

CHEATS = [
    ("hello", "wrong body", 'expected the body {"ok": true}'),
    ("hello", "wrong type", "expected Content-Type: application/json"),
    ("hello", "closes", "keep-alive"),
    ("write", "stores nothing", "rows in the database after a write was answered"),
    ("write", "answers before it stores", "rows in the database after a write was answered"),
    ("write", "no authentication", "expected 401 for no token"),
    ("write", "checks no signature", "expected 401 for a token with a wrong signature"),
    ("write", "checks no expiry", "expected 401 for an expired token"),
    ("write", "takes unsigned tokens", "expected 401 for an unsigned token"),
    ("write", "no validation", "expected 422"),
    ("write", "stores what it refuses", "after writes that were refused"),
    ("write", "no headers", "expected the headers x-request-id, ratelimit, ratelimit-policy"),
    ("write", "makes ids up", "expected the X-Request-ID bench-verify-1 that was sent"),
    ("write", "no scopes", "expected 403 without readings:write"),
    ("write", "no grants", "expected 403 for a device that is not granted"),
    ("write", "takes large numbers", "expected 422 for a number beyond 2**53"),
    ("write", "takes long texts", "expected 422 for a text of 1,025 characters"),
    ("write", "takes unknown fields", "expected 422 for an unknown field"),
    ("latest", "no ETag", "expected the headers etag, cache-control, vary"),
    ("latest", "knows no ETag", "expected 304 for an ETag that is still good"),
    ("batch", "stores nothing", "rows in the database after a batch was answered"),
    ("batch", "calls duplicates accepted", "expected 1000 duplicates"),
    ("batch", "no validation", "expected 1 accepted"),
    ("batch", "names no bad item", "expected the first item to be rejected"),
    ("batch", "no authentication", "expected 401 for no token"),
    ("latest", "remembers bodies", "right after it was written"),
    ("latest", "no authentication", "expected 401 for no token"),
    ("latest-many", "one device for all", "expected the values of device 1 of many"),
    ("latest-many", "remembers bodies", "right after it was written"),
    ("page", "ignores the cursor", "expected reading number 200"),
    ("page", "one page for all", "expected reading number 200"),
    ("page", "backwards", "expected reading number 100"),
    ("page", "leaves out offsets", "expected offset, metric, ts and value"),
    ("page", "checks no expiry", "expected 401 for an expired token"),
]


@pytest.fixture(autouse=True)
def _not_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.contract.MANY", 25)


@pytest.mark.parametrize("scenario", ["hello", "write", "batch", "latest", "latest-many", "page"])
def test_a_target_that_keeps_the_contract_is_verified(tmp_path: Path, scenario: str) -> None:
    with planted(tmp_path / "planted.db") as subject:
        SCENARIOS[scenario].check(subject)


@pytest.mark.parametrize(("scenario", "fault", "complaint"), CHEATS)
def test_a_cheat_is_caught(tmp_path: Path, scenario: str, fault: str, complaint: str) -> None:
    with planted(tmp_path / "planted.db", fault) as subject, pytest.raises(Unverified) as caught:
        SCENARIOS[scenario].check(subject)
    assert complaint in str(caught.value)


def test_a_target_says_hello_where_and_as_its_description_has_it(tmp_path: Path) -> None:
    with planted(tmp_path / "planted.db") as subject:
        verify.hello(greeting(subject, Hello(body='{"ok": true}')))


@pytest.mark.parametrize(
    ("hello", "complaint"),
    [
        (Hello(body='{"ok":true}'), 'expected the body {"ok":true} to the byte: 200 '),
        (Hello("/livez"), "expected 200 for GET /livez: 401"),
    ],
)
def test_another_hello_than_described_is_caught(tmp_path: Path, hello: Hello, complaint: str) -> None:
    with planted(tmp_path / "planted.db") as subject, pytest.raises(Unverified) as caught:
        verify.hello(greeting(subject, hello))
    assert complaint in str(caught.value)


def greeting(subject: Subject, hello: Hello) -> Subject:
    return msgspec.structs.replace(subject, hello=hello)


@pytest.mark.system
def test_a_load_asks_for_hello_where_the_target_says_it() -> None:
    # Anywhere else the gate answers 404, which voids a cell.
    cell = measure(1, SCENARIOS["hello"], load()["tidegate"], 1, 1)
    assert (cell.void, cell.figures is not None) == ("", True)


def test_a_target_that_limits_its_principals_is_verified(tmp_path: Path) -> None:
    with planted(tmp_path / "planted.db", limit=60) as subject:
        verify.limited(subject)


@pytest.mark.parametrize(
    ("fault", "limit", "complaint"),
    [
        ("no limit", 60, "expected 429 within 600 requests"),
        ("", 3, "expected 20 requests before the limit, found 3"),
        ("no Retry-After", 60, "expected Retry-After"),
        ("one limit for all", 60, "expected 200 for another principal"),
        ("stores what is over the limit", 60, "after a write that was over the limit"),
    ],
)
def test_a_wrong_limit_is_caught(tmp_path: Path, fault: str, limit: int, complaint: str) -> None:
    with planted(tmp_path / "planted.db", fault, limit) as subject, pytest.raises(Unverified) as caught:
        verify.limited(subject)
    assert complaint in str(caught.value)


@pytest.fixture(scope="module")
def durable_postgresql() -> Iterator[str]:
    """PostgreSQL as the targets get it."""
    with servers.postgresql() as backing:
        # A commit that nobody waits for stays off the disk until somebody has looked, however slow.
        servers.query(backing.url, "ALTER SYSTEM SET wal_writer_delay = '10s'")
        servers.query(backing.url, "SELECT pg_reload_conf()")
        yield backing.url


@pytest.mark.system
def test_a_target_on_postgresql_is_verified(durable_postgresql: str) -> None:
    with planted_postgres(durable_postgresql) as subject:
        verify.write(subject)


@pytest.mark.system
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("no authentication", "expected 401 for no token"),
        ("answers before it stores", "rows in the database after a write was answered"),
        ("commits asynchronously", "expected each commit on the disk"),
        ("an unlogged table", "no durable table readings"),
        ("a database without synchronous_commit", "synchronous_commit = off"),
    ],
)
def test_a_cheat_on_postgresql_is_caught(durable_postgresql: str, fault: str, complaint: str) -> None:
    with planted_postgres(durable_postgresql, fault) as subject, pytest.raises(Unverified) as caught:
        verify.write(subject)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("name", ["tidegate", pytest.param("tidegate_postgres", marks=pytest.mark.system)])
def test_the_gate_itself_is_verified(name: str) -> None:
    findings = starved.first(
        lambda found: not any(finding.complaint for finding in found), lambda: list(examine(load()[name]))
    )
    assert len(findings) >= 6
    assert [str(finding) for finding in findings if finding.complaint] == []
