"""Closing so that the last answer arrives.

    close at once, bytes unread:  answer, FIN -> <- more of the body   RST -> : the client may never see the answer
    lingering:                    answer, FIN -> <- more of the body   (read, thrown away) ... <- FIN, or time is up

A kernel answers bytes that nobody will read with a reset, which can overtake what was sent before (RFC 9112, 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 1.0
LINGER_BYTES = 8 << 20


class LingeringTransport:
    """A transport whose `close` lingers as long as `is_unread()` says that the client may be sending still."""

    def __init__(self, transport: asyncio.Transport, is_unread: Callable[[], bool]) -> None:
        self._transport, self._is_unread = transport, is_unread
        self._left = LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def lingers(self) -> bool:
        """Whether what comes in is to be thrown away, by `discard`."""
        return self._timer is not None

    def is_closing(self) -> bool:
        """Also while it lingers."""
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Nothing is sent behind the end."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """The end of what is sent; the end of the connection at once, or soon."""
        if self.is_closing():
            return
        if not (self._transport.can_write_eof() and self._is_unread()):
            self._transport.close()
            return
        self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # the client has gone already
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)

    def close_now(self) -> None:
        """Without waiting for anybody."""
        self._transport.close()

    def discard(self, data: bytes) -> None:
        """What came while it lingers."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def end(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
