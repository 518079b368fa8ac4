"""A libpq URL is taken apart as libpq itself would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StorageError
from storage.postgres.url import Host, parse


def hosts(url: str) -> list[tuple[str, str, str]]:
    return [(host.name, host.address, host.port) for host in parse(url, "test").hosts]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://u@h/d", [("h", "", "")]),
        ("postgresql://u@h:1,i:2/d", [("h", "", "1"), ("i", "", "2")]),
        ("postgresql://u@h,i:2/d", [("h", "", ""), ("i", "", "2")]),
        ("postgresql://u@[::1]:5,h/d", [("::1", "", "5"), ("h", "", "")]),
        ("host=h,i port=7", [("h", "", "7"), ("i", "", "7")]),
        ("host=h hostaddr=10.0.0.1,10.0.0.2 port=7", [("h", "10.0.0.1", "7"), ("h", "10.0.0.2", "7")]),
        ("postgresql:///d?host=/run/pg&port=9", [("/run/pg", "", "9")]),
        ("postgresql:///d", [("", "", "")]),
        ("dbname=d", [("", "", "")]),
    ],
)
def test_each_host_has_its_port(url: str, found: list[tuple[str, str, str]]) -> None:
    assert hosts(url) == found


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{1,5})?", fullmatch=True)


@given(st.lists(st.tuples(NAMES, st.integers(1, 65535)), min_size=1, max_size=5))
def test_any_list_of_hosts_comes_back(pairs: list[tuple[str, int]]) -> None:
    url = "postgresql://u:p@" + ",".join(f"{name}:{port}" for name, port in pairs) + "/d"
    assert hosts(url) == [(name, "", str(port)) for name, port in pairs]


def test_what_the_url_says_goes_before_what_we_would() -> None:
    mine = parse("postgresql://u:p@h/d?application_name=mine&keepalives_idle=60&sslmode=verify-full", "test")
    assert mine.parameters["application_name"] == "mine"
    assert mine.parameters["keepalives_idle"] == "60"
    assert mine.parameters["sslmode"] == "verify-full"
    assert mine.parameters["target_session_attrs"] == "read-write"
    assert (mine.parameters["user"], mine.parameters["password"]) == ("u", "p")
    assert (
        parse("postgresql://h/d?target_session_attrs=any", "test").parameters["target_session_attrs"] == "any"
    )
    assert parse("postgresql://h/d", "test").parameters["application_name"] == "test"
    assert "connect_timeout" not in parse("postgresql://h/d?connect_timeout=9", "test").parameters


@pytest.mark.parametrize("url", ["host=h,i,j port=1,2", "mysql://h/d", "postgresql://h/d?no=such", "host"])
def test_what_libpq_would_refuse_is_refused(url: str) -> None:
    with pytest.raises(StorageError):
        parse(url, "test")


@pytest.mark.parametrize(
    ("host", "parameters"),
    [
        (Host("10.0.0.1", "", "5"), [{"host": "10.0.0.1", "port": "5"}]),
        (Host("::1", "", ""), [{"host": "::1"}]),
        (Host("/run/pg", "", "5"), [{"host": "/run/pg", "port": "5"}]),
        (Host("", "", ""), [{}]),
        (Host("a.test", "10.0.0.1", "5"), [{"host": "a.test", "hostaddr": "10.0.0.1", "port": "5"}]),
    ],
)
def test_no_name_is_looked_up_where_there_is_an_address(
    host: Host, parameters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("socket.getaddrinfo")
    assert list(host.addresses()) == parameters


def test_a_name_with_several_addresses_is_tried_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(0, 0, 0, "", (address, 0)) for address in ("::1", "10.0.0.1", "::1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answer)
    assert [a["hostaddr"] for a in Host("a.test", "", "5").addresses()] == ["::1", "10.0.0.1"]
    assert all(a["host"] == "a.test" for a in Host("a.test", "", "5").addresses())
