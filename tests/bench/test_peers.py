"""Every target that keeps readings keeps the contract; its environment is made by its own pins."""

import pytest

from bench.acceptance import examine
from bench.targets import load, prepare

PEERS = [name for name, target in load().items() if target.limited and target.environment != "house"]


def test_the_peers_are_many() -> None:
    assert len(PEERS) >= 20


@pytest.mark.system
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_keeps_the_contract(name: str) -> None:
    target = load()[name]
    prepare(target)
    assert [f"{name}: {finding}" for finding in examine(target) if finding.complaint] == []
