"""Nothing is answered on the wrong connection, in the wrong order or twice; what was acknowledged is stored.

200 connections at once, a nonce in every request: its id, or a value that nobody else has written.
"""

import asyncio
import gzip
import json
import random
import socket
import struct
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.handlers.wire import expired_token
from tests.raw import Answer, Raw, request
from tests.reliability.history import Batch, Stored, faults
from tests.running import Running, run_gate

CONNECTIONS = 200
LIVES, LIVES_LONG = 3, 40
# Bytes of a body under a known head, which must be the same each time.
BODY = 240
BIG = "shared.big"


class Ask(Struct):
    """A request and what its answer must be. `whose`: the id that the answer must carry, "" for one of the
    gate's; `last`: the connection ends behind it; `apart`: it is sent when all before it are answered;
    `batch`: what is stored if it is answered."""

    data: bytes
    check: Callable[[Answer], None]
    whose: str = ""
    kind: str = ""
    head: bool = False
    last: bool = False
    apart: bool = False
    batch: Batch | None = None

    def judge(self, answer: Answer) -> None:
        """AssertionError if this is not the answer to it."""
        if self.whose:
            assert answer.headers["x-request-id"] == self.whose, (self, answer)
        assert answer.closing == self.last, (self, answer)
        self.check(answer)
        if self.batch is not None:
            self.batch.acked = True


def status(*expected: int) -> Callable[[Answer], None]:
    def check(answer: Answer) -> None:
        assert answer.status in expected, (expected, answer)

    return check


def problem(expected: int, code: str, detail: str = "") -> Callable[[Answer], None]:
    def check(answer: Answer) -> None:
        assert (answer.status, answer.code) == (expected, code), answer
        assert detail in answer.json["detail"], (detail, answer)

    return check


class Shared(Struct):
    """What all authors have in common."""

    gate: Running
    values: "count[int]"
    expired: str
    export: bytes
    batches: list[Batch]


