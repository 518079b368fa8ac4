"""Every setting, its default and its meaning; read from the environment once, at start.

The fields of `Settings` are the one table: type, default, parser and meaning stand in a line, and
parsing and the help text both walk it.
"""

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from msgspec import Struct

from storage.redis.url import parse_url

PREFIX = "TIDEGATE_"
_FILE = "_FILE"

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_BYTES = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_AMOUNT = re.compile(r"([0-9]{1,15}) ?([A-Za-z]*)", re.ASCII)
_ISSUER = re.compile(r"(?P<issuer>[^\s,]+?)=(?P<jwks_url>https?://[^\s,/]+[^\s,]*)", re.ASCII)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_HS256_BYTES = 32


class SettingsError(Exception):
    """Settings are wrong. One line for each: its variable, what was found, what was expected."""


class Supervisor(Struct, frozen=True):
    """Who wants to be told how the service is (sd_notify): its socket, "" for nobody, and within how many
    seconds it wants to hear that the process lives, 0 for never.
    """

    address: str = ""
    watchdog: float = 0.0


class OutsideIssuer(Struct, frozen=True):
    """Whose tokens count beside our own, and where its keys are."""

    issuer: str
    jwks_url: str


Issuers = tuple[OutsideIssuer, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]
Origins = tuple[str, ...]


class _Row(Struct, frozen=True):
    """What the table says of a setting. `parse` raises ValueError that says what is expected."""

    default: str
    parse: Callable[[str], Any]
    meaning: str


class _Secret(_Row, frozen=True):
    """One that is never shown, and that a file may hold."""


def duration(text: str) -> int:
    """Seconds, from `30`, `30s`, `5m`, `1h` or `7d`; ValueError says what is expected."""
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] not in _SECONDS:
        raise ValueError("a duration like 30, 30s, 5m, 1h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def size(text: str) -> int:
    """Bytes, from `8388608`, `64KiB` or `8MiB`; ValueError says what is expected."""
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2].lower() not in _BYTES:
        raise ValueError("a size like 1048576, 64KiB, 8MiB or 1GiB")
    return int(found[1]) * _BYTES[found[2].lower()]


def _integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise ValueError("an integer")
    return int(text)


def _within(parse: Callable[[str], int], low: str, high: str) -> Callable[[str], int]:
    """The same parser, with both bounds (as it would read them) included."""
    least, most = parse(low), parse(high)

    def bounded(text: str) -> int:
        try:
            value = parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, from {low} to {high}") from None
        if not least <= value <= most:
            raise ValueError(f"{low} to {high}")
        return value

    return bounded


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "on"):
        return True
    if text.lower() in ("0", "false", "off"):
        return False
    raise ValueError("1, true or on, or 0, false or off")


def _text(text: str) -> str:
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("printable ASCII without spaces, as a Bearer token must be")
    return text


def _hmac(text: str) -> str:
    if text and len(text.encode()) < _HS256_BYTES:
        raise ValueError(f"at least {_HS256_BYTES} bytes, as HS256 needs (RFC 7518, 3.2)")
    return text


def _url(*schemes: str) -> Callable[[str], str]:
    """Of a server: one of these schemes, or empty."""

    def url(text: str) -> str:
        if text and text.partition("://")[0] not in schemes:
            raise ValueError(f"a URL that begins with {' or '.join(scheme + '://' for scheme in schemes)}")
        return text

    return url


def _redis(text: str) -> str:
    if text:
        parse_url(text)
    return text


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text, re.ASCII):
        raise ValueError("1 to 64 of A-Z a-z 0-9 _ . : -")
    return text


def _level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error", "critical"):
        raise ValueError("debug, info, warning, error or critical")
    return text.lower()


def _partitions(text: str) -> str:
    if text not in ("month", "day"):
        raise ValueError("month or day")
    return text


def _directory(text: str) -> Path | None:
    if text and not Path(text).is_dir():
        raise ValueError("an existing directory")
    return Path(text) if text else None


