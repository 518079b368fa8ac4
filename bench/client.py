"""A careful client on one connection, for verification."""

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from bench import contract

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
    """One connection, opened again where the server closes it; `reopened` counts how often.

    A request goes out in one piece, as a load sends it: servers that refuse by the head alone may hang up on
    a body that comes behind.
    """

    def __init__(self, url: str, token: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)
        self._socket: socket.socket | None = None
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
        bearer = self._token if token is None else token
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        if self._socket is None:
            self.reopened += 1
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT)
        self._socket.sendall(contract.request(method, path, bearer, body, lines))
        response = http.client.HTTPResponse(self._socket, method=method)
        try:
            response.begin()
            names = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, names, response.read())
            if response.will_close:
                self.close()
        finally:
            response.close()
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
