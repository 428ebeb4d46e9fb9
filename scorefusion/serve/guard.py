"""What stands before every request: who may ask, from what page, how often; and headers for the answers."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from scorefusion.serve.limits import Limits, Rate
from scorefusion.serve.loopback import is_loopback

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
OPEN = {"/", "/page.css", "/page.js"}
"""What is answered without a token: a page that holds nothing."""


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        token: that clients must send; None where only this machine can reach the server, whose clients are
            then told from web pages in its browsers by the Host and Origin that these cannot choose.
        limits: the rate.
    """

    def __init__(self, app: Callable[..., Any], *, token: str | None, limits: Limits):
        self.app, self.token = app, token
        self._rate = Rate(limits.rate, limits.burst)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        client = scope.get("client") or ("unknown", 0)
        refusal = self._refusal(Headers(scope=scope), scope["path"], client[0])
        if refusal is None:
            await self.app(scope, receive, send_guarded)
            return
        status, error, headers = refusal
        await JSONResponse({"error": error}, status, headers)(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, path: str, client: str) -> tuple[int, str, dict[str, str]] | None:
        wait = self._rate.take(client)
        if wait:
            return 429, "too many requests", {"Retry-After": str(math.ceil(wait))}
        host = headers.get("host", "")
        if self.token is None and not is_loopback(_without_port(host)):
            return 403, "this server answers to localhost only", {}
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "requests from other sites are refused", {}
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests from other sites are refused", {}
        if self.token is not None and path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                return 401, "a token is needed", {"WWW-Authenticate": "Bearer"}
        return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
