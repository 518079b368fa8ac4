"""Making a session with the first of several hosts that takes writes, in a thread and within a time."""

import select
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
from msgspec import Struct
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE

from storage.errors import Unavailable
from storage.postgres.errors import brief
from storage.postgres.url import Database, Host

# A host that is silent so long is no longer waited for alone (as addresses in RFC 8305).
_STAGGER = 0.25


class Limits(Struct, frozen=True):
    """What the server is told to end by itself, in seconds."""

    statement: float
    lock: float
    idle_in_transaction: float
    client_check: float


class Line(Struct):
    """A psycopg2 connection in asynchronous mode, and what must stand before each statement on it.

    `direct`: the server's process is ours as long as the connection lives. Otherwise something between,
    pgbouncer in transaction mode for one, lends a process for each transaction, and no state may be left
    in it: `prefix` sets the limits for one transaction.
    """

    raw: Any
    prefix: str
    direct: bool


class Dialer:
    """Makes sessions, in one thread."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._hosts = list(database.hosts)

    def dial(self, timeout: float) -> Line:
        """A new session. Blocks for at most `timeout` seconds, the name server's time apart; Unavailable."""
        end = time.monotonic() + timeout
        race = _Race(self._database.parameters, self._hosts)
        try:
            raw, host = race.run(end)
            try:
                line = self._prepare(raw, end)
            except BaseException:
                raw.close()
                raise
        except psycopg2.Error as error:
            raise Unavailable(f"the database cannot be reached: {brief(error)}") from error
        finally:
            race.close()
        # It is asked first next time.
        self._hosts.sort(key=lambda other: other is not host)
        return line

    def _prepare(self, raw: Any, end: float) -> Line:
        """Set the limits and find out who is on the other side, in one question."""
        limits = self._limits
        settings = {
            "statement_timeout": limits.statement,
            "lock_timeout": limits.lock,
            "idle_in_transaction_session_timeout": limits.idle_in_transaction,
        }
        if raw.server_version >= 140_000:
            settings["client_connection_check_interval"] = limits.client_check
        # No startup parameters: pgbouncer refuses those that it does not know.
        own = f"pg_backend_pid() = {raw.info.backend_pid}"
        changes = " || ".join(
            f"set_config('{name}', '{round(seconds * 1000)}', false)" for name, seconds in settings.items()
        )
        cursor = raw.cursor()
        cursor.execute(f"SELECT {own}, CASE WHEN {own} THEN {changes} END")
        while (state := raw.poll()) != POLL_OK:
            _wait([(raw, state)], end)
        direct = bool(cursor.fetchone()[0])
        prefix = "" if direct else _prefix(limits)
        return Line(raw, prefix, direct)


def _prefix(limits: Limits) -> str:
    return (
        f"SET LOCAL statement_timeout = {round(limits.statement * 1000)};"
        f"SET LOCAL lock_timeout = {round(limits.lock * 1000)};"
    )


class _Race:
    """Connections on their way to the hosts, started one after the other; the first that is made wins."""

    def __init__(self, parameters: dict[str, str], hosts: list[Host]) -> None:
        self._parameters = parameters
        self._left = self._addresses(list(hosts))
        self._running: list[tuple[Any, Host, int]] = []
        self._failure: Exception = Unavailable("the database's URL names no host")

    def run(self, end: float) -> tuple[Any, Host]:
        """The connection that is made first, and its host. Unavailable, psycopg2.Error."""
        due = 0.0
        more = True
        while True:
            now = time.monotonic()
            if more and (now >= due or not self._running):
                more = self._start()
                due = now + _STAGGER
                continue
            if not self._running:
                raise self._failure
            ready = _wait(
                [(raw, state) for raw, _, state in self._running], end, min(end, due) if more else end
            )
            for entry in list(self._running):
                raw, host, _ = entry
                if raw not in ready:
                    continue
                self._running.remove(entry)
                try:
                    state = raw.poll()
                except psycopg2.Error as error:
                    self._failure = error
                    raw.close()
                    due = 0.0
                    continue
                if state == POLL_OK:
                    return raw, host
                self._running.append((raw, host, state))

    def close(self) -> None:
        """Let go of those that did not win."""
        for raw, _, _ in self._running:
            raw.close()
        self._running.clear()

    def _start(self) -> bool:
        """Start towards the next address; False if there is none left."""
        for host, address in self._left:
            try:
                raw = psycopg2.connect(**{**self._parameters, **address}, async_=True)
                self._running.append((raw, host, raw.poll()))
            except psycopg2.Error as error:
                self._failure = error
                continue
            return True
        return False

    def _addresses(self, hosts: list[Host]) -> Iterator[tuple[Host, dict[str, str]]]:
        for host in hosts:
            try:
                for address in host.addresses():
                    yield host, address
            except OSError as error:
                self._failure = Unavailable(f"the name of the database's host is not known: {error}")


def _wait(waiting: list[tuple[Any, int]], end: float, until: float | None = None) -> list[Any]:
    """Wait for the sockets until `until`; the connections that can go on. Unavailable when it is `end`."""
    poll = select.poll()
    # libpq goes from one socket to another while it connects.
    by_socket = {raw.fileno(): raw for raw, _ in waiting}
    for raw, state in waiting:
        poll.register(raw.fileno(), {POLL_READ: select.POLLIN, POLL_WRITE: select.POLLOUT}[state])
    left = (end if until is None else until) - time.monotonic()
    ready = poll.poll(max(0.0, left) * 1000)
    if not ready and time.monotonic() >= end:
        raise Unavailable("the database cannot be reached: no answer in time")
    return [by_socket[number] for number, _ in ready]
