"""What is measured in-process: a table of paths through the gate."""

import itertools
from collections.abc import Callable, Iterator

from msgspec import Struct

from bench import contract
from bench.micro.gate import CONNECTIONS

Requests = Iterator[bytes]


class Path(Struct, frozen=True):
    """A path through the gate.

    `requests` gives, for a token, requests without end. `answer` is in every answer. `connections`:
    how many requests are under way at a time. `count`: requests of one measurement.
    """

    name: str
    meaning: str
    requests: Callable[[str], Requests]
    answer: bytes
    connections: int = CONNECTIONS
    count: int = 4096


def _known(method: str, target: str, body: bytes = b"") -> Callable[[str], Requests]:
    def requests(token: str) -> Requests:
        return itertools.repeat(contract.request(method, target, token, body))

    return requests


def _cold(method: str, target: str, body: bytes = b"") -> Callable[[str], Requests]:
    def requests(token: str) -> Requests:
        for number in itertools.count():
            yield contract.request(method, target, token, body, f"X-Request-ID: bench-{number:012}\r\n")

    return requests


def _batches(token: str) -> Requests:
    for number in itertools.count():
        yield contract.request("POST", contract.BATCHES, token, contract.batch(number))


_ACCEPTED = b'{"accepted":1,"duplicates":0,'
_LATEST = b'"value":21.5'

PATHS = {
    path.name: path
    for path in (
        Path("latest", "GET latest, known head", _known("GET", contract.LATEST), _LATEST, count=8192),
        Path("latest-cold", "GET latest, a head of its own each", _cold("GET", contract.LATEST), _LATEST),
        Path(
            "write",
            "POST one reading, known head, committed by 64",
            _known("POST", contract.READINGS, contract.READING),
            _ACCEPTED,
        ),
        Path(
            "write-cold",
            "POST one reading, a head of its own each, committed by 64",
            _cold("POST", contract.READINGS, contract.READING),
            _ACCEPTED,
        ),
        Path("batch", "POST 1,000 readings (JSON)", _batches, b'{"accepted":1000,', connections=1, count=20),
        Path(
            "page",
            "GET a range page of 100 readings",
            _known("GET", contract.PAGE_QUERY),
            b'"next":"',
            count=640,
        ),
    )
}


def preparations(token: str) -> list[bytes]:
    """What must be stored before; each is a write."""
    return [
        contract.request("POST", contract.READINGS, token, contract.latest_readings()),
        contract.request("POST", contract.PAGES, token, contract.page_readings()),
    ]
