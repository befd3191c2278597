"""Listening, and ending well: on SIGTERM no new requests, those that run may end, then the engine."""

import asyncio
import logging
import socket

import uvicorn
from starlette.types import ASGIApp

from groundup.inference.server.application import create_app
from groundup.inference.server.choosing import Compile
from groundup.inference.server.connection import protocol_for
from groundup.inference.server.keys import Keys
from groundup.inference.server.metrics import Metrics
from groundup.inference.server.settings import LOOPBACK, Settings
from groundup.inference.server.shedding import Shedder
from groundup.inference.service import Service

LAST_SECONDS = 2  # after the drain, for error events to reach their clients


class DrainingServer(uvicorn.Server):
    """uvicorn, which on its way out lets the service end what it has begun."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self.service, self.drain_seconds = service, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with the drain beside it."""
        drain = asyncio.create_task(self.service.drain(self.drain_seconds))
        await super().shutdown(sockets)
        await drain
        self._captured_signals.clear()  # uvicorn would raise it again: to have drained is success


def new_server(
    app: ASGIApp,
    service: Service,
    settings: Settings,
    host: str,
    port: int,
    metrics: Metrics | None = None,
    keys: Keys | None = None,
) -> DrainingServer:
    """A server that is not started yet. `keys` and `metrics` are those of the application."""
    protocol = protocol_for(settings, Shedder(service, metrics or Metrics(), keys or Keys([]), settings))
    config = uvicorn.Config(
        app, host=host, port=port, http=protocol, ws="none", loop="asyncio", access_log=False,
        log_level=logging.WARNING, log_config=None, server_header=False, proxy_headers=False,
        timeout_keep_alive=int(settings.idle_seconds), h11_max_incomplete_event_size=settings.max_header,
        timeout_graceful_shutdown=int(settings.drain_seconds) + LAST_SECONDS,
    )  # fmt: skip
    return DrainingServer(config, service, settings.drain_seconds)


def listen(host: str, port: int) -> socket.socket:
    """A socket that connections can wait at; port 0 takes a free one. OSError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio sets no TCP_NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"port {port} of {host}: {error.strerror}; choose another with --port") from None
    return bound


def check_exposure(host: str, keys: Keys) -> None:
    """ValueError for an address that others can reach, without keys."""
    if f"[{host}]" not in LOOPBACK and host not in LOOPBACK and not keys:
        raise ValueError(
            f"--host {host} can be reached from other machines, and there are no API keys: "
            "name a file with --api-keys, or set GROUNDUP_API_KEYS"
        )


def serve(
    service: Service,
    bound: socket.socket,
    settings: Settings,
    keys: Keys,
    compile_constraint: Compile | None = None,
) -> None:
    """Answer on a bound socket until SIGTERM or Ctrl-C; then drain, and close the service."""
    metrics = Metrics()
    app = create_app(service, settings, keys, compile_constraint, metrics)
    host, port = bound.getsockname()[:2]
    server = new_server(app, service, settings, host, port, metrics, keys)
    try:
        server.run(sockets=[bound])
    finally:
        service.close()
