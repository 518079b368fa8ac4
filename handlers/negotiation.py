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
}
_NAMES = {
    Media.JSON: "application/json",
    Media.MSGPACK: "application/msgpack",
    Media.NDJSON: "application/x-ndjson",
    Media.CSV: "text/csv",
    Media.FORM: "application/x-www-form-urlencoded",
    Media.TEXT: "text/plain",
    Media.HTML: "text/html",
}
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.ASCII)


def media_names(media: tuple[Media, ...]) -> str:
    """The types by name, for messages and for `Accept` in answers."""
    return ", ".join(_NAMES[one] for one in media)


def accepted(header: str, offers: tuple[Media, ...]) -> Media | None:
    """The offer that the client likes best, None if it accepts none.

    The first offer is the default: it wins wherever a wildcard takes it in, so that browsers, who
    list HTML and then everything, get it too.
    """
    if not header or header == "*/*":
        return offers[0]
    best: tuple[float, int, int] | None = None
    chosen = None
    for order, part in enumerate(header.split(",")):
        name, _, parameters = part.partition(";")
        quality = _quality(parameters)
        if quality == 0:
            continue
        found = _offer(name.strip().lower(), offers)
        if found is None:
            continue
        media, specific = found
        rank = (quality, specific, -order)
        if best is None or rank > best:
            best, chosen = rank, media
    return chosen


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


def _offer(name: str, offers: tuple[Media, ...]) -> tuple[Media, int] | None:
    """The offer that a media range takes in, and how specific the range is."""
    if name == "*/*":
        return offers[0], 0
    kind, _, sub = name.partition("/")
    if sub == "*":
        for offer in offers:
            if _NAMES[offer].startswith(kind + "/"):
                return offer, 1
        return None
    media = MEDIA_TYPES.get(name)
    return (media, 2) if media is not None and media in offers else None
