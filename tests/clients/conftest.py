"""What the tests with foreign clients share."""

from tests.reliability.conftest import port

__all__ = ["port"]