def _file(text: str) -> str:
    if text and not Path(text).is_file():
        raise ValueError("an existing file")
    return text


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _issuers(text: str) -> Issuers:
    found = [_ISSUER.fullmatch(item) for item in _items(text)]
    issuers = {match["issuer"]: OutsideIssuer(**match.groupdict()) for match in found if match}
    if len(issuers) != len(found):
        raise ValueError("comma separated issuer=jwks_url, each issuer once, the URLs http(s)")
    return tuple(issuers.values())


def _networks(text: str) -> Networks:
    try:
        return tuple(ip_network(item) for item in _items(text))
    except ValueError as error:
        raise ValueError(f"comma separated addresses or networks like 10.0.0.0/8 ({error})") from None


def _origins(text: str) -> Origins:
    items = _items(text)
    if not all(item == "*" or _ORIGIN.fullmatch(item) for item in items):
        raise ValueError("comma separated origins like https://app.example.com, in lower case, or *")
    return tuple(items)


_SIZE = _within(size, "1KiB", "1GiB")
_QUEUE = _within(size, "64KiB", "1GiB")
_COUNT = _within(_integer, "1", "1000000000")
_LIMIT = _within(_integer, "0", "1000000000")
_PORT = _within(_integer, "0", "65535")
_TTL = _within(duration, "1s", "3660d")
_AGE = _within(duration, "0", "36600d")
_WAIT = _within(duration, "1s", "1h")
_SILENCE = _within(duration, "2s", "1h")
# Promise 10: the process is gone 10 s after SIGTERM.
_END = _within(duration, "1s", "9s")
_WORKERS = _within(_integer, "1", "64")
_POSTGRES = _url("postgresql", "postgres")


