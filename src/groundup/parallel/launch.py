"""`launch`: one process per rank on this machine, started again from the last checkpoint when one of them dies.

    launcher --- starts ---> rank 0, rank 1, ... each in a session of its own, with standard input from the launcher
       |  hosts the store that they meet in, in which a rank that fails leaves its traceback
       |  one rank ends badly: the others are killed, the first error is shown, and all start again
       |  Ctrl-C or SIGTERM: passed on once, so that ranks finish their step and save; again: killed
       '- dies: standard input ends in every rank, and so do they

It does for one machine what torchrun does for many, with two things more: of all ranks' errors it shows the one that
was first, and nothing that it started outlives it.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.environ import env, for_child
from groundup.parallel.group import LAUNCHER, PrefixStore, TCPStore
from groundup.parallel.watchdog import HUNG

GRACE_SECONDS = 1.0
"""After a first failure: how long others may still say why they failed."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Failure:
    """How an attempt failed: the rank that was first, its exit code (below 0: the signal), and its traceback."""

    rank: int
    code: int
    text: str

    def __str__(self) -> str:
        if self.code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name}{_likely(-self.code)}"
        if self.code == HUNG:
            return f"rank {self.rank} ended after a hang"
        return f"rank {self.rank} failed:\n{self.text.rstrip()}" if self.text else (
            f"rank {self.rank} ended with code {self.code}"
        )  # fmt: skip


@dataclass
class _Attempt:
    processes: list[subprocess.Popen]
    store: Any
    asked: int = 0  # signals so far
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> None:
        for rank, process in enumerate(self.processes):
            if rank not in self.codes and (code := process.poll()) is not None:
                self.codes[rank] = code

    @property
    def over(self) -> bool:
        return len(self.codes) == len(self.processes)

    @property
    def failed(self) -> bool:
        return any(code not in (0, INTERRUPTED) for code in self.codes.values())

    def pass_on(self, number: int, _: Any) -> None:
        self.asked += 1
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGTERM if self.asked == 1 else signal.SIGKILL)

    def kill(self) -> None:
        """All that is left, with what it has started itself."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()

    def failure(self) -> Failure:
        """The cause, as far as it can be told from its consequences: a death, then an error of its own, then others."""
        texts = {rank: self._text(rank) for rank in self.codes}
        bad = [rank for rank, code in self.codes.items() if code not in (0, INTERRUPTED)]
        first = min(bad, key=lambda rank: (self.codes[rank] >= 0, _is_consequence(texts[rank]), not texts[rank], rank))
        return Failure(first, self.codes[first], texts[first])

    def _text(self, rank: int) -> str:
        key = f"error/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else ""


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    restarts: int = 3,
    progress: Callable[[], object] = lambda: None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> int:
    """Run `command` in `ranks` processes that find each other by `group.joined`; the exit code for the shell.

    restarts: how often all are started again after a failure without `progress` having changed since the last one: a
    command that goes on from its newest checkpoint so survives any number of deaths, and not one error that repeats
    itself. progress: says how far the run is, such as the name of its newest checkpoint.

    Codes: 0 when all ranks ended well, 130 after Ctrl-C or SIGTERM, else 1 (what went wrong was said).
    """
    left, known = restarts, progress()
    while True:
        failure, interrupted = _attempt(command, ranks)
        if interrupted:
            return INTERRUPTED
        if failure is None:
            return 0
        say(str(failure))
        now = progress()
        left, known = (restarts if now != known else left - 1), now
        if left < 0:
            say(
                f"given up after {restarts} restarts without progress"
                if restarts
                else "stopped: no restarts are allowed"
            )
            return 1
        say("starting all ranks again from the last checkpoint")


def _attempt(command: Sequence[str], ranks: int) -> tuple[Failure | None, bool]:
    """(what failed, whether the user ended it)."""
    store, address = _meeting_place()
    attempt = _Attempt([], store)
    with _signals(attempt.pass_on):
        try:
            for rank in range(ranks):
                attempt.processes.append(_start(command, rank, ranks, address))
            _wait(attempt)
            interrupted = attempt.asked > 0 or INTERRUPTED in attempt.codes.values()
            failed = attempt.failed and not attempt.asked
            return (attempt.failure() if failed else None), interrupted and not failed
        finally:
            attempt.kill()


def _meeting_place() -> tuple[Any, str]:
    """A store that only this machine reaches, under a prefix that only the ranks are told; how they find it."""
    listener = socket.socket()  # a TCPStore that opens its own listens to every network
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    port, prefix = listener.getsockname()[1], secrets.token_hex(16)
    store = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )  # fmt: skip
    return PrefixStore(prefix, store), f"{port}/{prefix}"


def _loopback() -> str | None:
    """The name of the network interface that does not leave the machine."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)


def _wait(attempt: _Attempt) -> None:
    """Until all ranks have ended, or one has failed and the others had their time to say so."""
    give_up = float("inf")
    while not attempt.over and time.monotonic() < give_up:
        time.sleep(0.05)
        attempt.poll()
        if attempt.failed and not attempt.asked:
            give_up = min(give_up, time.monotonic() + GRACE_SECONDS)


def _start(command: Sequence[str], rank: int, ranks: int, address: str) -> subprocess.Popen:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, LAUNCHER: address}
    usual = {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // ranks)}
    usual |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback())
    places |= {name: value for name, value in usual.items() if value is not None and env(name) is None}
    changes = {name: str(value) for name, value in places.items()}
    return subprocess.Popen(command, env=for_child(changes), stdin=subprocess.PIPE, start_new_session=True)


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ranks are in sessions of their own, so a Ctrl-C reaches only this process."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _is_consequence(text: str) -> bool:
    return any(words in text for words in ("onnection closed by peer", "onnection reset by peer", "DistNetworkError"))


def _likely(number: int) -> str:
    return " (out of memory, unless somebody did it)" if number == getattr(signal, "SIGKILL", 9) else ""
