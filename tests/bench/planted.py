"""A small target that keeps the contract, and can be told to break it in one way."""

import base64
import hashlib
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bench import contract
from bench.client import Client
from bench.verify import Subject


class Planted(ThreadingHTTPServer):
    """The target. `fault`: what it does wrong, "" if nothing."""

    daemon_threads = True

    def __init__(self, database: Path, fault: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.lock = threading.Lock()
        self.database = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        self.database.execute("CREATE TABLE readings (id INTEGER PRIMARY KEY, device, metric, ts, value)")
        self.database.execute("CREATE UNIQUE INDEX identity ON readings (device, metric, ts)")
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

    def log_message(self, *args: Any) -> None: ...

    def answer(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
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
        wanted = hmac.digest(contract.SECRET.encode(), f"{head}.{claims}".encode(), hashlib.sha256)
        signed = base64.urlsafe_b64encode(wanted).rstrip(b"=").decode() == signature
        expired = json.loads(base64.urlsafe_b64decode(claims + "=="))["exp"] < time.time()
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
        server = self.server
        with server.lock:
            found = server.database.execute(
                "SELECT metric, value FROM readings WHERE device = 'bench.one' ORDER BY ts"
            ).fetchall()
        body = json.dumps({"metrics": {m: {"value": json.loads(v)} for m, v in found}}).encode()
        server.remembered = server.remembered or body
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
        single = isinstance(body, dict)
        if single and "values" in body:
            items = [{"metric": m, "value": v} for m, v in body["values"].items()]
        else:
            items = [body] if single else body
        bad = [n for n, item in enumerate(items) if isinstance(item["value"], list)]
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

    def store(self, device: str, items: list[dict[str, Any]]) -> int:
        server, stored = self.server, 0
        if server.fault == "stores nothing":
            return len(items)
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
def planted(database: Path, fault: str = "") -> Iterator[Subject]:
    """The target, running."""
    server = Planted(database, fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_address[1]}", contract.token())
    try:
        yield Subject(client, server.rows)
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()
        server.database.close()