class Author:
    """Thinks out the requests of one life of a connection, which has a device of its own, and knows what
    must be stored there when each of them is answered."""

    def __init__(self, shared: Shared, number: int, life: int, chance: random.Random) -> None:
        self._shared = shared
        self._chance = chance
        self._me = f"c{number}"
        self._device = f"{self._me}.l{life}"
        self._stranger = f"c{(number + 1) % CONNECTIONS}.l{life}"
        self._token = shared.gate.token(devices=(f"{self._me}.>", BIG), subject=self._me)
        self._same_id = f"{self._device}.same"
        self._nonces = count(1)
        self._times = count(1)
        self._rows: dict[int, int] = {}
        self._sent: list[Batch] = []
        self._name = ""
        self._kinds: list[Callable[[], Ask]] = [
            *[self._known_get] * 6,
            *[self._known_write] * 6,
            *[self._get] * 3,
            *[self._write] * 3,
            self._known_bad,
            self._unnamed_get,
            self._duplicate,
            self._conflict,
            self._stranger_write,
            self._stranger_read,
            self._expired,
            self._forged,
            self._no_token,
            self._nowhere,
            self._head,
            self._chunked,
            self._packed,
            self._expecting,
            self._large,
            self._range,
            self._csv,
            self._put,
            self._about,
            self._upgrade,
            self._livez,
            self._export,
            self._body_for_nobody,
            self._options,
        ]

    def asks(self, size: int) -> list[Ask]:
        """A life of so many requests; the last of them may end the connection."""
        asks = []
        for _ in range(size):
            kind = self._chance.choice(self._kinds)
            asks.append(kind())
            asks[-1].kind = kind.__name__
        match self._chance.randrange(8):
            case 0:
                asks.append(self._ask("GET", self._path("latest"), ("Connection: close",), last=True))
            case 1:
                asks.append(self._ask("GET", self._path("latest"), version="1.0", last=True))
            case 2:
                asks.append(self._broken())
                # Behind chunks or an upgrade the parser gets several requests at once, and forgets those that
                # stand in one piece with what it refuses: they are not run, and not answered.
                asks[-1].apart = any(ask.kind in ("_chunked", "_upgrade") for ask in asks)
        return asks

    # -- kinds of requests ---------------------------------------------------------------------

    def _path(self, rest: str, device: str = "") -> str:
        return f"/v1/devices/{device or self._device}/{rest}"

    def _ask(
        self,
        method: str,
        path: str,
        lines: tuple[str, ...] = (),
        body: bytes | None = None,
        *,
        whose: str | None = None,
        token: str | None = None,
        version: str = "1.1",
        check: Callable[[Answer], None] | None = None,
        behind: bytes = b"",
        **rest: Any,
    ) -> Ask:
        """Under a new nonce unless told otherwise; by default one that reads the newest value."""
        if whose is None:
            whose = f"{self._device}.{next(self._nonces)}"
        if whose:
            lines = (f"X-Request-ID: {whose}", *lines)
        token = self._token if token is None else token
        data = request(method, path, body, token=token, headers=lines, version=version)
        return Ask(data + behind, check or self._newest(), whose, **rest)

    def _newest(self) -> Callable[[Answer], None]:
        """The newest value is the one that was written last."""
        if not self._rows:
            return problem(404, "not_found")
        ts = max(self._rows)
        value = self._rows[ts]

        def check(answer: Answer) -> None:
            assert answer.status == 200, answer
            assert answer.json["device"] == self._device
            assert answer.json["metrics"]["m"]["value"] == value, (value, answer)

        return check

    def _new(self, most: int = 4) -> tuple[Batch, bytes]:
        """Readings that nobody else has, and the body that writes them."""
        size = self._chance.randint(1, most)
        batch = Batch(self._device, {next(self._times): next(self._shared.values) for _ in range(size)})
        self._rows.update(batch.values)
        self._sent.append(batch)
        self._shared.batches.append(batch)
        return batch, body_of(batch)

    def _stored(self, batch: Batch) -> Callable[[Answer], None]:
        def check(answer: Answer) -> None:
            assert answer.status == 200, answer
            assert answer.json["accepted"] == len(batch.values), (batch, answer)
            assert answer.json["duplicates"] == answer.json["rejected_count"] == 0, answer

        return check

    def _known_get(self) -> Ask:
        return self._ask("GET", self._path("latest"), whose=self._same_id)

    def _unnamed_get(self) -> Ask:
        return self._ask("GET", self._path("latest"), whose="")

    def _get(self) -> Ask:
        return self._ask("GET", self._path("latest"))

    def _known_write(self) -> Ask:
        batch, body = self._new()
        return self._post(body.ljust(BODY), batch, whose=self._same_id)

    def _write(self) -> Ask:
        batch, body = self._new(20)
        return self._post(body, batch)

    def _post(self, body: bytes | None, batch: Batch, lines: tuple[str, ...] = (), **rest: Any) -> Ask:
        path = self._path("readings")
        return self._ask("POST", path, lines, body, check=self._stored(batch), batch=batch, **rest)

    def _known_bad(self) -> Ask:
        body = b'[{"metric": "m", "value": 1, "ts": 1}'.ljust(BODY)
        return self._ask(
            "POST", self._path("readings"), (), body, whose=self._same_id, check=problem(400, "malformed")
        )

    def _duplicate(self) -> Ask:
        if not self._sent:
            return self._get()
        batch = self._chance.choice(self._sent)

        def check(answer: Answer) -> None:
            assert answer.status == 200, answer
            counts = answer.json["accepted"], answer.json["duplicates"]
            assert counts == (0, len(batch.values)), answer

        return self._ask("POST", self._path("readings"), (), body_of(batch), check=check)

    def _conflict(self) -> Ask:
        if not self._sent:
            return self._get()
        ts = self._chance.choice(list(self._rows))
        body = body_of(Batch(self._device, {ts: next(self._shared.values)}))
        return self._ask("POST", self._path("readings"), (), body, check=status(422))

    def _never(self) -> bytes:
        """What must not be stored."""
        return body_of(Batch("", {next(self._times): next(self._shared.values)})).ljust(BODY)

    def _stranger_write(self) -> Ask:
        path = self._path("readings", self._stranger)
        return self._ask("POST", path, (), self._never(), check=status(403))

    def _stranger_read(self) -> Ask:
        return self._ask("GET", self._path("latest", self._stranger), check=problem(404, "not_found"))

    def _expired(self) -> Ask:
        return self._refused(self._shared.expired, "token_expired")

    def _forged(self) -> Ask:
        head, claims, _ = self._token.split(".")
        return self._refused(f"{head}.{claims}.{'A' * 43}", "token_invalid")

    def _no_token(self) -> Ask:
        return self._refused("", "token_missing")

    def _refused(self, token: str, code: str) -> Ask:
        check = problem(401, code)
        if self._chance.random() < 0.5:
            return self._ask("GET", self._path("latest"), token=token, check=check)
        return self._ask("POST", self._path("readings"), (), self._never(), token=token, check=check)

    def _nowhere(self) -> Ask:
        path = f"/nowhere/{self._device}/{next(self._nonces)}"
        return self._ask("GET", path, whose="", check=problem(404, "not_found", path))

    def _head(self) -> Ask:
        return self._ask("HEAD", self._path("latest"), check=status(200 if self._rows else 404), head=True)

    def _chunked(self) -> Ask:
        batch, body = self._new(10)
        places = sorted({0, len(body), *(self._chance.randrange(len(body)) for _ in range(3))})
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (last - first, body[first:last]) for first, last in pairwise(places)
        )
        return self._post(None, batch, ("Transfer-Encoding: chunked",), behind=chunks + b"0\r\n\r\n")

    def _packed(self) -> Ask:
        batch, body = self._new(10)
        return self._post(gzip.compress(body, mtime=0), batch, ("Content-Encoding: gzip",))

    def _expecting(self) -> Ask:
        batch, body = self._new()
        return self._post(body, batch, ("Expect: 100-continue",))

    def _large(self) -> Ask:
        """More than the fast lane takes from the parser."""
        batch, body = self._new()
        return self._post(body.ljust(70_000), batch)

    def _range(self) -> Ask:
        rows = sorted(self._rows.items())[:1000]

        def check(answer: Answer) -> None:
            assert answer.status == 200 or not rows, answer
            assert [(item["ts"], item["value"]) for item in answer.json.get("items", [])] == rows, answer

        return self._ask("GET", self._path("readings?limit=1000&time=ms"), check=check)

    def _csv(self) -> Ask:
        values = [str(value) for _, value in sorted(self._rows.items())]

        def check(answer: Answer) -> None:
            assert answer.status == 200 or not values, answer
            if answer.status == 200:
                lines = answer.body.decode().splitlines()
                place = lines[0].split(",").index("value")
                assert [line.split(",")[place] for line in lines[1:]] == values, answer

        return self._ask("GET", self._path("readings?time=ms"), ("Accept: text/csv",), check=check)

    def _put(self) -> Ask:
        if not self._rows:
            return self._get()
        self._name = name = f"name {self._device} {next(self._nonces)}"

        def check(answer: Answer) -> None:
            assert answer.status in (200, 201), answer
            assert answer.json["name"] == name, answer

        body = json.dumps({"name": name}).encode()
        return self._ask("PUT", f"/v1/devices/{self._device}", (), body, check=check)

    def _about(self) -> Ask:
        name, known = self._name, bool(self._rows)

        def check(answer: Answer) -> None:
            assert answer.status == (200 if known else 404), answer
            if known:
                assert (answer.json["device"], answer.json["name"]) == (self._device, name), answer

        return self._ask("GET", f"/v1/devices/{self._device}", check=check)

    def _upgrade(self) -> Ask:
        return self._ask("GET", self._path("latest"), ("Connection: upgrade", "Upgrade: websocket"))

    def _livez(self) -> Ask:
        return self._ask("GET", "/livez", check=status(200), token="")

    def _export(self) -> Ask:
        def check(answer: Answer) -> None:
            assert answer.status == 200, answer
            assert answer.body == self._shared.export

        return self._ask("GET", f"/v1/devices/{BIG}/readings", ("Accept: text/csv",), check=check)

    def _body_for_nobody(self) -> Ask:
        """It looks like a write."""
        inside = request("POST", self._path("readings"), self._never(), token=self._token)
        return self._ask("GET", self._path("latest"), (), inside)

    def _options(self) -> Ask:
        return self._ask("OPTIONS", self._path("latest"), check=status(204))

    def _broken(self) -> Ask:
        """No HTTP, and a write behind it that must not be stored."""
        behind = request("POST", self._path("readings"), self._never(), token=self._token)
        return Ask(b"BROKEN\r\n\r\n" + behind, problem(400, "malformed"), last=True)


