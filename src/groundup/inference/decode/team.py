"""Threads that walk through one step together: they meet after each operation, and share out its parts.

    thread 0   part 0   part 2   part 3  |meet|  part 0 ...
    thread 1      part 1      part 4     |meet|  part 1 ...

Parts are handed out by a counter, so that a thread that was held up takes fewer. Meeting is a counter, too: everybody
adds one and waits until all have, spinning, since the next operation is a fraction of a microsecond away. After some
microseconds it lets others run, who may have taken the core of the one that is missing. All counters live in one
array of int64, `board`; none is ever set back while others may look.

    thread 0   step   Python   step        |call| when it begins a step
    thread 1   step   await    step        await: for a call, some milliseconds; then to sleep, at Python's queue

Between steps the helpers sleep, but not at once: to wake a thread whose core went to sleep takes some hundred
microseconds of a step of five thousand. So a helper first waits in compiled code, and lets others run meanwhile.
"""

import inspect
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numpy.typing import NDArray

intrinsic: Any = numba_intrinsic  # it takes away the first parameter, which type checkers do not know
LINE = 8  # int64 in a cache line: counters of their own line do not slow each other down
COUNTERS = 4
MEETING, CALLS, FIRST_COUNTER = 0, LINE, 2 * LINE
OWN = FIRST_COUNTER + COUNTERS * LINE  # of each thread: how many meetings it has been to, and calls it has answered
SPINS = 1000  # some 20 microseconds
PATIENCE = 10_000  # some 3 milliseconds, if nobody else wants the core
FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered, but infinities and NaN stay what they are


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use. Unwrapped: Numba cannot compile a test's type check."""
    return njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")(inspect.unwrap(function))


def compiled_ignoring_nan(function: Callable[..., Any]) -> Any:
    """The same for a function whose answer may be anything where a NaN comes in."""
    return njit(nogil=True, fastmath=FAST_MATH | {"nnan"}, error_model="numpy")(inspect.unwrap(function))


def new_board(threads: int) -> NDArray[np.int64]:
    """Room for the counters, and for what each thread counts for itself."""
    return np.zeros(OWN + LINE * threads, np.int64)


@intrinsic
def _add_one(typing: Any, address: Any) -> Any:
    """The number at an address, which is one more from now on; no other thread gets the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    """The number at an address as another thread last left it, with all that it wrote before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell an x86 processor that this is a loop that waits; nothing elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


_let_others_run = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


@compiled
def arrive(board, thread):
    """Say that this thread has done its share of the operation."""
    board[OWN + LINE * thread] += 1
    _add_one(board.ctypes.data + 8 * MEETING)


@compiled
def meet(board, thread, threads):
    """Wait until every thread has arrived."""
    own = OWN + LINE * thread
    everyone = board[own] * threads
    spins = 0
    while _read(board.ctypes.data + 8 * MEETING) < everyone:
        spins += 1
        if spins < SPINS:
            _pause()
        else:
            _let_others_run()
    if thread == 0:  # nobody is left at the operation before, whose counter is needed again in three
        board[FIRST_COUNTER + LINE * ((board[own] - 1) % COUNTERS)] = 0


@compiled
def next_part(board, thread, threads):
    """The number of a part of this operation that nobody else has; the first parts belong to each thread, in order."""
    meetings = board[OWN + LINE * thread]
    return threads + _add_one(board.ctypes.data + 8 * (FIRST_COUNTER + LINE * (meetings % COUNTERS)))


@compiled
def call(board):
    """As thread 0, tell helpers who await it that the next step has begun."""
    _add_one(board.ctypes.data + 8 * CALLS)


@compiled
def is_called(board, thread):
    """As a helper that is done with a step, wait some time for the next call; whether it came."""
    answered = OWN + LINE * thread + 1
    board[answered] += 1
    for spins in range(PATIENCE):
        if _read(board.ctypes.data + 8 * CALLS) > board[answered]:
            return True
        if spins < SPINS:
            _pause()
        else:
            _let_others_run()
    return False


class Team:
    """Calls `work(thread)` on `threads` threads at once, this one being number 0. `work` lets go of Python's lock.

    It returns how many calls it has answered: more than one if it awaited the next in compiled code, see `is_called`.
    Each call is also put into the queue of each helper, which takes out those that were answered so. The helpers end
    when nobody holds the team any more.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._orders = [queue.SimpleQueue() for _ in range(threads - 1)]
        for i, orders in enumerate(self._orders):
            threading.Thread(target=_obey, args=(orders, i + 1), name=f"decode-{i + 1}", daemon=True).start()
        weakref.finalize(self, _dismiss, self._orders)

    def run(self, work: Callable[[int], int]) -> None:
        for orders in self._orders:
            orders.put(work)
        work(0)


def _obey(orders: "queue.SimpleQueue[Callable[[int], int] | None]", thread: int) -> None:
    while (work := orders.get()) is not None:
        answered = work(thread)
        del work  # or a thread that waits would keep its last work's memory
        for _ in range(answered - 1):
            orders.get()


def _dismiss(all_orders: "list[queue.SimpleQueue[Any]]") -> None:
    for orders in all_orders:
        orders.put(None)
