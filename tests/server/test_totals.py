from hypothesis import given
from hypothesis import strategies as st

from server.totals import Family, Merge, Sample, Totals


def family(name: str, value: float, merge: Merge = Merge.SUM, kind: str = "counter", **labels: str) -> Family:
    return Family(name, kind, "Help.", merge, [Sample(name, labels, value)])


def values(totals: Totals) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in totals.families()
        for sample in family.samples
    }


def test_what_can_be_added_up_is_the_rest_is_the_greatest_the_least_or_one_each() -> None:
    totals = Totals()
    for worker in ("0", "1"):
        count = float(worker) + 1
        totals.add(
            [
                family("requests", count, route="/a"),
                family("head", count * 10, Merge.MAX, "gauge"),
                family("healthy", count - 1, Merge.MIN, "gauge"),
                family("memory", count, Merge.WORKER, "gauge"),
            ],
            worker,
        )
    totals.add([family("requests", 5, route="/b"), family("memory", 9, Merge.WORKER, "gauge")])
    assert values(totals) == {
        ("requests", (("route", "/a"),)): 3,
        ("requests", (("route", "/b"),)): 5,
        ("head", ()): 20,
        ("healthy", ()): 0,
        ("memory", (("worker", "0"),)): 1,
        ("memory", (("worker", "1"),)): 2,
    }


def test_only_what_was_counted_lasts() -> None:
    assert family("a", 1).lasting
    assert family("a", 1, kind="histogram").lasting
    assert not family("a", 1, kind="gauge").lasting
    # The time of a processor that one process took is no part of what the next one takes.
    assert not family("a", 1, Merge.WORKER).lasting


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_sums_of_sums_are_the_same(counts: list[int]) -> None:
    flat, nested = Totals(), Totals()
    for count in counts:
        flat.add([family("a", count)])
        before = nested.families()
        nested = Totals()
        nested.add(before)
        nested.add([family("a", count)])
    assert values(flat) == values(nested)
