"""The newest readings in memory."""

from hypothesis import given
from hypothesis import strategies as st

from handlers.live.window import READING_SIZE, Window
from storage.models import Batch, Reading


def batch(first: int, last: int, *, holes: bool = False, text: int = 0) -> Batch:
    value = "x" * text if text else 1
    offsets = range(first, last + 1, 2 if holes else 1)
    return Batch(first, last, [Reading(offset, "a", "t", offset, value) for offset in offsets])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 7), st.booleans()), max_size=30),
    capacity=st.integers(1, 40),
    start=st.integers(0, 5),
)
def test_the_window_has_all_behind_its_edge_and_no_more_than_it_may(
    sizes: list[tuple[int, bool]], capacity: int, start: int
) -> None:
    window = Window(start, capacity * READING_SIZE)
    head, everything = start, []
    for size, holes in sizes:
        new = batch(head + 1, head + size, holes=holes)
        head += size
        everything += [reading.offset for reading in new.readings]
        window.add(new)
        assert window.size <= capacity * READING_SIZE
        for offset in range(window.after, head + 1):
            found = [reading.offset for reading in window.after_offset(offset)]
            assert found == [o for o in everything if o > offset]
    assert window.after >= start


def test_long_texts_count() -> None:
    window = Window(0, 10_000)
    for number in range(100):
        window.add(batch(number + 1, number + 1, text=1000))
    assert 90 <= window.after <= 93


def test_what_is_gone_is_let_go() -> None:
    window = Window(0, 100 * READING_SIZE)
    for number in range(10_000):
        window.add(batch(number + 1, number + 1))
    assert len(window._batches) < 2_500
    assert sum(len(kept.readings) for kept in window._batches) == 100
