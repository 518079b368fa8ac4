"""From a Response to the bytes on the wire: the one place where answers are spelled out."""

from http import HTTPStatus

from handlers.exchange import Response

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
# Answers that have no body, and no length of one (RFC 9110 section 8.6).
_BODILESS = (204, 304)


class Encoder:
    """Encodes answers. `date`: what stands in `Date`, set once a second by `tick`."""

    def __init__(self) -> None:
        self.date = ""

    def tick(self, date: str) -> None:
        """A new second: `date` as an IMF-fixdate (RFC 9110 section 5.6.7)."""
        self.date = date

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
        status = response.status
        head = (
            f"{_STATUS_LINES[status]}Date: {self.date}\r\nX-Request-ID: {request_id}\r\n"
            f"X-Content-Type-Options: nosniff\r\n{extra}"
        )
        if response.headers:
            head += _lines(response.headers)
        if response.content_type:
            head += f"Content-Type: {response.content_type}\r\n"
        if chunked:
            head += "Transfer-Encoding: chunked\r\n"
        elif response.chunks is None and status not in _BODILESS:
            head += f"Content-Length: {len(response.body)}\r\n"
        if connection:
            head += f"Connection: {connection}\r\n"
        head += "\r\n"
        if bodiless or response.chunks is not None or status in _BODILESS:
            return head.encode("latin-1", "replace")
        return head.encode("latin-1", "replace") + response.body


def _lines(headers: tuple[tuple[str, str], ...]) -> str:
    lines = ""
    for name, value in headers:
        if "\r" in value or "\n" in value:
            raise ValueError(f"a line break in the header {name}")
        lines += f"{name}: {value}\r\n"
    return lines
