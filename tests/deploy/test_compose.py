"""compose.yaml: it keeps to the specification, and its parts find each other."""

import os
import re
import subprocess
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from server.settings import Settings, load
from tests.deploy.test_nginx_settings import directives
from tests.running import ROOT

FILE = ROOT / "compose.yaml"
SECRETS = {"TIDEGATE_JWT_SECRET": "0123456789abcdef" * 4, "POSTGRES_PASSWORD": "pass-word"}
GATES = ("gate1", "gate2")
# ${NAME:?}, ${NAME:-default}
VARIABLE = re.compile(r"\$\{([A-Z_]+):([?-])([^}]*)\}")


def interpolated() -> str:
    """The file as compose reads it with the secrets alone set."""

    def value(found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        return SECRETS[name] if kind == "?" else SECRETS.get(name, default)

    return VARIABLE.sub(value, FILE.read_text())


@pytest.fixture
def services() -> dict[str, Any]:
    """The services."""
    found: dict[str, Any] = yaml.safe_load(interpolated())["services"]
    return found


def settings(service: dict[str, Any]) -> Settings:
    """What a gate makes of its environment; SettingsError if it would not start."""
    return load({name: text for name, text in service["environment"].items() if name.startswith("TIDEGATE_")})


def test_it_keeps_to_the_specification() -> None:
    compose = PyCompose.from_yaml(interpolated())
    compose.validate()
    assert set(compose.service_names()) >= {*GATES, "nginx", "postgres", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize(
    "planted",
    [
        ("healthcheck:", "healthchecks:"),
        ("restart: unless-stopped", "restart: often"),
        ("[back]", "[nowhere]"),
    ],
)
def test_the_specification_is_really_asked(planted: tuple[str, str]) -> None:
    text = interpolated()
    assert planted[0] in text
    with pytest.raises(ValueError, match=r"."):
        PyCompose.from_yaml(text.replace(*planted)).validate()


@pytest.mark.system
def test_docker_compose_takes_it() -> None:
    run = config(SECRETS)
    assert (run.returncode, run.stderr) == (0, "")
    shown = yaml.safe_load(run.stdout)["services"]
    assert shown["gate1"]["environment"] == shown["gate2"]["environment"]


@pytest.mark.system
@pytest.mark.parametrize("secret", SECRETS)
def test_nothing_starts_without_its_secrets(secret: str) -> None:
    run = config({name: text for name, text in SECRETS.items() if name != secret})
    assert run.returncode != 0
    assert secret in run.stderr


def config(secrets: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`docker-compose config`, which needs no engine."""
    kept = {name: text for name, text in os.environ.items() if name not in SECRETS}
    command = ["docker-compose", "--file", str(FILE), "config"]
    return subprocess.run(
        command, cwd=ROOT, env=kept | secrets, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_gates_start_with_what_they_are_given(services: dict[str, Any]) -> None:
    one, other = (settings(services[name]) for name in GATES)
    assert one == other
    assert one.jwt_secret == SECRETS["TIDEGATE_JWT_SECRET"]
    database, redis = one.database_url, one.redis_url
    assert database == f"postgresql://tidegate:{SECRETS['POSTGRES_PASSWORD']}@postgres:5432/tidegate"
    assert redis == "redis://redis:6379/0"
    given = services["postgres"]["environment"]
    assert (given["POSTGRES_USER"], given["POSTGRES_DB"]) == ("tidegate", "tidegate")


def test_only_nginx_is_believed(services: dict[str, Any]) -> None:
    (address,) = (network["ipv4_address"] for network in services["nginx"]["networks"].values())
    (trusted,) = settings(services["gate1"]).trusted_proxies
    assert trusted == ip_network(address)
    (subnet,) = yaml.safe_load(FILE.read_text())["networks"]["front"]["ipam"]["config"]
    assert ip_address(address) in ip_network(subnet["subnet"])


def test_nginx_and_prometheus_know_every_gate(services: dict[str, Any]) -> None:
    wanted = {f"{name}:8080" for name, service in services.items() if "build" in service}
    assert wanted == {f"{name}:8080" for name in GATES}
    assert {arguments[0] for arguments in directives("server") if arguments} == wanted
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert set(job["static_configs"][0]["targets"]) == wanted
    # Who asks whom must share a network.
    for name in GATES:
        assert "front" in services[name]["networks"]
    assert "front" in services["nginx"]["networks"]
    assert "front" in services["prometheus"]["networks"]


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    files = [mount for mount in mounts if mount.startswith(".")]
    assert len(files) >= 5
    for mount in files:
        source, _, mode = mount.split(":")
        assert (ROOT / source).exists(), mount
        assert mode == "ro"


def test_only_this_machine_gets_in_and_images_are_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" not in service:
            assert re.fullmatch(r"[a-z/-]+:v?[0-9]+\.?[0-9.]*[a-z-]*", service["image"]), name


def test_a_gate_has_no_more_rights_than_it_needs_and_time_to_finish(services: dict[str, Any]) -> None:
    for name in GATES:
        gate = services[name]
        assert gate["cap_drop"] == ["ALL"]
        assert gate["read_only"] is True
        assert gate["security_opt"] == ["no-new-privileges:true"]
        # Promise 10: 10 s.
        assert int(gate["stop_grace_period"].removesuffix("s")) > 10
        assert gate["ulimits"]["nofile"] > settings(gate).max_connections


def test_postgresql_keeps_what_it_has_committed(services: dict[str, Any]) -> None:
    """Promise 1 is PostgreSQL's to keep."""
    command = " ".join(services["postgres"]["command"])
    for dangerous in ("synchronous_commit=off", "fsync=off", "full_page_writes=off"):
        assert dangerous not in command
