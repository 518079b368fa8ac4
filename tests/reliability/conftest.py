"""What the tests of reliability share."""

import random
import socket

import pytest


@pytest.fixture
def port() -> int:
    """A free port to come back to: below those that the kernel gives to outgoing connections.

    Whoever connects to a closed port among those may, by chance, get through to itself.
    """
    while True:
        number = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
