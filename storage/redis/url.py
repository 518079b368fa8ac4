"""The URLs of Redis: one server, the nodes of a cluster, or the sentinels that know the master.

    redis://[user:password@]host[:port][/db]
    redis+cluster://[user:password@]host[:port][,host[:port]...]
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db][?sentinel_password=...]

With `rediss` instead of `redis`: over TLS. `?ca=<file>` names the authority of the server's certificate.
User and password are percent-encoded; those of a sentinel URL are the servers', not the sentinels'.
"""

import re
import ssl
from enum import Enum
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

PORT = 6379
SENTINEL_PORT = 26379
_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,4}", re.ASCII)
_OPTIONS = frozenset(("ca", "sentinel_password"))

# Host and port.
Address = tuple[str, int]


class Kind(Enum):
    """What stands behind a URL."""

    SERVER = "redis"
    CLUSTER = "redis+cluster"
    SENTINEL = "redis+sentinel"


_SCHEMES = {kind.value: (kind, False) for kind in Kind} | {
    kind.value.replace("redis", "rediss"): (kind, True) for kind in Kind
}


class RedisUrl(Struct, frozen=True, kw_only=True):
    """Where Redis is and how to log in. `service`: the master's name, for sentinels."""

    kind: Kind
    tls: bool
    addresses: tuple[Address, ...]
    username: str = ""
    password: str = ""
    db: int = 0
    service: str = ""
    ca: str = ""
    sentinel_password: str = ""

    def context(self) -> ssl.SSLContext | None:
        """The context of TLS, None without it. Reads files: not on the event loop. OSError, SSLError."""
        return ssl.create_default_context(cafile=self.ca or None) if self.tls else None


def parse_url(text: str) -> RedisUrl:
    """Read a URL; ValueError says what is expected (and does not show the URL, which holds a secret)."""
    scheme, _, rest = text.partition("://")
    if scheme not in _SCHEMES or not rest:
        raise ValueError(f"a URL that begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
    kind, tls = _SCHEMES[scheme]
    try:
        # It reads a list of hosts as one, which is all that is asked of it.
        parts = urlsplit(f"//{rest}")
    except ValueError:
        # What it says shows the secret.
        raise ValueError("a URL without characters that do not belong there") from None
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(options) - _OPTIONS:
        raise ValueError(f"no other options than {', '.join(sorted(_OPTIONS))} (found {min(unknown)[:40]!r})")
    addresses = _addresses(hosts, SENTINEL_PORT if kind is Kind.SENTINEL else PORT)
    if kind is Kind.SERVER and len(addresses) > 1:
        raise ValueError("one host; several are redis+cluster:// or redis+sentinel://")
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = ""
    if kind is Kind.SENTINEL:
        if not path:
            raise ValueError("the service behind the hosts: redis+sentinel://host,host/service")
        service = path.pop(0)
    if len(path) > 1 or not all(map(_NUMBER.fullmatch, path)) or (path and kind is Kind.CLUSTER):
        raise ValueError("at most the number of a database after the host, and none for a cluster")
    return RedisUrl(
        kind=kind,
        tls=tls,
        addresses=addresses,
        username=unquote(username),
        password=unquote(password),
        db=int(path[0]) if path else 0,
        service=service,
        ca=options.get("ca", ""),
        sentinel_password=options.get("sentinel_password", ""),
    )


def _addresses(hosts: str, port: int) -> tuple[Address, ...]:
    found = [_HOST.fullmatch(host) for host in hosts.split(",")]
    addresses = tuple((match["host"].strip("[]"), int(match["port"] or port)) for match in found if match)
    if len(addresses) != len(found) or not all(0 < port < 65_536 for _, port in addresses):
        raise ValueError("host, host:port or [IPv6]:port, comma separated")
    return addresses
