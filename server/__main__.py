"""`python -m server` is the command `tidegate`."""

import sys

from server.cli import main

sys.exit(main())
