"""HTTP connections that cannot be kept open for nothing: uvicorn's, with a time limit on each thing a client may delay.

    connect ──header_seconds──▶ headers ──(body_seconds, in the guard)──▶ answer ──idle_seconds──▶ close
                                            unread output for send_seconds: the connection is cut

Memory per connection is bounded: headers by h11's limit, a body by the guard, and output by the transport's
high-water mark, beyond which sending waits.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from groundup.inference.server.errors import ApiError
from groundup.inference.server.settings import ServerSettings

MAX_HEADER_BYTES = 16 << 10


class TimedConnection(H11Protocol):
    """One connection. `limits` is set on a subclass for each server."""

    limits = ServerSettings()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._wait(self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwait()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """As uvicorn's. From the first byte of a request on, its headers have `header_seconds`."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            if self._timer is None:
                self._wait(self.limits.header_seconds)
        elif self.conn.their_state is not h11.IDLE:
            self._unwait()

    def pause_writing(self) -> None:
        self._wait(self.limits.send_seconds)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unwait()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """An OpenAI error, where uvicorn's is plain text."""
        body = json.dumps(ApiError(400, "this is not HTTP/1.1 as it should be").body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # it was in the middle of an answer
            pass
        self.transport.close()

    def _wait(self, seconds: float) -> None:
        self._unwait()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _unwait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
