"""A file system for SQLite that fails when it is told to."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import apsw

NAME = "faulty"


class Faults(apsw.VFS):
    """SQLite's own file system, in which calls of xWrite and xSync fail from the n-th after `arm(n)` on.

    `broken`: handles whose xSync has failed; `touched`: those of them that were written or synced
    all the same afterwards.
    """

    def __init__(self) -> None:
        super().__init__(NAME, "")
        self._numbers = count(1)
        self._failing = range(0)
        self._error = apsw.SQLITE_IOERR_WRITE
        self.calls = 0
        self.hits = 0
        self.broken: set[int] = set()
        self.touched: set[int] = set()

    def arm(self, n: int, error: int = apsw.SQLITE_IOERR, times: int = 1) -> None:
        """Let so many calls fail, the n-th from now on and those after it; 0: none."""
        self._failing = range(n, n + times) if n else range(0)
        self._error, self.calls, self.hits = error, 0, 0

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open a file."""
        return _File(self, next(self._numbers), name, flags)

    def step(self, handle: int, *, sync: bool) -> None:
        """Count a call, and fail if it is the one."""
        self.calls += 1
        if self.calls in self._failing:
            self.hits += 1
            if sync:
                self.broken.add(handle)
            raise apsw.exception_for(self._error)
        if handle in self.broken:
            self.touched.add(handle)

    def excepthook(self, *_: object) -> bool:
        """The errors are wanted: they need not be printed."""
        return True


class _File(apsw.VFSFile):
    def __init__(
        self, faults: Faults, number: int, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__("", name, flags)
        self._faults = faults
        self._number = number

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._faults.step(self._number, sync=False)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._faults.step(self._number, sync=True)
        super().xSync(flags)

    def excepthook(self, *_: object) -> bool:
        """As above."""
        return True


@contextmanager
def faults() -> Iterator[Faults]:
    """The file system, registered under NAME."""
    made = Faults()
    try:
        yield made
    finally:
        made.unregister()
