"""nginx with the shipped configuration: its files as they are, but for the addresses, which must be there."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.running import PATIENCE, ROOT
from tests.servers.programs import free_port

SHIPPED = ROOT / "deploy" / "nginx"
# Behind nginx, Prometheus and the like gates speak plain HTTP, whatever the command line of the tests says.
PLAIN = {"TLS_CERT": "", "TLS_KEY": ""}

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Proxy:
    """A running nginx. `folder`: its configuration and logs."""

    def __init__(self, port: int, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.port = port
        self.folder = folder
        self.process = process

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def reload(self) -> None:
        """Take the configuration anew (what `nginx -s reload` does); wait until the old workers have gone."""
        old = self._workers()
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while old & self._workers() or not self._workers():
                await asyncio.sleep(0.02)

    def _workers(self) -> set[int]:
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def logged(self) -> str:
        """All that it has logged: requests, errors, and what it said on stderr."""
        return "".join((self.folder / name).read_text() for name in ("access.log", "error.log", "stderr.log"))


def configure(
    folder: Path,
    port: int,
    gates: Sequence[int],
    *,
    changes: Mapping[str, str] | None = None,
    tls: bool = False,
) -> Path:
    """Lay the shipped configuration down for gates on these ports; `changes`: further text to replace.

    Everything that is replaced must stand there exactly once. Gives the path of nginx.conf.
    """
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    gone = "\n".join(f"    server gate{n}:8080 max_fails=2 fail_timeout=2s;" for n in (1, 2))
    spare = "\n".join(f"    server gate{n}:8080 backup max_fails=0;" for n in (1, 2))
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in TEMPORARY)
    edits = {
        gone: "\n".join(f"    server 127.0.0.1:{gate} max_fails=2 fail_timeout=2s;" for gate in gates),
        spare: "\n".join(f"    server 127.0.0.1:{gate} backup max_fails=0;" for gate in gates),
        "pid /run/nginx.pid;": f"pid {folder}/nginx.pid;",
        "\nerror_log /var/log/nginx/error.log warn;": f"\nerror_log {folder}/error.log warn;",
        "error_log /var/log/nginx/error.log crit;": f"error_log {folder}/error.log crit;",
        "access_log /var/log/nginx/access.log": f"access_log {folder}/access.log",
        "http {": f"http {{ {paths}",
        "worker_processes auto;": "worker_processes 2;",
        **(changes or {}),
    }
    if tls:
        edits |= {
            "    include tidegate/server.conf;\n    # include tidegate/server-tls.conf;": (
                "    include tidegate/server-tls.conf;"
            ),
            "listen 443 ssl http2 backlog=4096;": f"listen 127.0.0.1:{port} ssl http2;",
            "listen 80 default_server;": f"listen 127.0.0.1:{free_port()} default_server;",
            "/etc/nginx/tls/": f"{folder}/",
        }
    else:
        edits["listen 80 backlog=4096;"] = f"listen 127.0.0.1:{port} backlog=4096;"
    files = {path: path.read_text() for path in folder.rglob("*.conf")}
    for old, new in edits.items():
        assert any(old in text for text in files.values()), f"{old!r} is not in the configuration any more"
        files = {path: text.replace(old, new) for path, text in files.items()}
    for path, text in files.items():
        path.write_text(text)
    return folder / "nginx.conf"


def command(configuration: Path, *options: str) -> list[str]:
    """nginx in the foreground; as root its workers stay root, for the folders of tests are root's alone."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert binary, "nginx is not installed (Debian: nginx-light)"
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    folder = configuration.parent
    early = ["-e", str(folder / "error.log")]
    return [binary, "-p", str(folder), "-c", str(configuration), *early, "-g", directives, *options]


@asynccontextmanager
async def run_nginx(
    folder: Path, gates: Sequence[int], *, changes: Mapping[str, str] | None = None, tls: bool = False
) -> AsyncIterator[Proxy]:
    """nginx before gates on these ports of this machine; stopped by its process id."""
    port = free_port()
    configuration = await asyncio.to_thread(configure, folder, port, gates, changes=changes, tls=tls)
    with (folder / "stderr.log").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(*command(configuration), stderr=stderr)
    try:
        async with asyncio.timeout(PATIENCE):
            while not await _listens(port):
                assert process.returncode is None, (folder / "stderr.log").read_text()
                await asyncio.sleep(0.01)
        yield Proxy(port, folder, process)
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(PATIENCE):
                await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
