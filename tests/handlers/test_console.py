"""The console as it is served; what it does in a browser is told in test_console_browser.py."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources

import pytest

from tests.handlers.wire import problem
from tests.running import Running

# A name, not an address: nothing is fetched from it.
SVG = "http://www.w3.org/2000/svg"


class Outline(HTMLParser):
    """What stands in a page: its tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.texts:
            self.texts[self._inside][-1] += data


def policy(header: str) -> dict[str, list[str]]:
    """The directives of a Content-Security-Policy."""
    directives = (directive.split() for directive in header.split(";"))
    return {name: sources for name, *sources in directives}


def source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def sources() -> Iterator[tuple[str, str]]:
    for file in resources.files("handlers").joinpath("web").iterdir():
        yield file.name, file.read_text("utf-8")


async def test_the_console_is_a_page_that_needs_no_token(gate: Running) -> None:
    reply = await gate.get("/", token="")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.body.startswith(b"<!doctype html>")
    head = await gate.call("HEAD", "/", token="")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(reply.body))
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    assert (await gate.get("/", token="", headers=browser)).body == reply.body
    problem(await gate.get("/", token="", headers={"Accept": "application/json"}), 406, "not_acceptable")


async def test_the_page_may_be_framed_by_nobody_and_tells_nobody_where_one_was(gate: Running) -> None:
    headers = (await gate.get("/", token="")).headers
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert policy(headers["Content-Security-Policy"])["frame-ancestors"] == ["'none'"]


async def test_nothing_runs_in_the_page_but_its_own_script(gate: Running) -> None:
    reply = await gate.get("/", token="")
    allowed = policy(reply.headers["Content-Security-Policy"])
    outline = Outline(reply.body.decode())
    assert allowed.pop("script-src") == list(map(source, outline.texts["script"]))
    assert allowed.pop("style-src") == list(map(source, outline.texts["style"]))
    assert allowed == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    for tag, attributes in outline.tags:
        # The policy would refuse them, and the page would not do what it seems to.
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag


async def test_the_page_is_whole_and_asks_for_nothing_from_outside(gate: Running) -> None:
    page = (await gate.get("/", token="")).body.decode()
    assert "/* console." not in page
    for name, text in sources():
        if name != "console.html":
            assert text.strip() in page, name
    own = page.replace(SVG, "")
    assert re.findall(r"\b(?:https?|wss?|ftp):|url\(|@import|\bimport\b|//[a-z0-9-]+\.", own) == []
    for tag, attributes in Outline(page).tags:
        assert tag not in ("iframe", "object", "embed", "img", "base"), tag
        assert attributes.get("src") is None, tag
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:image/svg+xml,")), href


@pytest.mark.parametrize("name", [name for name, _ in sources() if name.endswith(".js")])
def test_data_never_becomes_markup_or_code(name: str) -> None:
    text = dict(sources())[name]
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|createContextualFragment"
    )
    assert re.findall(ways + r"|\beval\b|new Function|localStorage|document\.cookie|srcdoc", text) == []


async def test_a_page_that_is_known_is_not_sent_again(gate: Running) -> None:
    first = await gate.get("/", token="")
    assert first.headers["Cache-Control"] == "no-cache"
    etag = first.headers["ETag"]
    again = await gate.get("/", token="", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", etag)
    assert "Content-Security-Policy" in again.headers
    assert (await gate.get("/", token="", headers={"If-None-Match": '"other"'})).status == 200
