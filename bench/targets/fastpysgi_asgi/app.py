"""fastpysgi: libuv and llhttp in C, an ASGI application without a framework; settings of its own benchmark entries."""

import sys

import fastpysgi
from asgi import app

fastpysgi.server.read_buffer_size = 256 * 1024
fastpysgi.server.backlog = 4096
fastpysgi.server.loop_timeout = 1
fastpysgi.run(app, host="127.0.0.1", port=int(sys.argv[1]), loglevel=0)
