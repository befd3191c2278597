"""Who may ask: the Host, the Origin, the key and its rate, before anything of a request's body is read.

    Host allow-list -> Origin -> API key -> rate -> body, bounded in size and time -> the application

No answer ever carries an Access-Control-Allow-Origin header, so pages of others can neither read nor, as their
preflight fails, send. Every path needs a key, but for the few of `OPEN`.
"""

import asyncio
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundup.inference.server.errors import ApiError
from groundup.inference.server.keys import Keys
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.settings import Settings

OPEN = frozenset({("GET", "/"), ("GET", "/health")})
"""What needs no key: the page, which is the same for everybody, and whether the server is up."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
POLICY = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Gate:
    """The outermost layer. Puts `state["salt"]` and `state["body"]` into the scope of what it lets through."""

    def __init__(self, app: ASGIApp, keys: Keys, settings: Settings, metrics: Metrics) -> None:
        self.app, self.keys, self.settings, self.metrics = app, keys, settings, metrics
        self._buckets: dict[int, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        guarded = _with_headers(send)
        try:
            if scope["type"] != "http":
                raise ApiError(400, "only HTTP is spoken here")
            headers = _headers(scope, self.settings.max_header)
            self._check_host(headers)
            self._check_origin(scope, headers)
            key = self._check_key(scope, headers)
            self._check_rate(scope, key)
            state = scope.setdefault("state", {})
            state["salt"] = "" if key is None else self.keys.salt(key)
            state["body"] = await self._body(headers, receive)
        except ApiError as error:
            self.metrics.count_refusal(scope.get("method", ""), scope["path"], error.status)
            response = error.response()
            response.headers["connection"] = "close"  # what is left of a body is not read
            await response(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def _check_host(self, headers: dict[bytes, list[bytes]]) -> None:
        given = headers.get(b"host", [])
        name = given[0].decode("latin-1").lower() if len(given) == 1 else ""
        if host_name(name) not in self.settings.hosts:
            raise ApiError(421, "this server does not go by the name in the Host header; start it with --allow-host")

    def _check_origin(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
        own = headers[b"host"][0].decode("latin-1").lower()
        for origin in headers.get(b"origin", []):
            text = origin.decode("latin-1").lower()
            if text not in (f"http://{own}", f"https://{own}", *self.settings.origins):
                raise ApiError(403, "pages of another origin may not call this server")
        foreign = b"cross-site" in headers.get(b"sec-fetch-site", [])
        if foreign and b"origin" not in headers and (scope["method"], scope["path"]) not in OPEN:
            raise ApiError(403, "pages of another site may not call this server")

    def _check_key(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> int | None:
        if not self.keys:
            return None
        given = headers.get(b"authorization", [])
        key = self.keys.number_of(given[0]) if len(given) == 1 else None
        if key is None and (scope["method"], scope["path"]) not in OPEN:
            raise no_key()
        return key

    def _check_rate(self, scope: Scope, key: int | None) -> None:
        """A bucket per key, refilled at the allowed rate, holding a minute's worth."""
        limit = self.settings.requests_per_minute
        if limit is None or scope["method"] != "POST":
            return
        number, now = -1 if key is None else key, time.monotonic()
        left, then = self._buckets.get(number, (float(limit), now))
        left = min(limit, left + (now - then) * limit / 60)
        if left < 1:
            wait = str(max(1, round((1 - left) * 60 / limit)))
            raise ApiError(429, f"more than {limit} requests in a minute", code="rate_limit_exceeded",
                           headers={"Retry-After": wait})  # fmt: skip
        self._buckets[number] = (left - 1, now)

    async def _body(self, headers: dict[bytes, list[bytes]], receive: Receive) -> bytes:
        limit = self.settings.max_body
        lengths, coding = headers.get(b"content-length", []), headers.get(b"content-encoding", [])
        if lengths and b"transfer-encoding" in headers:
            raise ApiError(400, "Content-Length and Transfer-Encoding exclude each other")
        if any(value.lower() not in (b"", b"identity") for value in coding):
            raise ApiError(415, "send the body as it is, without Content-Encoding")
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > limit):
            raise too_large(limit)
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                return await _read(receive, limit)
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise ApiError(408, f"the body did not come within {seconds:g} s") from None


def no_key() -> ApiError:
    """The refusal of a request without a key that is known."""
    words = "a valid API key is needed: Authorization: Bearer KEY"
    return ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def too_large(limit: int) -> ApiError:
    """The refusal of a body over the limit."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")


def host_name(host: str) -> str:
    """A Host header's value without its port: `[::1]:8000` is `[::1]`."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the connection was closed before the body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


def _headers(scope: Scope, most: int) -> dict[bytes, list[bytes]]:
    """By name. The HTTP parser bounds what it waits for, and not what has come at once."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"]) > most:
        raise ApiError(431, f"the headers have more than {most} bytes")
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given: list[Any] = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            more = [*HEADERS, (b"content-security-policy", POLICY), (b"cache-control", b"no-store")]
            message = {**message, "headers": given + [pair for pair in more if pair[0] not in names]}
        await send(message)

    return guarded
