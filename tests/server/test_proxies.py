"""Whose address counts behind proxies."""

from ipaddress import ip_network

import pytest

from server.proxies import Proxies

PROXIES = Proxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("1.1.1.1", "9.9.9.9", "1.1.1.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "6.6.6.6, 9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "6.6.6.6,9.9.9.9 , 10.1.1.1", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "9.9.9.9, unknown", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:80", "10.0.0.1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("", "9.9.9.9", ""),
    ],
    ids=[
        "a stranger is not believed", "nothing said", "one hop", "what the client claims", "two proxies",
        "proxies alone", "no address", "with a port", "IPv6", "no peer",
    ],
)  # fmt: skip
def test_the_last_address_that_is_no_trusted_proxy_counts(peer: str, forwarded: str, client: str) -> None:
    assert PROXIES.client(peer, forwarded) == client
