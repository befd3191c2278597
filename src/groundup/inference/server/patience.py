"""Looking at sockets less often while there is no place in the queue.

    idle, or places left     a request comes -> the loop wakes -> answers it
    full                     sleep 5 ms, all that came meanwhile at once, sleep 5 ms, ...

Every time that the event loop wakes, it takes Python's lock from the engine's thread and gives it back: at thousands of
requests a second that is much of what a refusal costs. Those that are refused wait in the sockets' buffers instead, a
few milliseconds, and so do pieces of streams. The engine does not wait: it has a full queue.
"""

import selectors
import time
from collections.abc import Callable
from typing import Any

PAUSE_SECONDS = 0.005


class PatientSelector(selectors.DefaultSelector):
    """What an event loop waits with, which takes a pause before it looks, as long as `is_full()`.

    Callbacks that are due are never held up.
    """

    def __init__(self, is_full: Callable[[], bool]) -> None:
        super().__init__()
        self._is_full = is_full

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        if (timeout is None or timeout > 0) and self._is_full():
            pause = PAUSE_SECONDS if timeout is None else min(timeout, PAUSE_SECONDS)
            time.sleep(pause)
            timeout = None if timeout is None else timeout - pause
        return super().select(timeout)
