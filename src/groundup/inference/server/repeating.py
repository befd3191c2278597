"""Refusing many clients at once, without Python's lock.

    sockets that can be read -> the request that was refused there before, once more?
                                yes: all of them are answered in one compiled call
                                no:  the event loop's business

A client that was refused asks the same again. Python's `recv` and `send` each let go of its lock and wait for it again,
twice for each refusal, and every time the engine's thread has to be woken: at thousands of refusals a second it waits
longer than the refusals take.
"""

import inspect
import socket
import sys
from collections.abc import Callable
from selectors import SelectorKey
from typing import Any, Protocol

import numpy as np
from numba import njit, types

MOST_BYTES = 1 << 12
"""Of a request that is kept here."""
IS_POSSIBLE = sys.platform != "win32"  # where a socket is no number, and they are called otherwise
PEEK = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)
SEND = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
_recv, _send = (
    types.ExternalFunction(name, types.int64(types.int32, types.int64, types.uint64, types.int32))
    for name in ("recv", "send")
)


def _refuse(sockets: Any, rows: Any, requests: Any, lengths: Any, answer: Any, came: Any, sent: Any) -> None:
    """Answer every socket on which nothing but its request lies: sent[i] bytes, 0 where it is left as it is.

    rows: of each socket in `requests` and `lengths`. came: room for a request and a byte more. A request is taken away
    once its answer is sent.
    """
    for i in range(sockets.size):
        sent[i] = 0
        expected, size = requests[rows[i]], lengths[rows[i]]
        if _recv(sockets[i], came.ctypes.data, np.uint64(size + 1), PEEK) != size:
            continue
        same = True
        for k in range(size):
            same &= came[k] == expected[k]
        if same:
            sent[i] = max(0, _send(sockets[i], answer.ctypes.data, np.uint64(answer.size), SEND))
            if sent[i] > 0:
                _recv(sockets[i], came.ctypes.data, np.uint64(size), 0)


_compiled_refuse = njit(cache=True, nogil=True)(inspect.unwrap(_refuse))


class Refusable(Protocol):
    """A connection whose last request was refused, and on which nothing has come since."""

    def is_writable(self) -> bool:
        """Whether all that was written has been sent, and more may be."""
        ...

    def note_refusal(self, unsent: bytes) -> None:
        """It was refused once more, but for these bytes of the answer."""
        ...


class Repeats:
    """At most `most` connections, and what was refused on each.

    refusal: the answer that a request gets now; None while there is room for one. count: is told of each that got it.
    """

    def __init__(self, most: int, refusal: Callable[[], bytes | None], count: Callable[[bytes], None]) -> None:
        self._refusal, self._count = refusal, count
        self._requests, self._lengths = np.empty((most, MOST_BYTES), np.uint8), np.zeros(most, np.int64)
        self._data: list[bytes] = [b""] * most
        self._free = list(range(most))
        self._rows: dict[int, int] = {}
        self._connections: dict[int, Refusable] = {}
        self._came = np.empty(MOST_BYTES + 1, np.uint8)
        if IS_POSSIBLE:
            self._answer([], b"x")  # compiled now, and not under load

    def add(self, number: int, connection: Refusable, data: bytes) -> None:
        """A connection by its socket's number, and the request that was refused."""
        row = self._rows.get(number)
        if row is None:
            if not (IS_POSSIBLE and self._free):
                return
            row = self._rows[number] = self._free.pop()
        if len(data) > MOST_BYTES:
            self.remove(number)
            return
        if self._data[row] != data:
            self._data[row], self._lengths[row] = data, len(data)
            self._requests[row, : len(data)] = np.frombuffer(data, np.uint8)
        self._connections[number] = connection

    def remove(self, number: int) -> None:
        """Something else has come on this socket, or it is closed. Idempotent."""
        row = self._rows.pop(number, None)
        if row is not None:
            self._free.append(row)
            self._connections.pop(number, None)

    def answer(self, events: list[tuple[SelectorKey, int]]) -> list[tuple[SelectorKey, int]]:
        """Refuse what can be refused so; the events that are left."""
        refusal = self._refusal() if self._connections else None
        if refusal is None:
            return events
        known = self._connections
        numbers = [key.fd for key, _ in events if key.fd in known and known[key.fd].is_writable()]
        done = {number: sent for number, sent in zip(numbers, self._answer(numbers, refusal), strict=True) if sent}
        for number, sent in done.items():
            known[number].note_refusal(refusal[sent:])
            self._count(self._data[self._rows[number]])
        return [event for event in events if event[0].fd not in done]

    def _answer(self, numbers: list[int], refusal: bytes) -> list[int]:
        """How many bytes of the refusal went out on each of these sockets."""
        sockets, sent = np.array(numbers, np.int32), np.zeros(len(numbers), np.int64)
        rows = np.array([self._rows[number] for number in numbers], np.int64)
        answer = np.frombuffer(refusal, np.uint8)
        _compiled_refuse(sockets, rows, self._requests, self._lengths, answer, self._came, sent)
        return sent.tolist()
