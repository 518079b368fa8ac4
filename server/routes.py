"""The one table of routes: method, path, handler, kind, scope, cost."""

from auth.principal import Scope
from handlers.console import Console
from handlers.devices import DeviceHandlers
from handlers.exchange import Kind, Media, Plan, each
from handlers.health import Health
from handlers.reading import Readings
from handlers.sse import EventStreams
from handlers.tokens import TokenHandlers
from handlers.websocket import WebSockets
from handlers.writing import Writing
from server.dispatch import Endpoint
from server.router import Route

Table = list[Route[Endpoint]]

METRICS = "/metrics"
# What is served on a port of its own, if there is one for /metrics.
OPERATIONS = frozenset((METRICS, "/livez", "/readyz"))

_DATA = (Media.JSON, Media.MSGPACK)
_EXPORT = (Media.JSON, Media.MSGPACK, Media.CSV, Media.NDJSON)
_WRITE = (Media.JSON, Media.MSGPACK, Media.NDJSON)
_FORM = (Media.FORM,)
_JSON = (Media.JSON,)
_TEXT = (Media.TEXT,)
_EVENTS = (Media.EVENTS,)
_HTML = (Media.HTML,)


class _Rows:
    """The table while it is written."""

    def __init__(self) -> None:
        self.table: Table = []

    def add(
        self,
        method: str,
        path: str,
        plan: Plan,
        kind: Kind,
        scope: Scope | None,
        cost: int = 1,
        offers: tuple[Media, ...] = _DATA,
        consumes: tuple[Media, ...] = (),
    ) -> None:
        """A row; `cost`: how many requests one counts as."""
        endpoint = Endpoint(
            index=len(self.table),
            template=path,
            plan=plan,
            kind=kind,
            scope=scope,
            cost=cost,
            offers=offers,
            consumes=consumes,
        )
        self.table.append(Route(method, path, endpoint))


def table(
    writing: Writing,
    readings: Readings,
    devices: DeviceHandlers,
    tokens: TokenHandlers,
    health: Health,
    sockets: WebSockets,
    events: EventStreams,
    console: Console,
) -> Table:
    """All routes."""
    rows = _Rows()
    add = rows.add
    write, read = Scope.READINGS_WRITE, Scope.READINGS_READ
    manage, look, admin = Scope.DEVICES_WRITE, Scope.DEVICES_READ, Scope.ADMIN
    sync, commit, coroutine, cached = Kind.SYNC, Kind.COMMIT, Kind.COROUTINE, Kind.CACHED
    stream = Kind.STREAM

    add("POST", "/v1/devices/{device}/readings", writing.of_device, commit, write, consumes=_WRITE)
    add("POST", "/v1/readings", writing.of_any, commit, write, consumes=_WRITE)
    add("GET", "/v1/devices/{device}/latest", readings.latest, cached, read)
    add("GET", "/v1/latest", each(readings.latest_page), coroutine, read)
    add("GET", "/v1/devices/{device}/readings", readings.range, coroutine, read, offers=_EXPORT)
    add("GET", "/v1/readings", each(readings.log), coroutine, read, offers=_EXPORT)

    # Which scopes a socket needs depends on what is said over it.
    add("GET", "/v1/stream", each(sockets.open), stream, Scope.NONE)
    add("GET", "/v1/events", each(events.open), stream, read, offers=_EVENTS)

    add("GET", "/v1/devices", each(devices.list), coroutine, look)
    add("GET", "/v1/devices/{device}", each(devices.get), coroutine, look)
    add("PUT", "/v1/devices/{device}", each(devices.put), coroutine, manage, consumes=_DATA)
    add("DELETE", "/v1/devices/{device}", each(devices.delete), coroutine, manage)

    add("POST", "/v1/token", each(tokens.token), coroutine, None, offers=_JSON, consumes=_FORM)
    add("POST", "/v1/token/revoke", each(tokens.revoke), coroutine, None, offers=_JSON, consumes=_FORM)
    add("POST", "/v1/clients", each(tokens.create_client), coroutine, admin, consumes=_DATA)
    add("GET", "/v1/clients", each(tokens.clients), coroutine, admin)
    add("DELETE", "/v1/clients/{id}", each(tokens.delete_client), coroutine, admin)
    add("GET", "/.well-known/jwks.json", each(tokens.jwks), sync, None, offers=_JSON)

    add("GET", "/livez", each(health.livez), sync, None, offers=_JSON)
    add("GET", "/readyz", each(health.readyz), coroutine, None, offers=_JSON)
    add("GET", "/problems", each(health.problems), sync, None)
    add("GET", "/problems/{code}", each(health.problem), sync, None)
    add("GET", METRICS, each(health.metrics), coroutine, None, offers=_TEXT)
    add("GET", "/", each(console.page), sync, None, offers=_HTML)
    return rows.table
