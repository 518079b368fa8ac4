"""Where the gate listens: sockets, certificates, and the URL to get there."""

import logging
import socket
import ssl
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

from server.settings import Settings, SettingsError

_log = logging.getLogger("tidegate.sockets")

BACKLOG = 4096

# One for each address of the host.
Sockets = list[socket.socket]


def bind(host: str, port: int, slots: int = 1) -> list[Sockets]:
    """Sockets for each of the slots, among which the kernel spreads connections.

    They are bound and do not listen yet. OSError says which cannot be had, and why.
    """
    places: list[Sockets] = [[] for _ in range(slots)]
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(found):
                # All addresses of a name share the port that the first of them got.
                there = (str(address[0]), port, *address[2:])
                if slots > 1:
                    # Whoever listens there already is told only without SO_REUSEPORT.
                    with _bound(family, there) as alone:
                        there = alone.getsockname()
                for place in places:
                    place.append(stack.enter_context(_bound(family, there, shared=slots > 1)))
                port = places[0][-1].getsockname()[1]
        except OSError as error:
            raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        stack.pop_all()
    return places


def _bound(family: int, address: tuple[Any, ...], *, shared: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def url(settings: Settings, listening: socket.socket) -> str:
    """How to get to a socket from this machine."""
    host, port = listening.getsockname()[:2]
    return address(settings, host, port)


def address(settings: Settings, host: str, port: int) -> str:
    """The URL of a gate that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_private(host: str) -> bool:
    """Whether only this machine gets to the host's addresses."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def tls(settings: Settings, context: ssl.SSLContext | None = None) -> ssl.SSLContext | None:
    """TLS with the certificate of the settings, None without one; reads files.

    `context`: the one to renew, for connections to come. SettingsError if the files cannot be used; it
    is as it was then.
    """
    if not settings.tls_cert:
        return None
    fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fresh.minimum_version = ssl.TLSVersion.TLSv1_2
    fresh.set_alpn_protocols(["http/1.1"])
    for one in (fresh, context):
        if one is not None:
            try:
                # An encrypted key would be asked for on the terminal.
                one.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
            except OSError as error:
                reason = error.strerror or error
                raise SettingsError(
                    f"TIDEGATE_TLS_CERT and TIDEGATE_TLS_KEY: expected a certificate and its key ({reason})"
                ) from error
    return context or fresh


def renew(settings: Settings, context: ssl.SSLContext | None) -> None:
    """Read the certificate again; if it cannot be used, the old one stays."""
    if context is not None:
        try:
            tls(settings, context)
        except SettingsError as error:
            _log.error("the certificate was not reloaded", extra={"error": str(error)})
        else:
            _log.info("the certificate was reloaded")


def trusting(settings: Settings) -> ssl.SSLContext | bool:
    """How our own commands get to the gate: they trust the very certificate of the settings, whatever
    name it bears; True: as everybody does.
    """
    if not settings.tls_cert:
        return True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(settings.tls_cert)
    return context
