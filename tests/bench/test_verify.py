"""No target is measured that does not keep the contract: every cheat that we could think of is caught."""

from pathlib import Path

import pytest

from bench.cells import check
from bench.processes import running
from bench.scenarios import SCENARIOS
from bench.targets import load
from bench.verify import Unverified
from tests.bench.planted import planted

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
    ("batch", "stores nothing", "rows in the database after a batch was answered"),
    ("batch", "calls duplicates accepted", "expected 1000 duplicates"),
    ("batch", "no validation", "expected 1 accepted"),
    ("batch", "names no bad item", "expected the first item to be rejected"),
    ("batch", "no authentication", "expected 401 for no token"),
    ("latest", "remembers bodies", "right after it was written"),
    ("latest", "no authentication", "expected 401 for no token"),
    ("page", "ignores the cursor", "expected reading number 200"),
    ("page", "one page for all", "expected reading number 200"),
    ("page", "backwards", "expected reading number 100"),
    ("page", "leaves out offsets", "expected offset, metric, ts and value"),
    ("page", "checks no expiry", "expected 401 for an expired token"),
]


@pytest.mark.parametrize("scenario", ["hello", "write", "batch", "latest", "page"])
def test_a_target_that_keeps_the_contract_is_verified(tmp_path: Path, scenario: str) -> None:
    with planted(tmp_path / "planted.db") as subject:
        SCENARIOS[scenario].check(subject)


@pytest.mark.parametrize(("scenario", "fault", "complaint"), CHEATS)
def test_a_cheat_is_caught(tmp_path: Path, scenario: str, fault: str, complaint: str) -> None:
    with planted(tmp_path / "planted.db", fault) as subject, pytest.raises(Unverified) as caught:
        SCENARIOS[scenario].check(subject)
    assert complaint in str(caught.value)


def test_the_gate_itself_is_verified() -> None:
    with running(load()["tidegate"]) as server:
        for scenario in ("write", "latest", "batch", "page"):
            check(SCENARIOS[scenario], server)
        assert server.cpu() > 0
