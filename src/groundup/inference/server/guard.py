"""What every request passes before a route sees it: the host, the origin, the key, the rate, the size of its body.

Denied unless allowed: a path needs a key unless OPEN_PATHS names it, also one that does not exist. There is no CORS:
a page of another origin gets neither an answer that it may read nor an effect. A Host header that is none of this
server's names is refused, so that a name of a stranger's that leads here (DNS rebinding) is of no use to him.
"""

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundup.inference.server.errors import ApiError, as_api_error
from groundup.inference.server.keys import Keys, RateLimit
from groundup.inference.server.settings import ServerSettings

OPEN_PATHS = frozenset({"/", "/health"})
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
API_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

log = logging.getLogger("groundup.server")


class Guard:
    """The outermost layer of the app. What goes wrong inside, and was not foreseen, ends here as a 500 in JSON."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self.keys, self.limit = Keys(settings.keys), RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in message["headers"]}
                extra = [pair for pair in (*HEADERS, API_POLICY) if pair[0] not in own]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, send_guarded)
        except Exception as error:
            answer = as_api_error(error)
            if answer.status == 500:
                log.exception("a request failed")
            if started:
                raise
            await answer.response()(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        headers = _single_headers(scope)
        self._check_host(headers.get(b"host", b""))
        self._check_origin(headers.get(b"origin"), headers[b"host"])
        if scope["path"] not in OPEN_PATHS:
            scope["state"]["caller"] = self.keys.caller(headers.get(b"authorization"))
        if scope["method"] == "POST":
            self._check_body(headers)
            self.limit.take(scope["state"]["caller"].number if "caller" in scope["state"] else 0)

    def _check_host(self, host: bytes) -> None:
        try:
            name = urlsplit(f"//{host.decode('ascii')}")
            name, _ = name.hostname or "", name.port
        except ValueError:
            name = ""
        shown = f"[{name}]" if ":" in name else name
        if shown not in self.settings.host_names:
            raise ApiError(403, "the Host header names no host that this server answers for; allow it with "
                           "--allow-host", "host", code="host_not_allowed", close=True)  # fmt: skip

    def _check_origin(self, origin: bytes | None, host: bytes) -> None:
        if origin is not None and origin.lower() not in (b"http://" + host.lower(), b"https://" + host.lower()):
            raise ApiError(403, "pages of other origins have no access", "origin", code="origin_not_allowed",
                           close=True)  # fmt: skip

    def _check_body(self, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "the Content-Type has to be application/json", "content-type", close=True)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "a compressed body is not accepted", "content-encoding", close=True)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 19:
            raise ApiError(400, "the Content-Length is not a number", "content-length", close=True)
        if int(length) > self.settings.max_body_bytes:
            raise _too_large(self.settings.max_body_bytes)


def _single_headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers, of which those that decide something may come once only."""
    once = (b"host", b"origin", b"authorization", b"content-length", b"content-type", b"content-encoding")
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in headers and name in once:
            raise ApiError(400, f"the header {name.decode()} is given twice", name.decode(), close=True)
        headers[name] = value
    return {b"host": b""} | headers


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit:,} bytes", code="request_too_large", close=True)


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The body, as it comes: given up as soon as it is too large or too slow. ApiError 413, 408 or 400."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message: Any = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the body ended early", close=True)
                body += message.get("body", b"")
                if len(body) > settings.max_body_bytes:
                    raise _too_large(settings.max_body_bytes)
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {settings.body_seconds:g} s", close=True) from None
