"""What a run's directory shows beside the summary: the page, and the plots where matplotlib is installed."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import page
from bench.environment import ROOT
from bench.results import Results

PAGE, PLOTS = "report.html", "plots"
# Seconds that the plots may take.
PATIENCE = 180.0


def keep(results: Results, say: Callable[[str], None]) -> None:
    """Write both; `say` is told what is lacking."""
    (results.directory / PAGE).write_text(page.render(results))
    if importlib.util.find_spec("matplotlib") is None:
        say("no plots: matplotlib is not installed (scripts/bench installs it)")
        return
    # A process of its own: the bench itself needs none of what matplotlib brings.
    try:
        _draw(results.directory)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        say(f"no plots: {str(said).strip()[-500:]}")


def _draw(directory: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "bench.plots", str(directory.resolve())],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
