"""Which aiohttp the fast lane is used with.

It takes requests away from aiohttp by private parts of its protocol, and its boundary rules rest on
how the C parser frames requests. Both were looked through and tested with the versions below
(tests/server/test_aiohttp_contract.py); with any other everything goes by the common lane.
"""

import aiohttp
from aiohttp.http import HttpRequestParser

# Raise it together with the pin in setup.cfg, once the contract test is green with the new version.
TESTED = ("3.14.5",)
C_PARSER = "aiohttp._http_parser"


def obstacle() -> str:
    """Why the fast lane cannot be used with the aiohttp that is installed, and what helps; "" if it can."""
    if aiohttp.__version__ not in TESTED:
        return (
            f"aiohttp is {aiohttp.__version__}, the fast lane was tested with {', '.join(TESTED)}: "
            f"install one of these, or set TIDEGATE_FAST_LANE=0"
        )
    if HttpRequestParser.__module__ != C_PARSER:
        return (
            "aiohttp runs without its C parser, on which the fast lane relies: install a wheel of it or a "
            "compiler, unset AIOHTTP_NO_EXTENSIONS, or set TIDEGATE_FAST_LANE=0"
        )
    return ""
