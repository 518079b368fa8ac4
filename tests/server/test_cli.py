"""The command line, as processes: what it prints, where it goes, and how it ends."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import jwt
import pytest

from server import cli, settings
from tests.running import GateProcess, run_process
from tests.server.commands import Ran, environment, run, tidegate

SECRET = "s" * 32
Here = Callable[..., tuple[int, str, str]]


def client_secrets(ran: Ran) -> tuple[str, str]:
    made = json.loads(ran.out)
    return made["id"], made["secret"]


async def login(gate: GateProcess, id: str, secret: str) -> int:
    form = {"grant_type": "client_credentials", "client_id": id, "client_secret": secret}
    async with gate.session.post(f"{gate.url}/v1/token", data=form) as answer:
        return answer.status


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command in this process, where it costs less: exit code, stdout, stderr."""
    monkeypatch.setenv("TIDEGATE_DATA", str(tmp_path / "data"))

    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.mark.parametrize(
    "command",
    ["", "serve", "token", "client", "client create", "client list", "client delete", "migrate", "replay"],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tidegate {command}".rstrip())
    assert len(text.splitlines()) > 3
    if command == "serve":
        assert settings.describe() in text


def test_a_command_that_does_not_exist_is_told_from_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sing"])
    assert ended.value.code == 2
    assert "serve" in capsys.readouterr().err


async def test_bad_settings_are_all_named_at_once_and_nothing_starts(tmp_path: Path) -> None:
    ran = await tidegate("serve", data=tmp_path / "data", PORT="http", RETENTION="soon", PROT="1")
    assert ran.code == 2
    assert ran.out == ""
    for name in ("TIDEGATE_PORT", "TIDEGATE_RETENTION", "TIDEGATE_PROT"):
        assert name in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "data").exists()


# -- tokens ------------------------------------------------------------------------------------


async def test_token_prints_nothing_but_a_token_that_the_gate_takes_before_and_after_it_starts(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    ask = ("token", "--sub", "me", "--scope", "readings:write readings:read", "--devices", "demo.>")
    before = await tidegate(*ask, data=data)
    async with run_process(data) as gate:
        beside = await tidegate(*ask, "--ttl", "90s", data=data)
        for ran in (before, beside):
            assert ran.code == 0, ran
            assert ran.err == ""
            assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", ran.out), ran
            answer = await gate.write("demo.x", {"metric": "m", "value": 1}, token=ran.out.strip())
            assert answer.status == 200
            assert (
                await gate.write("other", {"metric": "m", "value": 1}, token=ran.out.strip())
            ).status == 403
    claims = jwt.decode(beside.out.strip(), options={"verify_signature": False})
    assert claims["sub"] == "me"
    assert claims["exp"] - claims["iat"] == 90


async def test_token_signs_with_the_secret_of_the_settings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    ran = await tidegate("token", "--sub", "me", data=data, JWT_SECRET=SECRET)
    assert jwt.decode(ran.out.strip(), SECRET, algorithms=["HS256"], audience="tidegate")["sub"] == "me"
    assert not (data / "jwt.secret").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--scope", "readings:wirte"), "readings:wirte"),
        (("--devices", "a..b"), "a..b"),
        (("--ttl", "soon"), "soon"),
        (("--ttl", "4000d"), "4000d"),
    ],
)
def test_a_token_that_cannot_be_is_refused_with_the_reason(
    here: Here, arguments: tuple[str, ...], word: str
) -> None:
    code, out, err = here("token", "--sub", "me", *arguments)
    assert (code, out) == (2, "")
    assert word in err


# -- clients -----------------------------------------------------------------------------------


async def test_clients_are_made_listed_and_removed_without_a_running_gate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = await tidegate(
        "client",
        "create",
        "pump",
        "--scope",
        "readings:write",
        "--devices",
        "a.> b",
        "--ttl",
        "1h",
        data=data,
    )
    assert made.code == 0, made
    id, secret = client_secrets(made)
    assert id == "pump"
    listed = await tidegate("client", "list", data=data)
    assert secret not in listed.out
    offline = [json.loads(line) for line in listed.out.splitlines()]
    assert [client["id"] for client in offline] == ["pump"]
    assert offline[0]["devices"] == ["a.>", "b"]
    async with run_process(data) as gate:
        assert await login(gate, id, secret) == 200
        online = (await tidegate("client", "list", data=data)).out.splitlines()
        assert [json.loads(line) for line in online] == offline
    removed = await tidegate("client", "delete", "pump", data=data)
    assert (removed.code, removed.out, removed.err) == (0, "", "")
    assert (await tidegate("client", "list", data=data)).out == ""