def body_of(batch: Batch) -> bytes:
    items = [{"metric": "m", "value": value, "ts": ts} for ts, value in batch.values.items()]
    return json.dumps(items).encode()


# -- how it is sent and read -------------------------------------------------------------------


async def connect(port: int, *, small: bool) -> Raw:
    """A connection, perhaps with a small buffer for what comes."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return Raw(*await asyncio.open_connection(sock=sock, limit=4096 if small else 1 << 20))


async def send(connection: Raw, asks: list[Ask], chance: random.Random) -> None:
    """All of them as one stream, cut anywhere."""
    data = b"".join(ask.data for ask in asks)
    # What is sent when the gate has closed costs the answers before it (TCP resets): the end comes whole.
    end = len(data) - len(asks[-1].data) if asks[-1].last else len(data)
    cuts = [chance.randrange(end) for _ in range(chance.choice((0, 1, 2, 5, 20))) if end]
    if len(data) > 60_000:
        cuts.append(end)
    try:
        for first, last in pairwise(sorted({0, len(data), *cuts})):
            await connection.send(data[first:last])
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
    except (ConnectionError, RuntimeError):
        # The gate may close behind a last answer while the rest is sent; uvloop says so in its own way.
        assert asks[-1].last


async def answer_to(connection: Raw, ask: Ask) -> Answer:
    """The answer, without the word to go on that may stand before it."""
    while True:
        answer = await connection.answer(head=ask.head)
        if answer.status != 100:
            return answer


def reset(connection: Raw) -> None:
    """Drop the connection so that the gate's next write fails."""
    sock = connection.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.leave()


