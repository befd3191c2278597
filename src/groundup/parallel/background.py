"""One job at a time on a thread of its own, whose error is not lost."""

import threading
from collections.abc import Callable


class Background:
    """Runs jobs beside the program, one after the other.

    The thread is no daemon: Python waits for it before it ends, also after an exception or `sys.exit`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], object]) -> None:
        """Begin; the job before must have been waited for."""
        assert self._thread is None, f"{self._name}: a job is still running"
        self._thread = threading.Thread(target=self._run, args=(job,), name=self._name)
        self._thread.start()

    def run(self, job: Callable[[], object]) -> None:
        """The same on the caller's thread, to its end."""
        assert self._thread is None, f"{self._name}: a job is still running"
        self._run(job)

    def join(self) -> None:
        """Until the job has ended; `wait` still tells what it raised."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> BaseException | None:
        """Until the job has ended, if there is one: what it raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
