"""The Kubernetes manifests: they are valid, fit each other, and the gate starts with what they give it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings, SettingsError, load
from tests.raw import Raw, request
from tests.running import ROOT, run_process

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
# The oldest that clusters still run, and the newest that the validator knows.
VERSIONS = ("1.30.0", "1.37.0")
VALIDATE = str(Path(sys.executable).with_name("kubernetes-validate"))
NAME = {"app.kubernetes.io/name": "tidegate"}


def documents() -> Iterator[dict[str, Any]]:
    """Every manifest."""
    for file in FILES:
        yield from yaml.safe_load_all(file.read_text())


def one(kind: str) -> dict[str, Any]:
    """The only manifest of a kind."""
    (found,) = (document for document in documents() if document["kind"] == kind)
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    """The spec of a pod."""
    found: dict[str, Any] = one("Deployment")["spec"]["template"]["spec"]
    return found


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The gate's container."""
    (found,) = pod["containers"]
    return dict(found)


def validated(version: str, *files: Path) -> subprocess.CompletedProcess[str]:
    """What the validator says, who rejects what Kubernetes would silently drop."""
    command = [VALIDATE, "--kubernetes-version", version, "--strict", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(version: str) -> None:
    run = validated(version, *FILES)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).count(" passed ") == len(list(documents()))


@pytest.mark.parametrize(
    "planted", [("maxSurge", "maxSurges"), ("containerPort: 8080", 'containerPort: "8080"')]
)
def test_the_validator_is_really_asked(tmp_path: Path, planted: tuple[str, str]) -> None:
    text = (FOLDER / "deployment.yaml").read_text()
    assert planted[0] in text
    broken = tmp_path / "deployment.yaml"
    broken.write_text(text.replace(*planted))
    assert validated(VERSIONS[-1], broken).returncode != 0


def test_everything_selects_the_pods() -> None:
    deployment = one("Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"] == NAME
    assert deployment["spec"]["selector"]["matchLabels"] == NAME
    assert one("Service")["spec"]["selector"] == NAME
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == NAME
    assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == NAME
    target = one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "the autoscaler's to decide"


def test_ports_lead_somewhere(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = settings_of(container)
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}
    (service,) = one("Service")["spec"]["ports"]
    assert service["targetPort"] == "http"
    for rule in one("NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()
    annotations = one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == ports["metrics"]
    for document in documents():
        if document["kind"] == "Ingress":
            for path in document["spec"]["rules"][0]["http"]["paths"]:
                assert path["backend"]["service"] == {"name": "tidegate", "port": {"name": service["name"]}}


def settings_of(container: dict[str, Any], folder: Path | None = None) -> Settings:
    """What the gate makes of the pod's environment; its secrets from `folder`, else left out."""
    environment = dict(one("ConfigMap")["data"])
    assert container["envFrom"] == [{"configMapRef": {"name": "tidegate"}}]
    for variable in container["env"]:
        if folder is not None:
            environment[variable["name"]] = variable["value"].replace("/secrets", str(folder))
    return load(environment)


def secrets(folder: Path, **changes: str) -> Path:
    """The example's secrets as files, as the volume shows them."""
    folder.mkdir(exist_ok=True)
    for name, text in (one("Secret")["stringData"] | changes).items():
        (folder / name).write_text(text)
    return folder


def test_the_gate_takes_its_settings_from_map_and_secret(tmp_path: Path, container: dict[str, Any]) -> None:
    mounted = secrets(tmp_path / "secrets", **{"jwt-secret": "0123456789abcdef" * 2})
    settings = settings_of(container, mounted)
    assert settings.jwt_secret == "0123456789abcdef" * 2
    assert settings.database_url.startswith("postgresql://")
    assert settings.redis_url.startswith("redis://")
    assert settings.trusted_proxies


def test_a_secret_that_nobody_changed_is_refused(tmp_path: Path, container: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="at least 32 bytes"):
        settings_of(container, secrets(tmp_path / "secrets"))


def test_kubernetes_adds_no_settings_of_its_own(pod: dict[str, Any]) -> None:
    """A Service called tidegate makes variables with the gate's prefix, and one of them is TIDEGATE_PORT."""
    assert pod["enableServiceLinks"] is False
    with pytest.raises(SettingsError, match="TIDEGATE_PORT"):
        load({"TIDEGATE_PORT": "tcp://10.0.0.1:80", "TIDEGATE_SERVICE_HOST": "10.0.0.1"})


def test_a_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any], container: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    inner = container["securityContext"]
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_a_pod_is_forgotten_by_its_endpoints_before_it_ends(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """Promise 10, with what Kubernetes needs beside it."""
    kind, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert kind == "sleep"
    readiness = container["readinessProbe"]
    assert int(seconds) >= 5
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + 10 + 5
    # Not ready within 10 s, should the endpoints not be told otherwise.
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= 10
    surge = one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert surge == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
async def test_a_gate_answers_its_probes(tmp_path: Path, container: dict[str, Any], probe: str) -> None:
    asked = container[probe]["httpGet"]
    assert asked["port"] == "http"
    async with run_process(tmp_path / "data") as gate, await Raw.open(gate.port) as client:
        assert (await client.ask(request("GET", asked["path"]))).status == 200


def test_the_ingress_treats_streams_as_streams() -> None:
    plain, streams = (document for document in documents() if document["kind"] == "Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    given = {name.removeprefix(prefix): text for name, text in streams["metadata"]["annotations"].items()}
    assert given["proxy-buffering"] == "off"
    assert int(given["proxy-read-timeout"]) >= 3 * 25
    paths = {path["path"] for path in streams["spec"]["rules"][0]["http"]["paths"]}
    assert paths == {"/v1/stream", "/v1/events"}
    for ingress in (plain, streams):
        repeated = ingress["metadata"]["annotations"][prefix + "proxy-next-upstream"]
        assert "non_idempotent" not in repeated