class Settings(Struct, frozen=True, kw_only=True):
    """What can be set. Durations are in seconds, sizes in bytes; an empty variable is one not set."""

    host: Annotated[str, _Row("127.0.0.1", _text, "Address to listen on.")]
    port: Annotated[int, _Row("8080", _PORT, "Port to listen on; 0 takes any free one.")]
    data: Annotated[Path, _Row("./data", Path, "Directory of the embedded database and the keys.")]
    database_url: Annotated[
        str, _Secret("", _POSTGRES, "PostgreSQL, postgresql://...; empty: embedded SQLite.")
    ]
    database_synchronous: Annotated[
        bool, _Row("0", _boolean, "A failover of PostgreSQL loses no commit: keep the epoch.")
    ]
    database_partitions: Annotated[
        str, _Row("month", _partitions, "Time that a partition of readings holds: month or day.")
    ]
    redis_url: Annotated[
        str,
        _Secret(
            "",
            _redis,
            "Redis that workers and nodes share: redis://host:port/db, redis+cluster://host,host, "
            "redis+sentinel://host,host/service, rediss... with TLS; empty: none.",
        ),
    ]
    redis_prefix: Annotated[
        str, _Row("tidegate", _prefix, "Begins all names in Redis; each gate on one Redis needs its own.")
    ]
    workers: Annotated[int, _Row("1", _WORKERS, "Processes that serve; more than one needs PostgreSQL.")]
    worker_timeout: Annotated[
        int, _Row("10s", _SILENCE, "Silence after which one of several workers is killed and replaced.")
    ]
    cpu_pinning: Annotated[bool, _Row("0", _boolean, "Give each worker a CPU of its own.")]
    tls_cert: Annotated[str, _Row("", _file, "PEM file of the certificate and its chain; empty: no TLS.")]
    tls_key: Annotated[str, _Row("", _file, "PEM file of its private key.")]
    fast_lane: Annotated[bool, _Row("1", _boolean, "Answer plain requests by the short way.")]

    jwt_secret: Annotated[str, _Secret("", _hmac, "Key of HS256 tokens; empty: made once under the data.")]
    jwt_keys: Annotated[
        Path | None, _Row("", _directory, "Directory of EdDSA, ES256, RS256 keys: <kid>.pem.")
    ]
    jwt_signing_key: Annotated[
        str, _Row("", _text, "kid of the key that signs tokens; empty: the HS256 one.")
    ]
    jwt_issuer: Annotated[str, _Row("tidegate", _text, "iss of the gate's own tokens.")]
    jwt_audience: Annotated[str, _Row("tidegate", _text, "aud that a token must carry.")]
    jwt_issuers: Annotated[Issuers, _Row("", _issuers, "Outside issuers: issuer=jwks_url, comma separated.")]
    token_ttl: Annotated[int, _Row("1h", _TTL, "Lifetime of a token when no other is asked for.")]
    token_ttl_max: Annotated[int, _Row("30d", _TTL, "Longest lifetime of a token.")]

    rate_limit: Annotated[int, _Row("0", _LIMIT, "Requests per minute and principal; 0: no limit.")]
    point_limit: Annotated[int, _Row("0", _LIMIT, "Readings per minute and principal; 0: no limit.")]
    login_limit: Annotated[int, _Row("10", _LIMIT, "Failed logins per minute and address; 0: no limit.")]
    retention: Annotated[int, _Row("0", _AGE, "Age at which readings are removed; 0: never.")]
    trusted_proxies: Annotated[Networks, _Row("", _networks, "Networks whose X-Forwarded-For counts.")]
    cors_origins: Annotated[Origins, _Row("", _origins, "Origins that browsers may call from; * is any.")]

    max_body: Annotated[int, _Row("8MiB", _SIZE, "Largest request body, its content coding undone.")]
    max_connections: Annotated[
        int, _Row("10000", _COUNT, "Connections of a worker that are open at one time.")
    ]
    header_timeout: Annotated[int, _Row("10s", _WAIT, "Time a client has to send the head of a request.")]
    body_timeout: Annotated[int, _Row("10s", _WAIT, "Time a client has to send the body of a request.")]
    keepalive_timeout: Annotated[int, _Row("75s", _WAIT, "Time that a connection idles between requests.")]
    shutdown_timeout: Annotated[int, _Row("8s", _END, "Time that requests have to finish after SIGTERM.")]
    queue_readings: Annotated[int, _Row("200000", _COUNT, "Readings that may wait for the commit.")]
    queue_bytes: Annotated[int, _Row("64MiB", _SIZE, "Bytes of readings that may wait for the commit.")]
    stream_queue: Annotated[int, _Row("2MiB", _QUEUE, "Bytes that may wait for one follower of a stream.")]
    stream_window: Annotated[int, _Row("32MiB", _SIZE, "Memory for the newest readings, to resume from.")]
    stream_deflate: Annotated[
        bool, _Row("0", _boolean, "Compress frames for WebSocket clients that offer permessage-deflate.")
    ]
    cache_devices: Annotated[int, _Row("10000", _COUNT, "Devices whose newest values stay in memory.")]
    cache_ttl: Annotated[int, _Row("60s", _WAIT, "Time they stay there before the database is asked.")]

    metrics_port: Annotated[int, _Row("0", _PORT, "Port of /metrics alone; 0: on the main one.")]
    metrics_token: Annotated[str, _Secret("", _token, "Bearer token that /metrics asks for; empty: none.")]
    log_level: Annotated[str, _Row("info", _level, "debug, info, warning, error or critical.")]
    access_log: Annotated[bool, _Row("0", _boolean, "Log a line for each request.")]

    def __repr__(self) -> str:
        shown = (
            f"{field}={getattr(self, field)!r}"
            for field, row in _TABLE.items()
            if not isinstance(row, _Secret)
        )
        return f"Settings({', '.join(shown)})"


_TABLE: dict[str, _Row] = {
    field: hint.__metadata__[0] for field, hint in get_type_hints(Settings, include_extras=True).items()
}


def from_environment() -> Settings:
    """The settings of this process."""
    return load(os.environ)


def supervisor() -> Supervisor:
    """Who supervises this process (sd_notify(3), sd_watchdog_enabled(3))."""
    watchdog = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    seconds = int(watchdog) / 1e6 if mine and watchdog.isdecimal() else 0.0
    return Supervisor(os.environ.get("NOTIFY_SOCKET", ""), seconds)


def load(environ: Mapping[str, str]) -> Settings:
    """Read and check all settings. SettingsError names everything that is wrong, a line each."""
    wrong = _unknown(environ)
    values: dict[str, Any] = {}
    for field, row in _TABLE.items():
        try:
            values[field] = _value(environ, _variable(field), row)
        except SettingsError as error:
            wrong.append(str(error))
    if wrong:
        raise SettingsError("\n".join(wrong))
    settings = Settings(**values)
    if wrong := _contradictions(settings):
        raise SettingsError("\n".join(wrong))
    return settings


