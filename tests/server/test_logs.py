import asyncio
import io
import json
import logging
import os
import select
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from tests.running import PATIENCE

LOGGER = logging.getLogger("tidegate.test")
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkZW1vIn0.c2lnbmF0dXJl"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----"


class Capture:
    """Logging set up on a file; `lines` ends it and gives what was written."""

    def __init__(self, file: Path, level: str, *, access_log: bool) -> None:
        self.file = file
        self.fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.logs = logs.setup(level, access_log, self.fd)

    def lines(self) -> list[dict[str, Any]]:
        self.close()
        return [json.loads(line) for line in self.file.read_bytes().splitlines()]

    def close(self) -> None:
        if self.fd >= 0:
            self.logs.close()
            os.close(self.fd)
            self.fd = -1


# A factory: set up inside the test, logging is not mixed up with pytest's own handlers.
Start = Callable[..., Capture]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    # Everything must have been written before it is looked at.
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT", PATIENCE)
    with ExitStack() as stack:

        def started(level: str = "info", *, access_log: bool = False) -> Capture:
            capture = Capture(tmp_path / "log", level, access_log=access_log)
            stack.callback(capture.close)
            return capture

        yield started


@contextmanager
def stalled_pipe(*, access_log: bool = False) -> Iterator[tuple[int, logs.Logs]]:
    """Logging into a full pipe that nobody reads, its writing threads held there."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * 65_536)
    others = set(threading.enumerate())
    handle = logs.setup("info", access_log, writer)
    try:
        yield reader, handle
    finally:
        writing = set(threading.enumerate()) - others
        drain = threading.Thread(target=read_to_end, args=(reader, []), daemon=True)
        drain.start()
        handle.close()
        # Closing gives up after a second; who still writes then would write into the next file so numbered.
        for thread in writing:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        os.close(writer)
        drain.join()
        os.close(reader)


def read_to_end(reader: int, chunks: list[bytes]) -> None:
    while chunk := os.read(reader, 65_536):
        chunks.append(chunk)


def dumped(**fields: object) -> dict[str, Any]:
    """What the formatter makes of a record with these extras."""
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "name": "x", **fields})
    line: dict[str, Any] = json.loads(logs.JsonFormatter().format(record))
    return line


def test_a_record_is_one_json_object_on_one_line(start: Start) -> None:
    capture = start()
    LOGGER.warning("disk %s\nis %d%% full", "sda", 93, extra={"request_id": "r-1", "free": 12})
    (line,) = capture.lines()
    assert list(line) == ["ts", "level", "logger", "message", "request_id", "free"]
    assert line["level"] == "warning"
    assert line["logger"] == "tidegate.test"
    assert line["message"] == "disk sda\nis 93% full"
    assert (line["request_id"], line["free"]) == ("r-1", 12)


def test_the_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    assert dumped(created=0.0)["ts"] == "1970-01-01T00:00:00.000Z"
    assert dumped(created=1_790_000_000.9996)["ts"] == "2026-09-21T14:13:20.999Z"
    assert datetime.fromisoformat(dumped()["ts"]).tzinfo is not None


def test_an_exception_is_one_string_with_its_traceback(start: Start) -> None:
    capture = start()
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        LOGGER.exception("it failed")
    (line,) = capture.lines()
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("RuntimeError: boom")


def test_lines_below_the_level_are_left_out_and_the_audit_never_is(start: Start) -> None:
    capture = start("error")
    LOGGER.warning("not shown")
    logs.audit("token_issued", client="c-1")
    LOGGER.error("shown")
    assert [line["message"] for line in capture.lines()] == ["token_issued", "shown"]


def test_the_audit_channel_takes_any_field_names(start: Start) -> None:
    capture = start()
    logs.audit("client_removed", client="c-1", name="n", args=(1,), message="m", by="admin")
    (line,) = capture.lines()
    assert line["logger"] == "tidegate.audit"
    assert line["event"] == line["message"] == "client_removed"
    assert (line["client"], line["name"], line["args"], line["by"]) == ("c-1", "n", [1], "admin")


def test_extras_do_not_replace_what_every_line_has() -> None:
    line = dumped(ts="x", level="y", logger="z", fields={"ts": "w"})
    assert line["ts"].endswith("Z")
    assert (line["level"], line["logger"]) == ("info", "x")


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {JWT}",
        f"GET /v1/events?match=a&access_token={JWT}&x=1",
        f"token {JWT} is refused",
        "Basic Y2xpZW50OnNlY3JldHNlY3JldA==",
        f"key {PEM}",
    ],
)
def test_credentials_are_hidden_wherever_they_stand(text: str) -> None:
    hidden = ("eyJhbGci", "c2lnbmF0dXJl", "Y2xpZW50", "MC4CAQAw")
    for line in (dumped(msg=text), dumped(detail=text), dumped(exc_text=text), dumped(nested=[{"a": text}])):
        assert "[hidden]" in str(line)
        assert not any(part in str(line) for part in hidden)


@pytest.mark.parametrize(
    "name", ["secret", "client_secret", "password", "Authorization", "refresh_token", "cookie"]
)
def test_the_text_under_a_telling_name_is_hidden(name: str) -> None:
    assert dumped(fields={name: 'ab"c\\'})[name] == "[hidden]"
    assert dumped(fields={"deep": {name: "abc"}})["deep"] == {name: "[hidden]"}


def test_what_only_sounds_like_a_secret_is_shown() -> None:
    fields = {"token_id": "0192", "policy": "Basic authentication", "path": "/v1/token"}
    assert dumped(fields=fields).items() >= fields.items()


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.text("\ud800a")
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(scalars, inner), max_leaves=8)


@given(message=st.text() | st.text("\udcff%s"), extra=values, name=st.text("abcxyz_", min_size=1))
def test_any_value_becomes_json_on_one_line(message: str, extra: object, name: str) -> None:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "fields": {name: extra}})
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert {"ts", "level", "logger", "message", name} == set(json.loads(line))


def test_arguments_that_do_not_fit_are_shown_and_lose_no_line(start: Start) -> None:
    capture = start()
    LOGGER.info("%d readings", "many")
    LOGGER.info("next")
    assert [line["message"] for line in capture.lines()] == ["%d readings ('many',)", "next"]


def test_what_cannot_be_shown_is_counted_as_dropped(start: Start) -> None:
    capture = start()

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    LOGGER.info("%s", Mute())
    LOGGER.info("hello", extra={"mute": Mute()})
    assert capture.lines() == []
    assert capture.logs.dropped == 2


def test_an_argument_is_logged_as_it_was_when_it_was_logged(start: Start) -> None:
    capture = start()
    items = [1]
    LOGGER.info("%s", items)
    items.append(2)
    assert capture.lines()[0]["message"] == "[1]"


def test_warnings_are_lines_too(start: Start) -> None:
    capture = start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = capture.lines()
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_importing_sets_nothing_up_and_closing_gives_back_what_was_there(start: Start) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    capture = start("debug", access_log=True)
    assert (root.handlers, root.level) != before
    capture.close()
    capture.logs.close()
    assert (root.handlers[:], root.level) == before


def test_the_event_loop_never_waits_for_a_pipe_that_nobody_reads() -> None:
    async def log(access: logs.AccessLog) -> None:
        for number in range(logs.QUEUE_RECORDS + 500):
            LOGGER.info("line", extra={"number": number})
        for number in range(logs.ACCESS_LINES * 2 + 500):
            access.record(f"{number}", "127.0.0.1", "", "GET", "/livez", 200, 2, 0.001)

    with stalled_pipe(access_log=True) as (_, handle):
        assert handle.access is not None
        asyncio.run(log(handle.access))
        # The threads have taken at most one record and one batch of lines.
        assert handle.dropped >= 499 + 500


def test_a_reader_that_comes_late_gets_whole_lines_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT", PATIENCE)
    chunks: list[bytes] = []
    with stalled_pipe(access_log=True) as (reader, handle):
        assert handle.access is not None
        for number in range(100):
            LOGGER.info("x" * 2000, extra={"number": number})
            handle.access.record(f"{number}", "127.0.0.1", "", "GET", "/" + "y" * 2000, 200, 2, 0.001)
        drain = threading.Thread(target=read_lines, args=(reader, 200, chunks))
        drain.start()
        handle.close()
        drain.join()
        assert handle.dropped == 0
    lines = [json.loads(line) for line in io.BytesIO(b"".join(chunks)) if line.strip()]
    assert [line["number"] for line in lines if "number" in line] == list(range(100))
    assert [line["request_id"] for line in lines if "path" in line] == [str(n) for n in range(100)]


def read_lines(reader: int, count: int, chunks: list[bytes]) -> None:
    """Read so many lines that are not empty, or as many as come."""
    while b"".join(chunks).count(b"}\n") < count and select.select((reader,), (), (), PATIENCE)[0]:
        chunks.append(os.read(reader, 65_536))


def test_closing_does_not_wait_for_ever_on_a_pipe_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT", 0.01)
    with stalled_pipe(access_log=True) as (_, handle):
        LOGGER.info("never read")
        handle.close()


def test_a_broken_pipe_is_counted_and_harms_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handle = logs.setup("info", True, writer)
    LOGGER.info("lost")
    assert handle.access is not None
    handle.access.record("r-1", "127.0.0.1", "", "GET", "/livez", 200, 2, 0.001)
    handle.close()
    os.close(writer)
    assert handle.dropped == 2


def test_the_access_log_has_a_line_per_request(start: Start) -> None:
    capture = start(access_log=True)
    assert capture.logs.access is not None
    capture.logs.access.record("r-1", "10.0.0.9", "demo", "GET", "/v1/devices/a", 200, 345, 0.00123456)
    (line,) = capture.lines()
    assert datetime.fromisoformat(line.pop("ts")).tzinfo is not None
    assert line == {
        "level": "info",
        "logger": "tidegate.access",
        "message": "request",
        "request_id": "r-1",
        "method": "GET",
        "path": "/v1/devices/a",
        "status": 200,
        "bytes": 345,
        "seconds": 0.001235,
        "address": "10.0.0.9",
        "subject": "demo",
    }


def test_without_an_access_log_there_is_none(start: Start) -> None:
    capture = start()
    assert capture.logs.access is None
