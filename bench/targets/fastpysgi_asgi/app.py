"""fastpysgi: libuv and llhttp in C, an ASGI application without a framework on a loop of uvloop's."""

import sys

import fastpysgi
import uvloop
from asgi import app

fastpysgi.server.loop = uvloop.new_event_loop()
fastpysgi.run(app, host="127.0.0.1", port=int(sys.argv[1]), loglevel=fastpysgi.LL_FATAL_ERROR)
