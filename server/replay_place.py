"""How far a replay came, kept beside the file so that the next run goes on from there."""

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from server.replay_csv import Batch


class Place(Struct, frozen=True):
    """All readings up to here are answered for. `size`, `digest`: bytes of the file and their hash.

    `of`: what it is the place of: gate and device, columns, time zone. `epoch`: the log they went to.
    """

    of: tuple[str, ...]
    readings: int = 0
    size: int = 0
    digest: str = ""
    epoch: str = ""


class Bookmark:
    """The place and its file. What touches the disk blocks: not for the event loop."""

    def __init__(self, path: Path, of: tuple[str, ...]) -> None:
        self.path = path
        self.place = Place(of)
        self._kept = self.place
        self._ahead: dict[int, Batch] = {}

    def load(self) -> bool:
        """Take the place that an earlier run left; False where there is none for the same purpose."""
        try:
            place = msgspec.json.decode(self.path.read_bytes(), type=Place)
        except (OSError, msgspec.MsgspecError):
            return False
        if place.of != self.place.of:
            return False
        self.place = self._kept = place
        return True

    def note_epoch(self, epoch: str) -> bool:
        """Note the log that readings went to; False where it is another one than before."""
        if self.place.epoch not in ("", epoch):
            return False
        self.place = msgspec.structs.replace(self.place, epoch=epoch)
        return True

    def answered(self, batch: Batch) -> None:
        """Note a batch; the place moves once everything before it is answered for too."""
        self._ahead[batch.end - len(batch.items)] = batch
        while done := self._ahead.pop(self.place.readings, None):
            self.place = Place(self.place.of, done.end, done.size, done.digest, self.place.epoch)

    def save(self) -> None:
        """Write the place if it has moved. Where it cannot be written nothing is lost but time."""
        place = self.place
        if place.readings == self._kept.readings:
            return
        draft = self.path.with_name(self.path.name + ".new")
        with contextlib.suppress(OSError):
            draft.write_bytes(msgspec.json.encode(place))
            draft.replace(self.path)
            self._kept = place

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __str__(self) -> str:
        if not self.place.readings:
            return "Nothing is answered for yet: the same command starts from the beginning."
        if self._kept.readings != self.place.readings:
            return f"{self.path} cannot be written: the same command sends all again, which doubles nothing."
        return (
            f"The same command goes on after {self.place.readings:,} readings; {self.path} keeps the place."
        )
