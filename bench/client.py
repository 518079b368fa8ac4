"""A careful client on one connection, for verification."""

import http.client
import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

TIMEOUT = 30.0


class Answer(Struct, frozen=True):
    """An answer that has been read; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; ValueError."""
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


class Client:
    """One connection, opened again where the server closes it; `reopened` counts how often."""

    def __init__(self, url: str, token: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT)
        self._token = token
        self.reopened = -1

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A whole exchange; `token`: the client's if None, "" sends none. OSError, HTTPException."""
        sent = dict(headers or {})
        bearer = self._token if token is None else token
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        if body:
            sent["Content-Type"] = "application/json"
        if self._connection.sock is None:
            self.reopened += 1
        self._connection.request(method, path, body or None, sent)
        response = self._connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
