from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings import OutsideIssuer, Settings, SettingsError, describe, duration, load, size

SECRET = "0123456789abcdef0123456789abcdef"
SECRETS = ("DATABASE_URL", "REDIS_URL", "JWT_SECRET", "METRICS_TOKEN")


def complaint(**settings: str) -> str:
    """What `load` says about these variables."""
    with pytest.raises(SettingsError) as caught:
        load({f"TIDEGATE_{name}": text for name, text in settings.items()})
    return str(caught.value)


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    assert load({}) == Settings(
        host="127.0.0.1",
        port=8080,
        data=Path("data"),
        database_url="",
        database_synchronous=False,
        database_partitions="month",
        redis_url="",
        redis_prefix="tidegate",
        workers=1,
        worker_timeout=10,
        cpu_pinning=False,
        tls_cert="",
        tls_key="",
        fast_lane=True,
        jwt_secret="",
        jwt_keys=None,
        jwt_signing_key="",
        jwt_issuer="tidegate",
        jwt_audience="tidegate",
        jwt_issuers=(),
        token_ttl=3600,
        token_ttl_max=30 * 86_400,
        rate_limit=0,
        point_limit=0,
        login_limit=10,
        retention=0,
        trusted_proxies=(),
        cors_origins=(),
        max_body=8 * 1024 * 1024,
        max_connections=10_000,
        header_timeout=10,
        body_timeout=10,
        keepalive_timeout=75,
        shutdown_timeout=8,
        queue_readings=200_000,
        queue_bytes=64 * 1024 * 1024,
        stream_queue=2 * 1024 * 1024,
        stream_window=32 * 1024 * 1024,
        stream_deflate=False,
        cache_devices=10_000,
        cache_ttl=60,
        metrics_port=0,
        metrics_token="",
        log_level="info",
        access_log=False,
    )


def test_an_empty_variable_is_one_not_set() -> None:
    fields = Settings.__struct_fields__
    assert load({f"TIDEGATE_{field.upper()}": "" for field in fields}) == load({})


def test_other_programs_variables_are_none_of_ours() -> None:
    assert load({"PORT": "1", "HOME": "/", "XTIDEGATE_PORT": "x"}) == load({})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604_800), ("0", 0)],
)
def test_durations_are_seconds_or_have_a_unit(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5s", "5M", "1w", "1h30m", "\u0665s", "9" * 20])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration like 30, 30s, 5m, 1h or 7d"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "amount"), [("100", 100), ("64KiB", 65_536), ("8MiB", 1 << 23), ("1 gib", 1 << 30)]
)
def test_sizes_are_bytes_or_have_a_unit(text: str, amount: int) -> None:
    assert size(text) == amount


@pytest.mark.parametrize("text", ["", "KiB", "8MB", "8K", "-1", "0.5MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size like 1048576, 64KiB, 8MiB or 1GiB"):
        size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("ON", True), ("0", False), ("False", False), ("off", False)],
)
def test_booleans_have_three_spellings_in_any_case(text: str, value: bool) -> None:
    assert load({"TIDEGATE_ACCESS_LOG": text}).access_log is value


def test_lists_are_comma_separated() -> None:
    settings = load(
        {
            "TIDEGATE_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8,::1,",
            "TIDEGATE_CORS_ORIGINS": "https://app.example.com, http://[::1]:3000",
            "TIDEGATE_JWT_ISSUERS": "https://a.example/=https://a.example/jwks?x=1, b=http://127.0.0.1:9/k",
        }
    )
    assert settings.trusted_proxies == tuple(map(ip_network, ("127.0.0.1", "10.0.0.0/8", "::1")))
    assert settings.cors_origins == ("https://app.example.com", "http://[::1]:3000")
    assert settings.jwt_issuers == (
        OutsideIssuer("https://a.example/", "https://a.example/jwks?x=1"),
        OutsideIssuer("b", "http://127.0.0.1:9/k"),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("WORKERS", "2"),
        ("FAST_LANE", "yes"),
        ("JWT_KEYS", "/no/such/directory"),
        ("JWT_SIGNING_KEY", "2026"),
        ("JWT_ISSUERS", "https://a.example"),
        ("JWT_ISSUERS", "a=https://x/k,a=https://y/k"),
        ("JWT_ISSUERS", "a=ftp://x/k"),
        ("JWT_ISSUERS", "tidegate=https://x/k"),
        ("TOKEN_TTL", "0"),
        ("TOKEN_TTL", "31d"),
        ("RATE_LIMIT", "60/m"),
        ("RETENTION", "forever"),
        ("TRUSTED_PROXIES", "proxy.example.com"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("CORS_ORIGINS", "app.example.com"),
        ("CORS_ORIGINS", "https://app.example.com/"),
        ("CORS_ORIGINS", "null"),
        ("MAX_BODY", "8MB"),
        ("MAX_CONNECTIONS", "0"),
        ("SHUTDOWN_TIMEOUT", "30s"),
        ("METRICS_PORT", "8080"),
        ("LOG_LEVEL", "loud"),
        ("HOST", "\udcff"),
    ],
)
def test_a_wrong_value_is_refused_with_the_variable_and_what_was_expected(name: str, text: str) -> None:
    message = complaint(**{name: text})
    assert message.startswith(f"TIDEGATE_{name} ")
    assert "expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "scheme"), [("DATABASE_URL", "postgresql://"), ("REDIS_URL", "redis://")])
