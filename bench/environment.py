"""Where the bench runs: its directories and cores."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
