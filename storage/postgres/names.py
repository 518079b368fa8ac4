"""What a process remembers of series: their ids and their names."""

from collections.abc import Iterable

Name = tuple[str, str]


class Names:
    """Ids by (device, metric) and back, as of one generation of the log.

    Whoever forgets a device raises the generation under the lock of the log, so ids of another
    generation may be those of deleted series. `None` by id: there is no such series any more; ids
    never come back.
    """

    __slots__ = ("by_id", "by_name", "generation")

    # Entries kept in memory each way; past it the memory starts anew.
    MAX = 100_000

    def __init__(self) -> None:
        self.generation = -1
        self.by_name: dict[Name, int] = {}
        self.by_id: dict[int, Name | None] = {}

    def follow(self, generation: int) -> None:
        """What was remembered holds no longer if the generation is another one."""
        if generation != self.generation:
            self.generation = generation
            self.by_name.clear()
            self.by_id.clear()

    def learn(self, found: Iterable[tuple[Name, int]]) -> None:
        """Remember these."""
        for name, id in found:
            self.by_name[name] = id
            self.by_id[id] = name

    def trim(self) -> None:
        """Keep the memory bounded."""
        if len(self.by_name) > self.MAX:
            self.by_name.clear()
        if len(self.by_id) > self.MAX:
            self.by_id.clear()