def test_the_url_of_another_kind_of_server_is_refused_and_not_shown(name: str, scheme: str) -> None:
    message = complaint(**{name: "mysql://user:hush@host/db"})
    assert scheme in message
    assert "hush" not in message


def test_more_than_one_worker_needs_a_database_that_takes_several_writers() -> None:
    assert complaint(WORKERS="2") == "TIDEGATE_WORKERS is 2; expected 1 without TIDEGATE_DATABASE_URL"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = complaint(PORT="x", LOG_LEVEL="loud", PROT="1").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["TIDEGATE_PROT", "TIDEGATE_PORT", "TIDEGATE_LOG_LEVEL"]


def test_an_unknown_variable_is_an_error_that_names_the_nearest() -> None:
    assert (
        complaint(RATELIMIT="9") == "TIDEGATE_RATELIMIT is not a setting; did you mean TIDEGATE_RATE_LIMIT?"
    )
    assert "--help` lists them" in complaint(QQQQQQQQQQQQ="9")


def test_only_secrets_can_come_from_a_file() -> None:
    assert "TIDEGATE_PORT_FILE is not a setting" in complaint(PORT_FILE="/dev/null")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_a_file_without_its_trailing_newline(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(f"{SECRET}\n {ending}".encode())
    assert load({"TIDEGATE_JWT_SECRET_FILE": str(file)}).jwt_secret == f"{SECRET}\n "


def test_a_secret_is_set_in_one_place_only(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    assert "are both set" in complaint(JWT_SECRET=SECRET, JWT_SECRET_FILE=str(file))


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_secret_file_that_holds_none_is_an_error_not_the_default(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    assert complaint(JWT_SECRET_FILE=str(file)).startswith("TIDEGATE_JWT_SECRET_FILE names ")


def test_the_signing_secret_is_as_long_as_its_hash() -> None:
    assert load({"TIDEGATE_JWT_SECRET": SECRET}).jwt_secret == SECRET
    assert "at least 32 bytes" in complaint(JWT_SECRET=SECRET[1:])


@pytest.mark.parametrize("name", SECRETS)
@given(text=st.text(st.characters(categories=["L", "N", "P", "Z"]), min_size=8, max_size=30))
def test_no_error_shows_a_secret(name: str, text: str) -> None:
    # Hypothesis tries the words of the messages themselves; none of them has this sign.
    secret = "\N{PILCROW SIGN}" + text
    try:
        load({f"TIDEGATE_{name}": secret, "TIDEGATE_METRICS_TOKEN_FILE": secret})
    except SettingsError as error:
        assert secret not in str(error)  # noqa: PT017


def test_the_representation_shows_no_secret() -> None:
    settings = load({"TIDEGATE_JWT_SECRET": SECRET, "TIDEGATE_METRICS_TOKEN": "hushhush"})
    assert SECRET not in repr(settings)
    assert "hushhush" not in f"{settings}"
    assert "port=8080" in repr(settings)


def test_keys_have_a_directory_and_a_signer(tmp_path: Path) -> None:
    settings = load({"TIDEGATE_JWT_KEYS": str(tmp_path), "TIDEGATE_JWT_SIGNING_KEY": "2026"})
    assert (settings.jwt_keys, settings.jwt_signing_key) == (tmp_path, "2026")


@pytest.mark.parametrize("width", [80, 110])
def test_the_help_names_every_setting_with_its_default_in_columns(width: int) -> None:
    lines = describe(width).splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line for line in lines if line.startswith("TIDEGATE_")]
    assert [row.split()[0] for row in rows] == [
        f"TIDEGATE_{field.upper()}" for field in Settings.__struct_fields__
    ]
    column = lines[0].index("Address")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    defaults = {name: default for name, default, *_ in (row.split() for row in rows)}
    assert load({name: "" if text == "-" else text for name, text in defaults.items()}) == load({})


def test_the_help_says_which_settings_are_secrets() -> None:
    text = describe()
    assert all(f"TIDEGATE_{name}_FILE" in text for name in SECRETS)
    assert text.count("Secret:") == len(SECRETS)
