"""aiohttp's web.Application on uvloop, as its documentation would have it; no access log, as everywhere here."""

import sys

import uvloop
from aiohttp import web

routes = web.RouteTableDef()


@routes.get("/hello")
async def hello(request: web.Request) -> web.Response:
    """The smallest JSON."""
    return web.json_response({"ok": True})


app = web.Application()
app.add_routes(routes)
web.run_app(
    app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop()
)