async def test_clients_are_made_and_removed_through_the_running_gate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with run_process(data) as gate:
        made = await tidegate("client", "create", "--scope", "readings:write", data=data)
        id, secret = client_secrets(made)
        assert await login(gate, id, secret) == 200
        assert (await tidegate("client", "delete", id, data=data)).code == 0
        assert await login(gate, id, secret) == 401


async def test_what_a_client_cannot_be_is_refused_with_and_without_a_gate_in_the_same_way(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"

    async def refusals() -> None:
        first = await tidegate("client", "create", "twice", "--scope", "admin", data=data)
        again = await tidegate("client", "create", "twice", "--scope", "admin", data=data)
        gone = await tidegate("client", "delete", "a/b?c", data=data)
        odd = await tidegate("client", "create", "x", "--scope", "sing", data=data)
        assert (await tidegate("client", "delete", "twice", data=data)).code == 0
        assert [ran.code for ran in (first, again, gone)] == [0, 1, 1]
        for ran in (again, gone, odd):
            assert ran.out == ""
            assert ran.err.startswith("tidegate: ")
            assert "Traceback" not in ran.err
        assert odd.code == 2
        assert "sing" in odd.err

    await refusals()
    async with run_process(data):
        await refusals()


async def test_a_gate_that_does_not_answer_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with run_process(data):
        # As if what listens there were something else.
        (data / "url").write_text("http://127.0.0.1:9\n")
        ran = await tidegate("client", "list", data=data)
        assert ran.code == 1
        assert "http://127.0.0.1:9" in ran.err
        assert "Traceback" not in ran.err


# -- the others --------------------------------------------------------------------------------


async def test_migrate_makes_the_database_once_and_leaves_it_alone_then(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first, second = await tidegate("migrate", data=data), await tidegate("migrate", data=data)
    assert (first.code, second.code) == (0, 0)
    assert first.out.strip()
    assert second.out == "the database is up to date\n"
    async with run_process(data):
        third = await tidegate("migrate", data=data)
        assert third.code == 1
        assert "another tidegate" in third.err


async def test_replay_writes_a_file_into_the_running_gate(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "a.csv"
    file.write_text("time,temp\n2024-01-01T00:00:00Z,1.5\n2024-01-01T01:00:00Z,2.5\n")
    async with run_process(data) as gate:
        ran = await tidegate("replay", str(file), "--device", "demo.a", data=data)
        assert ran.code == 0, ran
        assert "2 accepted" in ran.out
        items = (await gate.get("/v1/devices/demo.a/readings")).json["items"]
        assert [item["value"] for item in items] == [1.5, 2.5]


@pytest.mark.parametrize("arguments", [("--rate", "fast"), ("--device", "a..b"), ("--batch", "0")])
def test_a_replay_that_cannot_be_is_refused_with_the_reason(
    here: Here, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "a.csv").write_text("time,temp\n2024-01-01T00:00:00Z,1.5\n")
    code, _, err = here("replay", str(tmp_path / "a.csv"), "--device", "d", *arguments)
    assert code == 2
    assert err


async def test_importing_the_command_does_not_run_it() -> None:
    ran = await run(sys.executable, "-c", "import server.__main__", env=environment())
    assert (ran.code, ran.out, ran.err) == (0, "", "")


async def test_the_gate_of_the_command_line_is_found_where_it_said_it_listens(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with run_process(data) as gate:
        assert (data / "url").read_text().strip() == gate.url
        async with aiohttp.ClientSession() as session, session.get(f"{gate.url}/livez") as answer:
            assert answer.status == 200
        gate.signal(signal.SIGTERM)
        assert await gate.ended() == 0
    assert not (data / "url").exists()
