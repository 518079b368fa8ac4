"""What the load generators say is read rightly, and the open loop leaves nothing out."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.load import open_loop
from bench.load.open_loop import BadAnswer, Client, is_whole, percentile
from bench.load.wrk import Closed, Void, read

GOOD = """Running 5s test @ http://127.0.0.1:8080/hello
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.04ms    1.02ms  33.41ms   94.06%
    Req/Sec    25.04k     1.10k   27.33k    78.00%
  Latency Distribution
     50%  812.00us
     75%    1.42ms
     90%    2.11ms
     99%    1.20s
  124703 requests in 5.00s, 41.03MB read
Requests/sec:  24940.11
Transfer/sec:      8.21MB
"""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_what_wrk_says_is_read_in_milliseconds() -> None:
    assert read(GOOD) == Closed(124703, 24940.11, 0.812, 1200.0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("  Non-2xx or 3xx responses: 17", "Non-2xx or 3xx responses: 17"),
        ("  Socket errors: connect 0, read 3, write 0, timeout 1", "Socket errors: connect 0, read 3"),
    ],
)
def test_one_bad_answer_voids_the_cell(line: str, reason: str) -> None:
    with pytest.raises(Void, match=reason):
        read(GOOD.replace("Requests/sec", f"{line}\nRequests/sec"))


def test_no_answers_void_the_cell() -> None:
    with pytest.raises(Void, match="nothing was answered"):
        read(GOOD.replace("124703 requests", "0 requests"))


@pytest.mark.parametrize("lost", ["Requests/sec", "requests in", "     99%"])
def test_an_output_that_is_not_understood_voids_the_cell(lost: str) -> None:
    with pytest.raises(Void, match="unexpected"):
        read(GOOD.replace(lost, "?"))


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.99) == 0.0


def test_an_answer_is_whole_when_its_body_is() -> None:
    for cut in range(len(b"HTTP/1.1 200"), len(ANSWER)):
        assert not is_whole(ANSWER[:cut])
    assert is_whole(ANSWER)
    assert is_whole(ANSWER.replace(b"Content-Length", b"content-length"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        ANSWER.replace(b"200", b"429"),
        ANSWER + b"more",
        ANSWER.replace(b"Content-Length: 2", b"X: 2"),
    ],
)
def test_another_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        is_whole(answer)


def test_requests_that_a_stall_delays_count_from_when_they_were_due() -> None:
    # 200 of the 400 requests are due while nobody answers; a closed loop would see two slow ones.
    with answering(connections=2, stall_at=50, stall=0.5) as port:
        client = Client("127.0.0.1", port, 2)
        found = client.measure(REQUEST, rate=400, seconds=1)
        client.close()
    assert found.requests == 400
    assert found.p99_ms >= 450
    assert found.p90_ms >= 300
    assert found.waited >= 50
    # That was the server's fault, which the client's own lag does not show.
    assert found.max_ms >= found.p999_ms >= found.p99_ms >= found.p90_ms >= found.p50_ms > 0


def test_the_open_loop_gives_its_core_to_a_database_while_it_has_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, looked = [0], [0]

    def give_way() -> None:
        given[0] += 1
        # The server, a thread, gets its turn.
        time.sleep(0.0005)

    def clock() -> float:
        """A millisecond passes whenever the core is given away, hardly anything else takes time."""
        looked[0] += 1
        return given[0] / 1_000 + looked[0] / 1_000_000

    monkeypatch.setattr("os.sched_yield", give_way)
    monkeypatch.setattr(open_loop, "perf_counter", clock)
    with answering(connections=1) as port:
        client = Client("127.0.0.1", port, 1)
        found = client.measure(REQUEST, rate=100, seconds=0.2)
        client.close()
    assert found.idle > 0.5
    assert given[0] > found.requests


@pytest.mark.parametrize("wrong", [ANSWER.replace(b"200 OK", b"503 No"), b""])
def test_a_bad_answer_ends_the_open_loop(wrong: bytes) -> None:
    with answering(connections=1, answer=wrong) as port:
        client = Client("127.0.0.1", port, 1)
        with pytest.raises((BadAnswer, ConnectionError)):
            client.measure(REQUEST, rate=100, seconds=0.2)
        client.close()


@contextmanager
def answering(
    connections: int, answer: bytes = ANSWER, stall_at: int = -1, stall: float = 0.0
) -> Iterator[int]:
    """A server, a thread a connection, all of which stall once `stall_at` requests were answered."""
    count, lock = [0], threading.Lock()

    def serve(sock: socket.socket) -> None:
        with sock:
            while sock.recv(4096):
                with lock:
                    if count[0] == stall_at:
                        time.sleep(stall)
                    count[0] += 1
                if not answer:
                    return
                sock.sendall(answer)

    def accept() -> None:
        threads = []
        for _ in range(connections):
            threads.append(threading.Thread(target=serve, args=(listening.accept()[0],)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()
