"""Whoever adds a peer begins with a template that works, and is told what is missing."""

import shutil
from pathlib import Path

import pytest

from bench import servers
from bench.__main__ import main
from bench.acceptance import absent, examine, limit_complaint
from bench.processes import running
from bench.servers import ServerError
from bench.targets import HOME, Target, TargetError, load, prepare

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args): ...
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Targets of a test's own; what they share is the bench's."""
    monkeypatch.setattr("bench.targets.HOME", tmp_path)
    return tmp_path


def test_the_template_is_no_target() -> None:
    assert not [name for name in load() if name.startswith("_")]


@pytest.mark.system
def test_a_copy_of_the_template_keeps_the_contract_until_something_is_taken_out(home: Path) -> None:
    shutil.copytree(HOME / "_template", home / "mine")
    target = load(home)["mine"]
    assert absent(target) == []
    prepare(target)
    assert [str(finding) for finding in examine(target) if finding.complaint] == []
    app = home / "mine" / "app.py"
    app.write_text(app.read_text().replace(", **LATEST_HEADERS", ""))
    complaints = [finding.complaint for finding in examine(target) if "latest" in finding.scenarios]
    assert complaints[0].startswith("expected the headers cache-control, vary")


def test_what_a_target_lacks_is_told_scenario_by_scenario(home: Path) -> None:
    target = Target("x", ["-c", SERVER, "{port}"], ["hello", "write"], "house", name="mine")
    hello, write, limit = examine(target)
    assert str(hello) == "hello: expected 200 for GET /hello: 204 b''"
    assert write.complaint.startswith("expected 200 for a good write: 501")
    assert limit.complaint.startswith("expected `limited = true` in target.toml")
    assert "latest" in absent(target)
    assert "hello" not in absent(target)


def test_who_has_no_limit_to_keep_is_not_asked_for_one(home: Path) -> None:
    # Nothing that could be started.
    assert limit_complaint(Target("x", ["no-such-file.py"], ["hello"], "house")) == ""
    assert limit_complaint(Target("x", ["no-such-file.py"], ["write"], "house", kind="loop")) == ""
    complaint = limit_complaint(Target("x", ["no-such-file.py"], ["write"], "house"))
    assert complaint.startswith("expected `limited = true` in target.toml")


def test_who_says_it_has_a_limit_is_held_to_it(home: Path) -> None:
    target = Target("x", ["-c", SERVER, "{port}"], ["hello", "write"], "house", limited=True, name="mine")
    assert limit_complaint(target).startswith("expected 429 within 600 requests")
    ended = Target("x", ["-c", "raise SystemExit('no licence')"], ["write"], "house", limited=True, name="x")
    assert "no licence" in limit_complaint(ended)


def test_an_unknown_name_is_told_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "verify", "fast_api"])
    assert main() == 2
    said = capsys.readouterr().err
    assert "no target is named fast_api; there are: " in said
    assert "fastapi_asyncpg" in said


@pytest.mark.parametrize(
    ("environment", "files", "complaint"),
    [
        ("node", {"package.json": "{}"}, "npm is not installed (Debian: apt install nodejs npm)"),
        ("go", {"packages.txt": "golang-go"}, "go is not installed (Debian: apt install golang-go)"),
    ],
)
def test_a_toolchain_that_is_not_there_is_named_with_its_package(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: str, files: dict[str, str], complaint: str
) -> None:
    (home / "mine").mkdir()
    for name, content in files.items():
        (home / "mine" / name).write_text(content)
    (home / "mine" / "target.toml").write_text(
        f'title = "x"\ncommand = []\nscenarios = []\nenvironment = "{environment}"\n'
    )
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(TargetError) as caught:
        prepare(load(home)["mine"])
    assert str(caught.value) == f"mine cannot be installed: {complaint}"


def test_a_requirement_that_is_not_to_be_had_is_told(home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "requirements.txt").write_text("./no-such-package-here\n")
    (home / "mine" / "target.toml").write_text('title = "x"\ncommand = []\nscenarios = []\n')
    with pytest.raises(TargetError, match=r"mine cannot be installed: (?s:.)*no-such-package-here"):
        prepare(load(home)["mine"])


def test_a_database_that_is_not_to_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *places: str) -> Path:
        raise ServerError(f"{name} is not installed")

    monkeypatch.setattr(servers, "_program", missing)
    target = Target("x", ["-c", SERVER, "{port}"], [], "house", database="postgresql", name="mine")
    with pytest.raises(TargetError, match=r"^mine: postgres is not installed$"), running(target):
        pass
