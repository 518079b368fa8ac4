"""The house keeps its shape: imports go down only, none hides in a function, modules stay small."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down: a layer imports itself and what stands after it.
LAYERS = ("server", "handlers", "auth", "storage")
OUTSIDE = ("tests", "bench")
ENVIRONMENT = "server.settings"
LINES_MAX = 500

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def modules(root: Path) -> dict[str, Path]:
    """The modules of the house under `root`, by dotted name."""
    found = {}
    for path in sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST) -> list[str]:
    """The dotted names that a statement imports: of `from a import b` a.b, since b may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def module_faults(name: str, tree: ast.Module) -> Iterator[str]:
    """What one module does that its place forbids, each fault with its line."""
    layer = LAYERS.index(name.partition(".")[0])
    for node in ast.walk(tree):
        for target in imported(node):
            top = target.partition(".")[0]
            if not top:
                yield f"{name}:{node.lineno}: relative import"  # type: ignore[attr-defined]
            elif top in OUTSIDE or (top in LAYERS and LAYERS.index(top) < layer):
                yield f"{name}:{node.lineno}: imports {target} from above"  # type: ignore[attr-defined]
        if isinstance(node, Function):
            for inner in ast.walk(node):
                if imported(inner):
                    yield f"{name}:{inner.lineno}: imports inside a function"  # type: ignore[attr-defined]
        if isinstance(node, ast.Name) and node.id == "__import__":
            yield f"{name}:{node.lineno}: imports by __import__"
        if isinstance(node, ast.Attribute) and node.attr == "import_module":
            yield f"{name}:{node.lineno}: imports by import_module"
        if name != ENVIRONMENT and reads_environment(node):
            yield f"{name}:{node.lineno}: reads the environment"  # type: ignore[attr-defined]


def reads_environment(node: ast.AST) -> bool:
    """Whether a node names the environment of the process: os.environ, os.getenv and their kin."""
    names = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    return (
        isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names)
    )


def faults(root: Path) -> list[str]:
    """Every breach of the house's rules under `root`."""
    found: set[str] = set()
    paths = modules(root)
    graph = {}
    for name, path in paths.items():
        text = path.read_text()
        if (lines := text.count("\n")) > LINES_MAX:
            found.add(f"{name}: {lines} lines")
        tree = ast.parse(text, str(path))
        found.update(module_faults(name, tree))
        targets = [target for node in ast.walk(tree) for target in imported(node)]
        graph[name] = {t if t in paths else t.rpartition(".")[0] for t in targets} & paths.keys() - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.add("circle: " + " <- ".join(error.args[1]))
    return sorted(found)


def test_the_house_keeps_its_rules() -> None:
    assert len(modules(ROOT)) > len(LAYERS)
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("storage/log.py", "import handlers\n", "storage.log:1: imports handlers from above"),
        ("storage/log.py", "from auth.keys import Key\n", "storage.log:1: imports auth.keys.Key from above"),
        (
            "auth/keys.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from server import app\n",
            "auth.keys:3: imports server.app from above",
        ),
        ("server/app.py", "import bench.run\n", "server.app:1: imports bench.run from above"),
        ("server/app.py", "from tests import gate\n", "server.app:1: imports tests.gate from above"),
        ("server/app.py", "from . import cli\n", "server.app:1: relative import"),
        ("handlers/hub.py", "def f():\n    import json\n", "handlers.hub:2: imports inside a function"),
        ("auth/a.py", "class A:\n  async def f(self):\n   import b\n", "auth.a:3: imports inside a function"),
        ("handlers/hub.py", "a = __import__('server')\n", "handlers.hub:1: imports by __import__"),
        ("handlers/hub.py", "import os\na = os.environ['A']\n", "handlers.hub:2: reads the environment"),
        ("server/app.py", "from os import getenv\n", "server.app:1: reads the environment"),
        ("server/app.py", "a = 1\n" * 501, "server.app: 501 lines"),
    ],
)  # fmt: skip
def test_a_breach_is_seen(tmp_path: Path, module: str, text: str, fault: str) -> None:
    sound = {
        "server/settings.py": "import os\na = os.environ\n",
        "server/app.py": "import handlers.hub\nfrom storage import log\n",
        "handlers/hub.py": "from auth.keys import a\n",
        "auth/keys.py": "from storage.log import a\n",
        "storage/log.py": "import json\n",
    }
    write(tmp_path, sound)
    assert faults(tmp_path) == []
    write(tmp_path, {module: text})
    assert fault in faults(tmp_path)


def test_a_circle_is_seen(tmp_path: Path) -> None:
    write(tmp_path, {"auth/a.py": "import auth.b\n", "auth/b.py": "from auth import a\n"})
    assert [fault.partition(":")[0] for fault in faults(tmp_path)] == ["circle"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)


# A process forked for each module, since a fresh interpreter for each would load aiohttp forty times.
ALONE = """
import json, os, sys, traceback
import aiohttp, aiohttp.web, apsw, jwt, msgspec, orjson
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            __import__(name)
        except BaseException:
            print(json.dumps([name, traceback.format_exc()]), flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        print(json.dumps([name, f"killed by signal {os.WTERMSIG(status)}"]))
print(json.dumps(["end", ""]))
"""


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """The tracebacks of the modules that cannot be imported alone with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", ALONE, *modules(ROOT)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=True)
    found: dict[str, str] = dict(json.loads(line) for line in run.stdout.splitlines())
    assert found.pop("end") == ""
    return found


@pytest.mark.parametrize("name", modules(ROOT))
def test_a_module_imports_alone(name: str, failures: dict[str, str]) -> None:
    assert failures.get(name, "") == ""
