"""One connection, with a bound on everything that a slow or hostile client can make it hold.

    connect -- header_seconds --> headers -- body_seconds, at the gate --> answer -- idle_seconds --> close
                                                 unread for write_seconds: cut

uvicorn's protocol bounds the size of headers, and writes no more while the send buffer is full. Added here: the times,
the number of connections, errors in JSON, no second request before the first is answered, and a way of closing that
lets the last answer arrive (`lingering`).
"""

import asyncio
import json
import math
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from groundup.inference.server.errors import ApiError
from groundup.inference.server.lingering import LingeringTransport
from groundup.inference.server.settings import Settings
from groundup.inference.server.shedding import Shedder


def protocol_for(settings: Settings, shedder: Shedder) -> type[asyncio.Protocol]:
    """The class of connections with these bounds, for uvicorn's `http=`.

    `shedder` gets what begins a request, and may have an answer at once.
    """

    class Connection(BoundedConnection):
        bounds, shed = settings, shedder

    return Connection


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 in pure Python, with timers."""

    bounds: Settings
    shed: Shedder

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._refused = -math.inf  # when a request was last refused from its bytes
        self._ticket = self.shed.new_ticket()
        self.app_state = {**app_state, "ticket": self._ticket}

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._lingering = LingeringTransport(transport, self._is_unread)
        super().connection_made(self._lingering)  # pyright: ignore[reportArgumentType]
        if len(self.connections) > 2 * self.bounds.max_connections:
            self._lingering.close_now()
        elif len(self.connections) > self.bounds.max_connections:
            self._refuse(ApiError(503, "too many connections", headers={"Retry-After": "1"}))
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._ticket.release()
        self._lingering.end()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._ticket.release()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        if self._lingering.lingers:
            self._lingering.discard(data)
            return
        if self._is_between_requests() and (refusal := self.shed(data, self._ticket)):
            self.transport.write(refusal)
            self._await_next_request()
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._is_answering():
            self._await_headers()
        else:
            self._headers_are_here()
        if self._is_answering() and self.conn.their_state is h11.DONE and self.conn.trailing_data[0].strip(b"\r\n"):
            self.transport.abort()  # while a second request waits unread, nobody would see the client leave

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in JSON too."""
        too_long = len(self.conn.trailing_data[0]) > self.bounds.max_header
        self._refuse(ApiError(431, "the headers are too long") if too_long else ApiError(400, "this is not valid HTTP"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.bounds.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """Also ends a connection whose request is half sent, which uvicorn's would trip over."""
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self._lingering.close_now()

    def timeout_keep_alive_handler(self) -> None:
        left = self._refused + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive(left)
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_between_requests(self) -> bool:
        return not self._is_answering() and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _is_unread(self) -> bool:
        """Whether the client may be in the middle of sending."""
        return not self._is_answering() and self.conn.their_state in (h11.IDLE, h11.SEND_BODY, h11.ERROR)

    def _await_next_request(self) -> None:
        """After a refusal, of which there may be thousands a second: a timer that runs is left to, and looks again."""
        self._headers_are_here()
        self._refused = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive(self.timeout_keep_alive)

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _headers_are_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _await_headers(self) -> None:
        """Whoever has begun a request has so long to end its headers, however slowly they trickle."""
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.bounds.header_seconds, self._headers_are_late)

    def _headers_are_late(self) -> None:
        self._header_timer = None
        self._refuse(ApiError(408, f"no complete request within {self.bounds.header_seconds:g} s"))

    def _refuse(self, error: ApiError) -> None:
        if not self.transport.is_closing() and not self._is_answering():
            body = json.dumps(error.body()).encode()
            head = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                **(error.headers or {}),
            }
            lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *map(": ".join, head.items())]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
