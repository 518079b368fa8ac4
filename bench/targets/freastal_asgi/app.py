"""freastal: libuv and picohttpparser in C, an ASGI application without a framework."""

import sys

import freastal
from asgi import app

freastal.serve_asgi(app, host="127.0.0.1", port=int(sys.argv[1]), workers=1)
