"""The micro benchmark of the hub checks what each follower gets, and sees who gets too much or too little."""

import itertools

import pytest

from bench.live.scenarios import LIVE
from bench.micro.hub import MATCHES, WORKLOADS, Bench, Workload, measure
from bench.verify import Unverified
from handlers.hub import Hub
from storage.models import Batch


@pytest.mark.parametrize("workload", [Workload(10), Workload(200), Workload(50, 7), Workload(50, cold=True)])
def test_each_follower_gets_what_is_for_it(workload: Workload) -> None:
    bench = Bench(workload, keep=True)
    bench.check()
    # All filters are different, so that nothing is shared between them.
    assert bench.hub.filters == workload.filters
    assert sum(map(len, bench.kept)) > 0


def test_ten_followers_get_a_reading_however_many_filters_there_are() -> None:
    for filters in (10, 200):
        bench = Bench(Workload(filters))
        for batch in itertools.islice(bench.batches(), 30):
            bench.hub.publish(batch)
        assert bench.hub.figures.delivered == 30 * MATCHES


def test_a_hub_that_loses_a_batch_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Hub._deliver

    def losing(self: Hub, batch: Batch) -> None:
        if batch.first != 17:
            deliver(self, batch)

    monkeypatch.setattr(Hub, "_deliver", losing)
    with pytest.raises(Unverified, match="expected"):
        Bench(Workload(20), keep=True).check()


def test_a_hub_that_delivers_twice_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Hub._deliver

    def doubling(self: Hub, batch: Batch) -> None:
        deliver(self, batch)
        if batch.first == 4_000:
            deliver(self, batch)

    monkeypatch.setattr(Hub, "_deliver", doubling)
    with pytest.raises(Unverified, match="deliveries, counted"):
        measure(Workload(10), 0.2)


def test_every_workload_is_a_scenario() -> None:
    assert set(WORKLOADS) == {name for name, scenario in LIVE.items() if scenario.kind == "loop"}
