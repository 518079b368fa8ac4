"""From a Response to the bytes on the wire: the one place where answers are spelled out."""

from http import HTTPStatus

from handlers.exchange import Response

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
# Answers that have no body, and no length of one (RFC 9110 section 8.6).
_BODILESS = (204, 304)


class Encoder:
    """Encodes answers; `tick` tells it the date once a second."""

    def __init__(self) -> None:
        self._date = ""
        # How an answer begins in this second, by status.
        self._starts: dict[int, str] = {}

    def tick(self, date: str) -> None:
        """A new second: `date` as an IMF-fixdate (RFC 9110 section 5.6.7)."""
        self._date = date
        self._starts.clear()

    def encode(
        self,
        response: Response,
        request_id: str,
        extra: str = "",
        *,
        bodiless: bool = False,
        connection: str = "",
        chunked: bool = False,
    ) -> bytes:
        """The whole answer, or only its head if the body comes in chunks or was not asked for (HEAD).

        `extra`: further header lines, each with its end. `connection`: what `Connection` says, if anything.
        """
        status, body = response.status, response.body
        start = self._starts.get(status) or self._start(status)
        more = ""
        if response.headers:
            more = _lines(response.headers)
        if connection:
            more += f"Connection: {connection}\r\n"
        content_type = response.content_type
        whole = response.chunks is None and status not in _BODILESS
        if whole and content_type:
            # Nearly all answers, in one piece.
            head = (
                f"{start}{request_id}\r\n{extra}{response.lines}{more}"
                f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode("latin-1", "replace")
            return head if bodiless else head + body
        if content_type:
            more += f"Content-Type: {content_type}\r\n"
        if chunked:
            more += "Transfer-Encoding: chunked\r\n"
        elif whole:
            more += f"Content-Length: {len(body)}\r\n"
        head = f"{start}{request_id}\r\n{extra}{response.lines}{more}\r\n".encode("latin-1", "replace")
        return head + body if whole and not bodiless else head

    def _start(self, status: int) -> str:
        start = (
            f"{_STATUS_LINES[status]}Date: {self._date}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: "
        )
        self._starts[status] = start
        return start


def _lines(headers: tuple[tuple[str, str], ...]) -> str:
    lines = ""
    for name, value in headers:
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line break in the header {name}")
        lines += f"{name}: {value}\r\n"
    return lines