def describe(width: int = 110) -> str:
    """The help text: name, default and meaning of each setting in columns, wrapped to `width`."""
    names = {field: _variable(field) for field in _TABLE}
    first = max(map(len, names.values())) + 2
    second = max(len(row.default) for row in _TABLE.values()) + 2
    lines = []
    for field, row in _TABLE.items():
        meaning = row.meaning
        if isinstance(row, _Secret):
            meaning += f" Secret: {names[field]}{_FILE} may name a file that holds it."
        lines += textwrap.wrap(
            meaning,
            width,
            initial_indent=f"{names[field]:<{first}}{row.default or '-':<{second}}",
            subsequent_indent=" " * (first + second),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _value(environ: Mapping[str, str], name: str, row: _Row) -> Any:
    """The value of one setting; SettingsError says what is wrong with it."""
    text = environ.get(name, "")
    file = environ.get(name + _FILE, "") if isinstance(row, _Secret) else ""
    if text and file:
        raise SettingsError(f"{name} and {name + _FILE} are both set; expected one of them")
    if file:
        name, text = name + _FILE, _content(name + _FILE, file)
    try:
        bytes_found = len(text.encode())
    except UnicodeEncodeError:
        raise SettingsError(f"{name} holds bytes that are no text; expected UTF-8") from None
    try:
        return row.parse(text or row.default)
    except ValueError as error:
        shown = f"a secret of {bytes_found} bytes" if isinstance(row, _Secret) else repr(text[:100])
        raise SettingsError(f"{name} is {shown}; expected {error}") from None


def _content(name: str, file: str) -> str:
    """The secret that a file holds, without its trailing newline."""
    # The path is not shown: who mixes up the two variables has put the secret there.
    try:
        text = Path(file).read_text("utf-8").removesuffix("\n")
    except OSError as error:
        raise SettingsError(f"{name} names no readable file ({error.strerror})") from None
    except ValueError:
        raise SettingsError(f"{name} names a file that holds no text; expected UTF-8") from None
    if not text:
        raise SettingsError(f"{name} names an empty file; expected a secret in it")
    return text


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """What is wrong with the names of the variables."""
    known = {_variable(field) for field in _TABLE}
    known |= {_variable(field) + _FILE for field, row in _TABLE.items() if isinstance(row, _Secret)}
    wrong = []
    for name in sorted(set(environ) - known):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`tidegate serve --help` lists them"
            wrong.append(f"{name} is not a setting; {hint}")
    return wrong


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong between settings that are right alone."""
    wrong = []
    if settings.workers > 1 and not settings.database_url:
        wrong.append(f"{PREFIX}WORKERS is {settings.workers}; expected 1 without {PREFIX}DATABASE_URL")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        missing, given = ("CERT", "KEY") if settings.tls_key else ("KEY", "CERT")
        wrong.append(f"{PREFIX}TLS_{missing} is empty; expected it beside {PREFIX}TLS_{given}")
    if settings.token_ttl > settings.token_ttl_max:
        wrong.append(
            f"{PREFIX}TOKEN_TTL is {settings.token_ttl} s; "
            f"expected at most {PREFIX}TOKEN_TTL_MAX, {settings.token_ttl_max} s"
        )
    if settings.jwt_signing_key and settings.jwt_keys is None:
        wrong.append(
            f"{PREFIX}JWT_SIGNING_KEY is {settings.jwt_signing_key!r}; "
            f"expected {PREFIX}JWT_KEYS to be set too"
        )
    if settings.jwt_issuer in {outside.issuer for outside in settings.jwt_issuers}:
        wrong.append(
            f"{PREFIX}JWT_ISSUERS names {settings.jwt_issuer!r}; expected issuers other than our own"
        )
    if settings.metrics_port and settings.metrics_port == settings.port:
        wrong.append(
            f"{PREFIX}METRICS_PORT is {settings.metrics_port}; expected another port than the main one"
        )
    return wrong