async def live(shared: Shared, author: Author, chance: random.Random, own_ids: list[str]) -> None:
    """One life of a connection."""
    asks = author.asks(chance.randint(5, 25))
    slow, drops = chance.random() < 0.2, chance.random() < 0.2
    groups: list[list[Ask]] = []
    rest = asks
    while rest:
        size = chance.choice((1, 1, 1, 3, 8, 25))
        if rest[-1].apart and 1 < len(rest) <= size:
            size = len(rest) - 1
        groups.append(rest[:size])
        rest = rest[size:]
    left = chance.randrange(len(asks)) if drops else len(asks)
    connection = await connect(shared.gate.port, small=slow)
    async with connection:
        for group in groups:
            sending = asyncio.create_task(send(connection, group, chance))
            try:
                for ask in group:
                    if left == 0:
                        # In the middle of an answer, or before its first byte.
                        await connection.reader.read(chance.choice((1, 20, 200)))
                        reset(connection)
                        return
                    left -= 1
                    if slow:
                        await asyncio.sleep(chance.random() / 100)
                    answer = await answer_to(connection, ask)
                    try:
                        ask.judge(answer)
                    except AssertionError as error:
                        kinds = [ask.kind for ask in group]
                        raise AssertionError(f"{group.index(ask)} of {kinds}, {slow=}: {error}") from error
                    if not ask.whose:
                        own_ids.append(answer.headers["x-request-id"])
            finally:
                if left == 0 and drops:
                    sending.cancel()
                await asyncio.wait((sending,))
            await sending
        if not asks[-1].last:
            connection.writer.write_eof()
        surplus = await connection.ended()
        assert surplus == b"", ([[ask.kind for ask in group] for group in groups], slow, surplus)


