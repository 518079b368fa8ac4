"""A small target that keeps the contract, and can be told to break it in one way."""

import base64
import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import psycopg2

from bench import contract, servers
from bench.client import Client
from bench.verify import Subject


class Database(Protocol):
    """Where the readings are; each statement is a transaction."""

    def execute(self, statement: str, arguments: Sequence[object] = ()) -> Any:
        """A cursor with its rows; `?` stands for an argument."""

    def close(self) -> None:
        """Let go of it."""


class Postgres:
    """A database of PostgreSQL as SQLite's module has it."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def execute(self, statement: str, arguments: Sequence[object] = ()) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(statement.replace("?", "%s"), arguments)
        return cursor

    def close(self) -> None:
        self._connection.close()


class Planted(ThreadingHTTPServer):
    """The target. `fault`: what it does wrong, "" if nothing. `limit`: requests at once of a principal."""

    daemon_threads = True

    def __init__(self, database: Database, fault: str, limit: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.left: dict[str, int] = {}
        self.limit = limit
        self.lock = threading.Lock()
        self.database = database
        self.late: list[tuple[object, ...]] = []
        self.remembered: bytes = b""
        self.clock = 0

    def rows(self) -> int:
        """What is committed."""
        with self.lock:
            count: int = self.database.execute("SELECT count(*) FROM readings").fetchone()[0]
            return count


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Planted

    def setup(self) -> None:
        super().setup()
        # Headers of the next answer, and the claims of the token.
        self.more: dict[str, str] = {}
        self.claims: dict[str, Any] = {}

    def log_message(self, *args: Any) -> None: ...

    def answer(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.server.fault != "no headers":
            made_up = self.server.fault == "makes ids up"
            self.send_header("X-Request-ID", "x" if made_up else self.headers.get("X-Request-ID", "y"))
            self.send_header("RateLimit", '"requests";r=1;t=1')
            self.send_header("RateLimit-Policy", '"requests";q=1;w=60')
        for name, value in self.more.items():
            self.send_header(name, value)
        self.more = {}
        if self.server.fault == "closes":
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def accepts(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = self.server.fault
        if fault == "no authentication":
            return True
        if not given:
            return False
        head, claims, signature = given.split(".")
        self.claims = json.loads(base64.urlsafe_b64decode(claims + "=="))
        wanted = hmac.digest(contract.SECRET.encode(), f"{head}.{claims}".encode(), hashlib.sha256)
        signed = base64.urlsafe_b64encode(wanted).rstrip(b"=").decode() == signature
        expired = self.claims["exp"] < time.time()
        unsigned = fault == "takes unsigned tokens" and not signature
        return (unsigned or signed or (fault == "checks no signature" and bool(signature))) and not (
            expired and fault != "checks no expiry"
        )

    def do_GET(self) -> None:
        fault, parts = self.server.fault, urlsplit(self.path)
        if parts.path == "/hello":
            kind = "text/html" if fault == "wrong type" else "application/json"
            self.answer(200, {"ok": fault != "wrong body"}, kind)
        elif not self.accepts():
            self.answer(401, {})
        elif parts.path.endswith("/latest"):
            self.latest()
        else:
            self.page({name: values[0] for name, values in parse_qs(parts.query).items()})

    def latest(self) -> None:
        server, device = self.server, self.path.split("/")[3]
        if server.fault == "one device for all":
            device = contract.DEVICE
        with server.lock:
            found = server.database.execute(
                "SELECT metric, value FROM readings WHERE device = ? ORDER BY ts", (device,)
            ).fetchall()
        body = json.dumps({"metrics": {m: {"value": json.loads(v)} for m, v in found}}).encode()
        server.remembered = server.remembered or body
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        if server.fault != "no ETag":
            self.more = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept"}
        if self.headers.get("If-None-Match") == etag and server.fault != "knows no ETag":
            self.answer(304, b"")
        else:
            self.answer(200, server.remembered if server.fault == "remembers bodies" else body)

    def page(self, query: dict[str, str]) -> None:
        fault, limit = self.server.fault, int(query["limit"])
        low = int(query.get("cursor", query["from"])) * 1000
        if fault == "ignores the cursor":
            low = int(query["from"]) * 1000
        if fault == "one page for all":
            low = (contract.EPOCH + contract.PAGE_FROM) * 1000
        with self.server.lock:
            found = self.server.database.execute(
                "SELECT id, ts, value FROM readings WHERE device = 'bench.page' AND ts >= ? AND ts < ? "
                "ORDER BY ts LIMIT ?",
                (low, int(query["to"]) * 1000, limit + 1),
            ).fetchall()
        items = [
            {
                "offset": id,
                "metric": "temperature",
                "ts": datetime.fromtimestamp(ts / 1_000_000, UTC).isoformat(),
                "value": json.loads(value),
            }
            for id, ts, value in found[:limit]
        ]
        if fault == "leaves out offsets":
            for item in items:
                del item["offset"]
        if fault == "backwards":
            items.reverse()
        following = str(found[limit][1] // 1000) if len(found) > limit else None
        self.answer(200, {"items": items, "next": following})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault, device = self.server.fault, self.path.split("/")[3]
        if not self.accepts():
            if fault == "stores what it refuses":
                self.store(device, [body] if isinstance(body, dict) else body)
            self.answer(401, {})
            return
        if refused := self.refused(device):
            if fault == "stores what is over the limit" and refused == 429:
                self.store(device, [body])
            self.answer(refused, {})
            return
        single = isinstance(body, dict)
        if single and "values" in body:
            items = [{"metric": m, "value": v} for m, v in body["values"].items()]
        else:
            items = [body] if single else body
        bad = [n for n, item in enumerate(items) if not self.is_good(item)]
        if fault == "no validation":
            bad = []
        if single and bad:
            self.answer(422, {})
            return
        good = [item for n, item in enumerate(items) if n not in bad]
        stored = self.store(device, good)
        if fault == "calls duplicates accepted":
            stored = len(good)
        rejected = [{"pointer": f"/{n}"} for n in bad]
        if fault == "names no bad item":
            rejected = []
        self.answer(200, {"accepted": stored, "duplicates": len(good) - stored, "rejected": rejected})

    def refused(self, device: str) -> int:
        """The status of a write that is not allowed, 0 if it is."""
        server, fault = self.server, self.server.fault
        if "readings:write" not in self.claims.get("scope", "") and fault not in (
            "no scopes",
            "no authentication",
        ):
            return 403
        if not device.startswith("bench.") and fault != "no grants":
            return 403
        who = "all" if fault == "one limit for all" else self.claims.get("sub", "")
        with server.lock:
            left = server.left.setdefault(who, server.limit)
            server.left[who] = left - 1
        if left > 0 or fault == "no limit":
            return 0
        self.more = {} if fault == "no Retry-After" else {"Retry-After": "1"}
        return 429

    def is_good(self, item: dict[str, Any]) -> bool:
        value, fault = item.get("value"), self.server.fault
        if isinstance(value, int) and abs(value) > 2**53 and fault != "takes large numbers":
            return False
        if isinstance(value, str) and len(value) > 1024 and fault != "takes long texts":
            return False
        if not set(item) <= {"metric", "value", "ts"} and fault != "takes unknown fields":
            return False
        return (
            value is not None
            and not isinstance(value, list)
            and " " not in item["metric"]
            and item.get("ts", 0) >= 0
        )

    def store(self, device: str, items: list[dict[str, Any]]) -> int:
        server, stored = self.server, 0
        if server.fault == "stores nothing":
            return len(items)
        items = [{"value": 0, **item} for item in items]
        rows: list[tuple[object, ...]] = []
        with server.lock:
            for item in items:
                server.clock += 1
                ts = item["ts"] * 1000 if "ts" in item else server.clock
                rows.append((device, item["metric"], ts, json.dumps(item["value"])))
            if server.fault == "answers before it stores":
                rows, server.late = server.late, rows
            for row in rows:
                stored += server.database.execute(
                    "INSERT INTO readings (device, metric, ts, value) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    row,
                ).rowcount
        return len(items) if server.fault == "answers before it stores" else stored


@contextmanager
def planted(path: Path, fault: str = "", limit: int = 1_000_000) -> Iterator[Subject]:
    """The target on SQLite, running."""
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    # Whether SQLite waits for the disk cannot be seen from outside; the tests need not wait either.
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE readings (id INTEGER PRIMARY KEY, device, metric, ts, value)")
    database.execute("CREATE UNIQUE INDEX identity ON readings (device, metric, ts)")
    with _running(Planted(database, fault, limit)) as (server, client):
        yield Subject(client, server.rows)


@contextmanager
def planted_postgres(url: str, fault: str = "") -> Iterator[Subject]:
    """The target on PostgreSQL, running."""
    database = Postgres(url)
    database.execute("DROP TABLE IF EXISTS readings")
    kind = "UNLOGGED TABLE" if fault == "an unlogged table" else "TABLE"
    database.execute(
        f"CREATE {kind} readings (id serial PRIMARY KEY, device text, metric text, ts bigint, value text, "
        "UNIQUE (device, metric, ts))"
    )
    off = "off" if fault == "a database without synchronous_commit" else "on"
    database.execute(f"ALTER DATABASE postgres SET synchronous_commit = {off}")
    if fault == "commits asynchronously":
        database.execute("SET synchronous_commit = off")

    def rows() -> int:
        count: int = servers.query(url, "SELECT count(*) FROM readings")[0][0]
        return count

    def faults() -> list[str]:
        return servers.faults(url, "readings")

    with _running(Planted(database, fault, 1_000_000)) as (_, client):
        yield Subject(client, rows, "", faults, lambda: servers.pending(url))


@contextmanager
def _running(server: Planted) -> Iterator[tuple[Planted, Client]]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_address[1]}", contract.token())
    try:
        yield server, client
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()
        server.database.close()
