import asyncio
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from blockbuster import BlockBuster

from tests.handlers.wire import create_client, issuer_of, log_in, problem, write_keys
from tests.running import ALL_SCOPES, PATIENCE, Running, run_gate

ALGORITHMS = ["EdDSA", "ES256", "RS256"]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key of each kind."""
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder, *ALGORITHMS)
    return folder


@pytest.fixture(autouse=True)
def settings_are_read(blockbuster: BlockBuster) -> None:
    """Elsewhere the settings are read before the event loop runs."""
    blockbuster.functions["os.stat"].can_block_in("server/settings.py", "load")


async def published(gate: Running) -> dict[str, Any]:
    reply = await gate.get("/.well-known/jwks.json", token="")
    assert reply.status == 200
    return {key["kid"]: key for key in reply.json["keys"]}


async def test_without_key_files_the_key_set_is_empty_and_no_secret_is_published(gate: Running) -> None:
    assert (await gate.get("/.well-known/jwks.json", token="")).json == {"keys": []}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_signed_by_a_key_file_are_verified_by_the_published_key(
    tmp_path: Path, keys: Path, algorithm: str
) -> None:
    async with run_gate(
        tmp_path / "data", JWT_KEYS=str(keys), JWT_SIGNING_KEY=algorithm, JWT_SECRET="s" * 32
    ) as gate:
        token = (await log_in(gate, await create_client(gate))).json["access_token"]
        header = jwt.get_unverified_header(token)
        assert (header["alg"], header["kid"]) == (algorithm, algorithm)
        found = await published(gate)
        assert set(found) == set(ALGORITHMS)
        for key in found.values():
            assert not {"d", "p", "q", "k"} & set(key)
        key = jwt.PyJWK(found[algorithm])
        claims = jwt.decode(token, key, algorithms=[algorithm], audience="tidegate", issuer="tidegate")
        assert claims["scope"] == "readings:read"
        assert (await gate.get("/v1/latest", token=token)).status == 200


async def test_keys_rotate_by_their_kid(tmp_path: Path, keys: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    old, new = folder / "2024.pem", folder / "2025.pem"
    old.write_bytes((keys / "EdDSA.pem").read_bytes())
    async with run_gate(tmp_path / "data", JWT_KEYS=str(folder)) as gate:
        client = await create_client(gate)
        first = (await log_in(gate, client)).json["access_token"]
        assert jwt.get_unverified_header(first)["kid"] == "2024"

        async def reload(kids: set[str]) -> None:
            gate.gate.reload.set()
            async with asyncio.timeout(PATIENCE):
                while set(await published(gate)) != kids:
                    pass

        await asyncio.to_thread(new.write_bytes, (keys / "ES256.pem").read_bytes())
        await reload({"2024", "2025"})
        second = (await log_in(gate, client)).json["access_token"]
        assert jwt.get_unverified_header(second)["kid"] == "2025"
        for token in (first, second):
            assert (await gate.get("/v1/latest", token=token)).status == 200
        await asyncio.to_thread(old.unlink)
        await reload({"2025"})
        problem(await gate.get("/v1/latest", token=first), 401, "token_invalid")
        assert (await gate.get("/v1/latest", token=second)).status == 200


async def test_tokens_of_an_outside_issuer_are_verified_by_its_key_set(tmp_path: Path, keys: Path) -> None:
    outside, key_set = await asyncio.to_thread(issuer_of, keys, "https://idp.example")
    stranger, _ = await asyncio.to_thread(issuer_of, keys, "https://other.example")
    asked = 0

    async def jwks(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response(key_set)

    async with RawTestServer(jwks) as server:
        issuers = f"https://idp.example={server.make_url('/jwks.json')}"
        async with run_gate(tmp_path / "data", JWT_ISSUERS=issuers) as gate:
            token = outside.issue("sensor", ["readings:write", "readings:read"], ["acme.>"], 60)[0]
            reply = await gate.write("acme.a", {"metric": "t", "value": 1}, token=token)
            assert reply.status == 200, reply
            problem(await gate.write("demo.a", {"metric": "t", "value": 1}, token=token), 403, "forbidden")
            problem(await gate.get("/v1/devices", token=token), 403, "insufficient_scope")
            assert asked == 1
            unknown = stranger.issue("sensor", ALL_SCOPES, [">"], 60)[0]
            problem(await gate.get("/v1/latest", token=unknown), 401, "token_invalid")
            # Its accounts are not ours, whatever their names.
            headers = {"Idempotency-Key": "one"}
            for value, sender in ((1, token), (2, gate.token(subject="sensor"))):
                content = {"metric": "t", "value": value}
                reply = await gate.write("acme.a", content, token=sender, headers=headers)
                assert reply.status == 200, reply


async def test_an_outside_issuer_that_does_not_answer_is_401_and_no_error_of_ours(
    tmp_path: Path, keys: Path
) -> None:
    outside, _ = await asyncio.to_thread(issuer_of, keys, "https://idp.example")

    async def broken(request: web.BaseRequest) -> web.Response:
        return web.Response(status=500)

    async with RawTestServer(broken) as server:
        issuers = f"https://idp.example={server.make_url('/')}"
        async with run_gate(tmp_path / "data", JWT_ISSUERS=issuers) as gate:
            token = outside.issue("sensor", ALL_SCOPES, [">"], 60)[0]
            problem(await gate.get("/v1/latest", token=token), 401, "token_invalid")
            assert (await gate.get("/v1/latest")).status == 200