async def whole_log(gate: Running) -> list[Stored]:
    answer = await gate.get("/v1/readings?since=earliest&time=ms", headers={"Accept": "application/x-ndjson"})
    assert answer.status == 200
    return [Stored(**json.loads(line)) for line in answer.body.splitlines()]


async def prepared(gate: Running) -> Shared:
    """What all share: an expired token, and a device with enough readings for a long answer."""
    values = count(1)
    big = [Batch(BIG, {1000 * turn + n: next(values) for n in range(1000)}, acked=True) for turn in range(3)]
    for batch in big:
        items = [{"metric": "m", "value": value, "ts": ts} for ts, value in batch.values.items()]
        assert (await gate.write(BIG, *items)).status == 200
    export = (await gate.get(f"/v1/devices/{BIG}/readings", headers={"Accept": "text/csv"})).body
    assert len(export) > 100_000
    return Shared(gate, values, await expired_token(gate), export, list(big))


async def test_every_answer_of_200_connections_comes_on_its_own_in_order_and_what_was_acknowledged_is_stored(
    tmp_path: Path, long: bool
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    own_ids: list[str] = []
    async with run_gate(tmp_path / "data") as gate:
        shared = await prepared(gate)

        async def run(number: int) -> None:
            chance = random.Random(f"{seed} {number}")
            for life in range(LIVES_LONG if long else LIVES):
                await live(shared, Author(shared, number, life, chance), chance, own_ids)

        async with asyncio.timeout(600 if long else 180), asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(run(number))
        await gate.gate.commit.drain()
        assert len(set(own_ids)) == len(own_ids) > 0
        acked = sum(batch.acked for batch in shared.batches)
        assert acked > CONNECTIONS
        assert faults(shared.batches, await whole_log(gate)) == []
        figures = (await gate.get("/metrics")).body.decode()
        assert f"tidegate_readings_stored_total {len(await whole_log(gate))}.0" in figures


# -- the judge is judged -----------------------------------------------------------------------


async def test_an_answer_that_belongs_to_another_request_or_connection_is_seen(tmp_path: Path) -> None:
    async with run_gate(tmp_path / "data") as gate:
        shared = await prepared(gate)
        said: list[list[tuple[Ask, Answer]]] = []
        for number in range(2):
            chance = random.Random(7)
            asks = Author(shared, number, 0, chance).asks(80)
            async with await Raw.open(gate.port) as connection:
                sending = asyncio.create_task(send(connection, asks, chance))
                answers = [await answer_to(connection, ask) for ask in asks]
                await sending
            for ask, answer in zip(asks, answers, strict=True):
                ask.judge(answer)
            said.append(list(zip(asks, answers, strict=True)))
    for (ask, answer), (other_ask, other_answer) in zip(*said, strict=True):
        if ask.whose or other_ask.whose:
            assert wrong(ask, other_answer), (ask, other_answer)
            assert wrong(other_ask, answer), (other_ask, answer)
    for one in said:
        for (ask, answer), (next_ask, next_answer) in pairwise(one):
            if ask.whose != next_ask.whose:
                assert wrong(ask, next_answer) or wrong(next_ask, answer), (ask, next_ask)


def wrong(ask: Ask, answer: Answer) -> bool:
    try:
        ask.judge(answer)
    except (AssertionError, KeyError, TypeError, ValueError):
        return True
    return False
