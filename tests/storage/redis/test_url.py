"""The URLs of Redis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.redis.url import Kind, RedisUrl, parse_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://cache", RedisUrl(kind=Kind.SERVER, tls=False, addresses=(("cache", 6379),))),
        ("redis://cache:7000/3", RedisUrl(kind=Kind.SERVER, tls=False, addresses=(("cache", 7000),), db=3)),
        (
            "rediss://gate:s%40cret@[::1]:7000?ca=/etc/ca.pem",
            RedisUrl(
                kind=Kind.SERVER,
                tls=True,
                addresses=(("::1", 7000),),
                username="gate",
                password="s@cret",
                ca="/etc/ca.pem",
            ),
        ),
        (
            "redis+cluster://:secret@a:7000,b:7001,c",
            RedisUrl(
                kind=Kind.CLUSTER,
                tls=False,
                addresses=(("a", 7000), ("b", 7001), ("c", 6379)),
                password="secret",
            ),
        ),
        (
            "rediss+sentinel://gate:x@a,b:26380/tidegate/2?sentinel_password=y",
            RedisUrl(
                kind=Kind.SENTINEL,
                tls=True,
                addresses=(("a", 26379), ("b", 26380)),
                username="gate",
                password="x",
                service="tidegate",
                db=2,
                sentinel_password="y",
            ),
        ),
    ],
)
def test_what_a_url_says(text: str, expected: RedisUrl) -> None:
    assert parse_url(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:6379", "begins with redis://"),
        ("http://localhost", "begins with redis://"),
        ("redis://", "begins with redis://"),
        ("redis:///0", "host, host:port"),
        ("redis://a b", "host, host:port"),
        ("redis://a:0", "host, host:port"),
        ("redis://a:65536", "host, host:port"),
        ("redis://a,b", "one host"),
        ("redis://a/x", "number of a database"),
        ("redis://a/1/2", "number of a database"),
        ("redis+cluster://a/1", "none for a cluster"),
        ("redis+sentinel://a", "the service"),
        ("redis+sentinel://a/tidegate/x", "number of a database"),
        ("redis://a?timeout=3", "no other options"),
        ("redis://user:hush\u2100@a", "characters that do not belong"),
    ],
)
def test_a_url_that_is_none_says_what_is_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        parse_url(text)
    assert "hush" not in str(caught.value)


@given(st.text(max_size=40))
def test_whatever_is_given_the_answer_is_a_url_or_what_is_expected(rest: str) -> None:
    for scheme in ("redis://", "rediss+cluster://", "redis+sentinel://h/"):
        try:
            url = parse_url(scheme + rest)
        except ValueError:
            continue
        assert url.addresses
