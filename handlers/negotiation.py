"""What a client wants and what it sends: Accept, Content-Type, Prefer (RFC 9110, RFC 7240)."""

import re

from handlers.exchange import Media, Preferences

MEDIA_TYPES = {
    "application/json": Media.JSON,
    "application/msgpack": Media.MSGPACK,
    "application/x-msgpack": Media.MSGPACK,
    "application/vnd.msgpack": Media.MSGPACK,
    "application/x-ndjson": Media.NDJSON,
    "text/csv": Media.CSV,
    "application/x-www-form-urlencoded": Media.FORM,
    "text/plain": Media.TEXT,
    "text/html": Media.HTML,
    "text/event-stream": Media.EVENTS,
}
_NAMES = {
    Media.JSON: "application/json",
    Media.MSGPACK: "application/msgpack",
    Media.NDJSON: "application/x-ndjson",
    Media.CSV: "text/csv",
    Media.FORM: "application/x-www-form-urlencoded",
    Media.TEXT: "text/plain",
    Media.HTML: "text/html",
    Media.EVENTS: "text/event-stream",
}
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.ASCII)


def media_names(media: tuple[Media, ...]) -> str:
    """The types by name, for messages and for `Accept` in answers."""
    return ", ".join(_NAMES[one] for one in media)


def accepted(header: str, offers: tuple[Media, ...]) -> Media | None:
    """The offer that the client likes best, None if it accepts none (RFC 9110 section 12.5.1).

    For each offer the most specific range that takes it in counts. Of those liked equally well the
    one that is named, or named first, wins; then the first offer, so that browsers, who list HTML and
    then everything, get the default.
    """
    ranges = [part for part in header.split(",") if part.strip()]
    if not ranges or header == "*/*":
        return offers[0]
    found = [_verdict(offer, ranges) for offer in offers]
    best = max(found)
    return offers[found.index(best)] if best[0] > 0 else None


def content_media(header: str) -> Media | None:
    """The media type of a body, None if it is not known here."""
    return MEDIA_TYPES.get(header.partition(";")[0].strip().lower())


def preferences(headers: list[str]) -> Preferences:
    """The preferences that are honoured; of `handling` the first one counts."""
    if not headers:
        return _NONE
    handling = ""
    respond_async = False
    for part in ",".join(headers).split(","):
        name, _, value = part.partition(";")[0].strip().lower().partition("=")
        value = value.strip().strip('"')
        if name.strip() == "handling" and not handling:
            handling = value
        elif name.strip() == "respond-async":
            respond_async = True
    return Preferences(handling == "strict", handling == "lenient", respond_async)


_NONE = Preferences()


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        found = _QUALITY.fullmatch(parameter.strip().lower())
        if found is not None:
            return float(found[1])
    return 1.0


def _verdict(offer: Media, ranges: list[str]) -> tuple[float, int, int]:
    """How well an offer is liked: quality, how specific the range is, and minus its place."""
    closest = (0.0, -1, 0)
    for order, part in enumerate(ranges):
        name, _, parameters = part.partition(";")
        specific = _specific(name.strip().lower(), offer)
        if specific > closest[1]:
            closest = (_quality(parameters), specific, -order)
    return closest if closest[1] == _NAMED else (closest[0], closest[1], 0)


# How specific a media range is.
_NAMED = 2


def _specific(name: str, offer: Media) -> int:
    """How specific a media range is that takes in this offer, -1 if it does not."""
    if name == "*/*":
        return 0
    if name.endswith("/*"):
        return 1 if _NAMES[offer].startswith(name[:-1]) else -1
    return _NAMED if MEDIA_TYPES.get(name) is offer else -1
