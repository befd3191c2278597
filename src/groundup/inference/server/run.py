"""Listening, and ending well: on SIGTERM no new requests, those that run may end, then the engine.

An engine that has failed, or has not come back from a step for long, cannot be mended from within its process: its
requests are told, and the process ends with FAILED, for whoever supervises it to start another one.
"""

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
from groundup.inference.server.patience import PatientSelector
from groundup.inference.server.settings import LOOPBACK, Settings
from groundup.inference.server.shedding import Shedder
from groundup.inference.service import Service

FAILED = 70
"""Exit code of a server whose engine failed or hung (EX_SOFTWARE of sysexits.h)."""
LAST_SECONDS = 2  # after the drain, for error events to reach their clients

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn, which on its way out lets the service end what it has begun, and goes when the engine fails for good."""

    def __init__(self, config: uvicorn.Config, service: Service, settings: Settings) -> None:
        super().__init__(config)
        self.service, self.settings = service, settings

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, on a loop that does not disturb a busy engine more than it must."""
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(self.serve(sockets))

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(PatientSelector(lambda: self.service.has_no_place_but(0)))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        stuck = self.service.stuck_seconds()
        if self.service.failure is None and stuck > self.settings.hang_seconds:
            logger.error("the engine has been in one step for %.0f s", stuck)
            self.service.give_up(f"the engine hangs: one step has taken more than {self.settings.hang_seconds:g} s")
        has_failed = self.settings.exit_on_failure and self.service.failure is not None
        return await super().on_tick(counter) or has_failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with the drain beside it."""
        drain = asyncio.create_task(self.service.drain(self.settings.drain_seconds))
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
    return DrainingServer(config, service, settings)


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
) -> int:
    """Answer on a bound socket until SIGTERM or Ctrl-C; then drain, and close the service.

    Returns the exit code: 0, or FAILED when the engine has failed, or hangs. In the latter case its thread still runs.
    """
    metrics = Metrics()
    app = create_app(service, settings, keys, compile_constraint, metrics)
    host, port = bound.getsockname()[:2]
    server = new_server(app, service, settings, host, port, metrics, keys)
    try:
        server.run(sockets=[bound])
    finally:
        service.close(0.0 if service.failure else 10.0)
    return FAILED if service.failure else 0
