"""What a libpq URL names: the parameters of a session and the hosts that may hold it."""

import ipaddress
import socket
from collections.abc import Iterator

import psycopg2
import psycopg2.extensions
from msgspec import Struct

from storage.errors import StorageError

# Unless the URL says otherwise. A session is for writing too, so a standby is passed over. GSS encryption
# would look up realms in the network under the interpreter's lock. A peer that is silent for three seconds,
# idle or not, counts as lost.
_DEFAULTS = {
    "target_session_attrs": "read-write",
    "gssencmode": "disable",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "3000",
    "client_encoding": "UTF8",
}
# These belong to one host each, or would only hold for connecting by libpq itself.
_LISTS = ("host", "hostaddr", "port")
_OURS = ("connect_timeout", "load_balance_hosts")


class Host(Struct, frozen=True):
    """One host of a URL; "" is what libpq takes by default."""

    name: str
    address: str
    port: str

    def addresses(self) -> Iterator[dict[str, str]]:
        """The parameters that reach it, a set for each of its addresses. Asks the DNS: blocks, OSError."""
        parameters = {"host": self.name, "hostaddr": self.address, "port": self.port}
        given = {key: value for key, value in parameters.items() if value}
        if self.address or not self.name or self.name.startswith(("/", "@")) or _is_address(self.name):
            yield given
            return
        found = socket.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            yield {**given, "hostaddr": address}


class Database(Struct, frozen=True):
    """A URL taken apart: what all hosts have in common, and the hosts in its order."""

    parameters: dict[str, str]
    hosts: tuple[Host, ...]


def parse(url: str, application: str) -> Database:
    """Read a libpq URL or DSN, several hosts included; `application` names the sessions to the server.

    StorageError if libpq cannot read it. What it says of passwords is never in the error.
    """
    try:
        parameters: dict[str, str] = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:
        # libpq repeats what it could not read.
        raise StorageError("the database's URL is not one that libpq understands") from None
    names, addresses, ports = (parameters.pop(name, "").split(",") for name in _LISTS)
    count = max(len(names), len(addresses))
    hosts = [
        Host(name, address, port)
        for name, address, port in zip(
            _spread(names, count), _spread(addresses, count), _spread(ports, count), strict=True
        )
    ]
    for name in _OURS:
        parameters.pop(name, None)
    return Database({"application_name": application, **_DEFAULTS, **parameters}, tuple(hosts))


def _spread(values: list[str], count: int) -> list[str]:
    """One value for each host: a single one holds for all, as in libpq."""
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise StorageError("the database's URL does not give one port for all hosts, or one for each")
    return values


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
