"""The bytes that code holds at every moment, found by running it on tensors without storage.

`LiveBytes` watches every operation on fake tensors: what it makes comes to life, and a weak reference tells when
autograd, an optimizer or a local variable has let go of it. So the order of frees, which decides over a peak, is that
of the real code. What operations allocate within themselves is not seen; `accounting.workspaces` adds that.
"""

import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groundup.accounting.workspaces import workspace_bytes

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
ACTIVATIONS, LOGITS, TEMPORARIES, BATCH = "activations", "logits", "temporaries", "batch"
KINDS: tuple[str, ...] = (PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, TEMPORARIES, BATCH)
"""What bytes are for. Activations are what a forward pass leaves to the backward pass, copies of weights in the compute
type included; temporaries are all that lives within one pass, the insides of operations included."""
BEFORE, FORWARD, BACKWARD, CLIPPING, UPDATE = "before", "forward", "backward", "clipping", "update"
PHASES = (FORWARD, BACKWARD, CLIPPING, UPDATE)


@dataclass(frozen=True)
class Moment:
    """While `operation` ran, the most that was alive. `made_bytes` are those of its results."""

    phase: str
    operation: str
    live_bytes: int
    made_bytes: int


@dataclass(frozen=True)
class Simulation:
    """A step as it would go.

    moments: one per operation that made something
    steady_bytes: what is alive before and after the step: parameters, optimizer states, the batch
    held: bytes at the peak by kind, their sum is the peak
    """

    moments: list[Moment]
    steady_bytes: int
    held: dict[str, int]

    @property
    def peak(self) -> Moment:
        """The first moment with most bytes."""
        return max(self.moments, key=lambda moment: moment.live_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.peak.live_bytes

    @property
    def phase_peaks(self) -> dict[str, int]:
        """The most bytes of each phase that ran, in the order of a step."""
        most: dict[str, int] = defaultdict(int)
        for moment in self.moments:
            most[moment.phase] = max(most[moment.phase], moment.live_bytes)
        return {phase: most[phase] for phase in PHASES if phase in most}


@dataclass
class _Storage:
    """Bytes that live and die together. `passed` numbers the pass (of a micro-batch) that made it, or let go of it."""

    size: int
    phase: str
    born_in: int
    died_in: int | None = None
    kind: str | None = None


@dataclass(frozen=True)
class _Event:
    """`made` and `freed` are numbers of storages; `inside` are bytes of the operation's own, for as long as it runs."""

    phase: str
    operation: str
    made: tuple[int, ...] = ()
    freed: int | None = None
    inside: int = 0
    # A sum that autograd writes into its first operand, if it holds the only reference to it: a storage, or None.
    may_reuse: int | None = None


class LiveBytes(TorchDispatchMode):
    """Entered within a FakeTensorMode, so that it sees each operation first. `phase` is for the caller to set; while
    autograd runs it is the backward pass, and after that the clipping.

    vocab_size: rows as long as this, made by a forward pass, are logits.
    """

    def __init__(self, vocab_size: int | None = None) -> None:
        super().__init__()
        self.phase = BEFORE
        self.vocab_size = vocab_size
        self._storages: list[_Storage] = []
        self._events: list[_Event] = []
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._pass, self._latest_phase = 0, BEFORE

    def adopt(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Tensors whose kind is known: those that are there before the step, or gradients once they are."""
        for tensor in tensors:
            number = self._number(tensor)
            if number is None:
                number = self._register(tensor, BEFORE)
                self._events.append(_Event(BEFORE, "there before", (number,)))
            self._storages[number].kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _some_number(args[0])
        out = func(*args, **(kwargs or {}))
        phase = self._phase_now()
        turned = phase != self._latest_phase
        if turned:
            self._pass, self._latest_phase = self._pass + 1, phase
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        made = tuple(self._register(result, phase) for result in results if self._number(result) is None)
        inside = workspace_bytes(func, args, results)
        if made or inside or turned:
            reuse = self._number(args[0]) if phase == BACKWARD and _is_sum(func, args) else None
            self._events.append(_Event(phase, str(func), made, inside=inside, may_reuse=reuse))
        return out

    def _phase_now(self) -> str:
        if torch._C._current_graph_task_id() == -1:
            return self.phase
        if self.phase == BACKWARD:
            self.phase = CLIPPING  # what comes once autograd is done
        return BACKWARD

    def _number(self, tensor: Tensor) -> int | None:
        found = self._alive.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    def _register(self, tensor: Tensor, phase: str) -> int:
        storage = tensor.untyped_storage()
        number = len(self._storages)
        self._storages.append(_Storage(storage.nbytes(), phase, self._pass))
        if phase == FORWARD and tensor.ndim > 1 and tensor.shape[-1] == self.vocab_size:
            self._storages[-1].kind = LOGITS
        address = storage._cdata
        self._alive[address] = number, weakref.ref(storage, partial(self._died, address, number))
        return number

    def _died(self, address: int, number: int, _: Any) -> None:
        del self._alive[address]
        self._storages[number].died_in = self._pass
        self._events.append(_Event(self._latest_phase, "", freed=number))

    def result(self) -> Simulation:
        """What has been seen up to now."""
        moments, at_peak, most, before = [], [], -1, 0
        live: dict[int, int] = {}
        for event, moment in self._moments(live):
            if event.phase == BEFORE:
                before = moment.live_bytes
                continue
            moments.append(moment)
            if moment.live_bytes > most:
                most, at_peak = moment.live_bytes, list(live)
        return Simulation(moments, before, self._held(at_peak, most))

    def _moments(self, live: dict[int, int]) -> Iterator[tuple[_Event, Moment]]:
        """One after another, while `live` becomes the bytes of each storage that is alive then."""
        total = 0
        for event, following in itertools.zip_longest(self._events, self._events[1:]):
            if event.freed is not None:
                total -= live.pop(event.freed)
                continue
            made = {number: self._storages[number].size for number in event.made}
            live |= made
            total += sum(made.values())
            reused = event.may_reuse if following is not None and event.may_reuse == following.freed else None
            twice = self._storages[reused].size if reused is not None else 0
            yield event, Moment(event.phase, event.operation, total + event.inside - twice, sum(made.values()))

    def _held(self, alive: Iterable[int], total: int) -> dict[str, int]:
        held = dict.fromkeys(KINDS, 0)
        for number in alive:
            held[self._kind(self._storages[number])] += self._storages[number].size
        held[TEMPORARIES] += total - sum(held.values())
        return held

    def _kind(self, storage: _Storage) -> str:
        if storage.kind is not None:
            return storage.kind
        outlived = storage.died_in is None or storage.died_in > storage.born_in
        return ACTIVATIONS if storage.phase == FORWARD and outlived else TEMPORARIES


def _is_sum(func: Any, args: Any) -> bool:
    """Whether this may be autograd joining two gradients. On real tensors it does so in place; where tensors are fake
    or operations watched it makes a third."""
    if func is not torch.ops.aten.add.Tensor or not isinstance(args[1], Tensor):
        return False
    return args[0].shape == args[1].shape and args[0].dtype == args[1].dtype


def _some_number(tensor: Tensor) -> float | int | bool:
    """In place of a value that nobody knows: the code looks at some, such as ids that it checks."""
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 0
