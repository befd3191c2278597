"""Refusing cheaply: a request that has come whole may be answered before it is taken apart.

    plain bytes -> Host -> API key -> room in the queue -> the long way, through parser, gate and application
                              401           429

A refusal through the whole application takes about 0.7 ms of Python, during which the engine's thread waits. At a
hundred times the load that is half of the server's time; this way it is some hundredths of a millisecond: what a head
means is remembered, as clients send the same one again and again, and so are the bytes of answers. An unknown key is
refused before anybody looks at the queue, full or not, so a stranger learns nothing of the load, neither by the answer
nor by its time. Whatever is unusual goes the long way.

The long way takes a while, in which hundreds more may arrive. So who is let in holds a `Ticket` for a place in the
queue until it has one, and nobody else is let in for the same place.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from groundup.inference.server.errors import ApiError
from groundup.inference.server.gate import host_name, no_key
from groundup.inference.server.keys import Keys
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.settings import Settings
from groundup.inference.service import Service

_START = re.compile(rb"POST /v1/(chat/)?completions HTTP/1\.1\r\n")
_LENGTH, _HOST, _KEY = (
    re.compile(rb"\r\n%s:[ \t]*([^\r\n]*)" % name, re.IGNORECASE)
    for name in (b"content-length", b"host", b"authorization")
)
_UNUSUAL = (
    b"\r\ntransfer-encoding:", b"\r\nexpect:", b"\r\nconnection: close", b"\r\nupgrade:",
    b"\r\norigin:", b"\r\nsec-fetch-site:", b"\r\n ", b"\r\n\t",
)  # fmt: skip


REMEMBERED = 256  # heads, and answers


@dataclass(frozen=True)
class Plain:
    """One request that has arrived to its last byte: what the short way looks at of it."""

    endpoint: str
    host: bytes
    authorization: bytes | None


class Ticket:
    """A claim of a connection's present request on a place in the queue, which its stream will take."""

    def __init__(self, taken: "set[Ticket]") -> None:
        self._taken = taken

    def take(self) -> None:
        """From now on."""
        self._taken.add(self)

    def release(self) -> None:
        """The stream is open, or will not be. Idempotent."""
        self._taken.discard(self)


class Shedder:
    """Looks at the first bytes of a request: the refusal to send, or None, and then it goes the long way.

    Where that way leads into the queue, it has taken the ticket.
    """

    def __init__(self, service: Service, metrics: Metrics, keys: Keys, settings: Settings) -> None:
        self._service, self._metrics, self._keys = service, metrics, keys
        self._hosts = {name.encode() for name in settings.hosts}
        self._no_key = refusal(no_key())
        self._heads: dict[bytes, tuple[str, int]] = {}  # by digest, for keys: endpoint, and length of the request
        self._answers: dict[str, bytes] = {}
        self._taken: set[Ticket] = set()

    def new_ticket(self) -> Ticket:
        """For a connection; not taken yet."""
        return Ticket(self._taken)

    @property
    def is_full(self) -> bool:
        """Whether no place in the queue is left that nobody has a claim on."""
        return self._service.has_no_place_but(len(self._taken))

    def __call__(self, data: bytes, ticket: Ticket) -> bytes | None:
        if not data.startswith(b"POST /v1/c"):
            return None
        end = data.find(b"\r\n\r\n")
        head = sha256(data[:end]).digest()
        endpoint, length = self._heads.get(head, ("", 0))
        if length != len(data):
            plain = self._plain(data)
            if plain is None:
                return None
            if self._keys and (plain.authorization is None or self._keys.number_of(plain.authorization) is None):
                self._metrics.count(plain.endpoint, "invalid")
                return self._no_key
            endpoint = plain.endpoint
            _remember(self._heads, head, (endpoint, len(data)))
        if not self.is_full:
            ticket.take()
            return None
        self._metrics.count(endpoint, "rejected")
        return self._full()

    def _plain(self, data: bytes) -> Plain | None:
        """A plain request to this server."""
        plain = whole_request(data)
        if plain is None or host_name(plain.host.decode("latin-1")).lower().encode("latin-1") not in self._hosts:
            return None
        return plain

    def _full(self) -> bytes:
        full = self._service.queue_full()
        words = str(full)
        if words not in self._answers:
            retry = {"Retry-After": str(full.retry_after)}
            _remember(self._answers, words, refusal(ApiError(429, words, code="queue_full", headers=retry)))
        return self._answers[words]


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    known[key] = value


def whole_request(data: bytes) -> Plain | None:
    """The plain request that these bytes are; None for anything else."""
    start = _START.match(data)
    if start is None:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    lengths, hosts, keys = (pattern.findall(head) for pattern in (_LENGTH, _HOST, _KEY))
    if head.count(b"\n") != head.count(b"\r\n") or any(name in lower for name in _UNUSUAL):
        return None
    if len(lengths) != 1 or lengths[0].strip() != b"%d" % len(body) or len(hosts) != 1 or len(keys) > 1:
        return None
    return Plain("chat" if start[1] else "completions", hosts[0].strip(), keys[0].strip() if keys else None)


def refusal(error: ApiError) -> bytes:
    """The answer, as the application would give it."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-content-type-options": "nosniff",
               **(error.headers or {}), "content-length": str(len(body))}  # fmt: skip
    phrase = {401: "Unauthorized", 429: "Too Many Requests"}[error.status]
    lines = [f"HTTP/1.1 {error.status} {phrase}", *(f"{name.lower()}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
