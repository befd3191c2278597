"""Ctrl-C and SIGTERM: the first asks for a clean end after this step, the second ends at once."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger("groundup.train")

# Cluster schedulers announce the end of an allocation by SIGTERM or a user signal.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)]


class Interrupt:
    """Whether a signal asked for the end. Called by the signal module, between two bytecodes."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(f"second {signal.Signals(number).name}: stopped at once")
        self.requested = True
        logger.warning("%s: finishing this step, then saving; once more stops at once", signal.Signals(number).name)


@contextlib.contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Divert the signals during a block. Only the main thread may; in others nothing is caught."""
    interrupt = Interrupt()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
