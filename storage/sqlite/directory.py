"""The data directory: one process at a time, and the newest head that was ever seen in it."""

import fcntl
import os
from pathlib import Path

from storage.errors import StorageError


class DirectoryLocked(StorageError):
    """Another process works with this data directory."""


class DataDirectory:
    """A data directory held by this process until `release`. Makes it (0700) if there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"the data directory {path} cannot be used: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise DirectoryLocked(f"another tidegate works with the data directory {path}") from error

    @property
    def database(self) -> Path:
        """The file of the embedded database."""
        return self.path / "tidegate.db"

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


class HeadFile:
    """Remembers epoch and head outside the database.

    A database that is behind it was put back from a copy: positions given out since then may name
    other readings, so the log needs a new epoch. It is written after each commit without a sync,
    so it is never ahead of a database that survived the same crash.
    """

    _WIDTH = 64

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"the file {path} cannot be used: {error}") from error

    def read(self) -> tuple[str, int] | None:
        """Epoch and head, None if nothing sensible was ever written."""
        parts = os.pread(self._file, self._WIDTH, 0).decode("ascii", "replace").split()
        if len(parts) != 2 or not parts[1].isdigit():
            return None
        return parts[0], int(parts[1])

    def write(self, epoch: str, head: int) -> None:
        """Remember; on a full disk the file keeps its older, smaller head, which is safe."""
        try:
            os.pwrite(self._file, f"{epoch} {head}".ljust(self._WIDTH).encode(), 0)
        except OSError:
            return

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
