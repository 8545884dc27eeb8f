"""What answers the users of this machine: numbers and pages to look at, nothing that changes.

Any web page may have a browser on this machine call here. So nothing but GET is answered, only
under loopback's own names (another name that leads here is a DNS rebinding), and what is answered
may load nothing from anywhere else, run no script and be framed by nobody.
"""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from aiohttp import web

HOST = "127.0.0.1"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_NAMES = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def local_application(handlers: Mapping[str, Handler]) -> web.Application:
    """An application that answers GET at these paths."""
    app = web.Application(middlewares=[_refuse])
    for path, handler in handlers.items():
        app.router.add_get(path, handler, allow_head=False)
    app.on_response_prepare.append(_guard)
    return app


@web.middleware
async def _refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not _is_local(request.headers.get("Host", "")):
        raise web.HTTPForbidden(text="ask for 127.0.0.1 or localhost")
    if request.method != "GET":
        raise web.HTTPMethodNotAllowed(request.method, ["GET"])
    return await handler(request)


async def _guard(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _NAMES
    except ValueError:
        return False
