"""What is shipped: locks in step with setup.cfg, a wheel with all it needs and no more, a sound image."""

import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LAYERS = ("server", "handlers", "auth", "storage")
# In halves: this file, too, names no host.
REGISTRIES = (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("debian", "org"), ("npmjs", "com"))


def tracked() -> list[Path]:
    """The files of the project: tracked ones and those about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def pins(name: str) -> dict[str, list[Requirement]]:
    """What requirements/`name`.txt pins: by name one version, or several for different environments."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    blocks = [block for block in re.split(r"\n(?=[a-z0-9])", text, flags=re.IGNORECASE) if "==" in block]
    found: dict[str, list[Requirement]] = {}
    for block in blocks:
        assert "--hash=sha256:" in block, block
        requirement = Requirement(block.partition("\\")[0].strip())
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def wanted(section: str, key: str) -> list[Requirement]:
    """What setup.cfg asks for."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in config[section][key].splitlines() if line]


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("runtime", wanted("options", "install_requires")),
        ("bench", wanted("options", "install_requires") + wanted("options.extras_require", "bench")),
        (
            "tests",
            wanted("options", "install_requires")
            + wanted("options.extras_require", "bench")
            + wanted("options.extras_require", "tests"),
        ),
    ],
)
def test_what_setup_cfg_asks_for_is_pinned(lock: str, requirements: list[Requirement]) -> None:
    pinned = pins(lock)
    for requirement in requirements:
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement} is not in requirements/{lock}.txt: run scripts/lock"
        for version in versions:
            (specifier,) = version.specifier
            assert requirement.specifier.contains(specifier.version), f"{version}: run scripts/lock"


def test_tests_run_on_what_is_shipped() -> None:
    runtime, tests = (
        {n: {r.specifier for r in rs} for n, rs in pins(k).items()} for k in ("runtime", "tests")
    )
    assert runtime.items() <= tests.items(), "run scripts/lock"


def test_no_registry_is_named() -> None:
    hosts = re.compile("|".join(rf"\b{name}\.{end}\b" for name, end in REGISTRIES))
    found = [str(path) for path in tracked() if hosts.search(path.read_text(errors="replace"))]
    assert found == []
    options = re.compile(r"://|--(extra-)?index-url|--find-links|--trusted-host")
    assert [path.name for path in (ROOT / "requirements").iterdir() if options.search(path.read_text())] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel of the project, built without network and away from the tree."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(built), str(source)], check=True, timeout=120)
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_house(wheel: list[str]) -> None:
    shipped = {name for name in wheel if ".dist-info/" not in name}
    house = {
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.relative_to(ROOT).parts[0] in LAYERS
        and path.suffix in (".py", ".sql", ".html", ".css", ".js")
    }
    assert house <= shipped, "setup.cfg lacks a package or its data"
    assert {name.partition("/")[0] for name in shipped} == set(LAYERS)
    assert any(name.endswith("/entry_points.txt") for name in wheel)
    assert any(re.fullmatch(r"storage/sqlite/migrations/.*\.sql", name) for name in shipped)


def test_the_image_is_sound() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert (run.stdout, run.returncode) == ("", 0)
    text = (ROOT / "Dockerfile").read_text()
    for line in ("USER 10001:10001", "VOLUME /data", 'ENTRYPOINT ["tidegate"]', 'CMD ["serve"]'):
        assert f"\n{line}\n" in text


def test_the_image_gets_every_layer() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    context = (ROOT / ".dockerignore").read_text().splitlines()
    for layer in LAYERS:
        assert f"COPY {layer}/ {layer}/" in dockerfile
        assert f"!{layer}" in context


@pytest.mark.parametrize(
    "name", ["scripts/serve", "scripts/test", "scripts/check", "scripts/lock", ".ci/run"]
)
def test_a_script_can_be_run(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", ROOT / name], check=True)
