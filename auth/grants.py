"""Which devices a principal may touch."""

from storage.models import is_device
from storage.patterns import Pattern


class Grants:
    """The device patterns of a token. None of them means no device."""

    __slots__ = ("_known", "patterns")

    # Verdicts remembered per device id; past it the memory starts anew.
    KNOWN_MAX = 4096

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns
        self._known: dict[str, bool] = {}

    def allow(self, device: str) -> bool:
        """Whether one of the patterns takes in this device id."""
        known = self._known.get(device)
        if known is None:
            if len(self._known) >= self.KNOWN_MAX:
                self._known.clear()
            known = is_device(device) and any(pattern.matches(device) for pattern in self.patterns)
            self._known[device] = known
        return known
