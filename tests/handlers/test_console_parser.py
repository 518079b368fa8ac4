"""The console's parser of event streams, against the letter of the HTML standard."""

import random
from importlib import resources

import pytest

from tests.browser import Browser

pytestmark = pytest.mark.system

Event = tuple[str, str | None, str]


def reference(stream: bytes) -> list[Event]:
    """The events of a whole stream, by the letter of the HTML standard: type, data, last event id."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events: list[Event] = []
    data: list[str] = []
    kind, last = "", ""
    for line in lines:
        name, colon, content = line.partition(":")
        content = content.removeprefix(" ")
        if not line:
            events.append((kind or "message", "\n".join(data) if data else None, last))
            data, kind = [], ""
        elif colon and not name:
            continue
        elif name == "data":
            data.append(content)
        elif name == "event":
            kind = content
        elif name == "id" and "\0" not in content:
            last = content
    return events


PIECES = [
    b"data", b"data:", b"data: ", b"data:  two", b"id", b"id:", b"id: 1-2", b"id: a\0b", b"event: reading",
    b"event:", b": ping", b":", b"retry: 10", b"retry: x", b"other: 1", b"datax: 1", b"data : 1",
    "data: gr\u00fc\u00df \U0001f30a".encode(), b"data: \xff\xfe", b'data: {"a": 1}', b" data: 1",
    b"\xef\xbb\xbfdata: bom",
]  # fmt: skip
PARSE = """
return arguments[0].map((pieces) => {
  const found = [];
  const parser = new EventParser(({ type, data, id }) => found.push([type, data, id]));
  for (const piece of pieces) parser.feed(Uint8Array.from(piece));
  return found;
});
"""


async def test_event_streams_are_read_as_the_html_standard_says_however_they_are_cut(
    browser: Browser,
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    cases = []
    for _ in range(400):
        lines = (
            chance.choice([*PIECES, b"", b""]) + chance.choice([b"\n", b"\r", b"\r\n"]) for _ in range(20)
        )
        stream = b"".join(lines)
        if stream.endswith(b"\r"):
            # Whether a line feed follows is not known yet: the standard does not say to wait for it.
            stream += b"\n"
        cuts = sorted(chance.sample(range(1, len(stream)), chance.randrange(min(len(stream) - 1, 30))))
        bounds = zip([0, *cuts], [*cuts, len(stream)], strict=True)
        cases.append((stream, [list(stream[a:b]) for a, b in bounds]))
    source = resources.files("handlers").joinpath("web", "events.js").read_text("utf-8")
    await browser.open("about:blank")
    found = await browser.run(source + PARSE, [pieces for _, pieces in cases])
    for (stream, pieces), events in zip(cases, found, strict=True):
        assert [tuple(event) for event in events] == reference(stream), (stream, list(map(len, pieces)))
