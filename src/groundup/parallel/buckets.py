"""Gradients of several parameters as one message, and messages that travel while the backward pass goes on.

    one bucket, flat:   | gradient of w3 | gradient of b3 | gradient of w2 | 1 1 0 |
                                                                             which of them this rank has

A parameter that this rank did not use counts as zeros, so that no rank waits for another; the flags, summed with the
rest, tell whether anyone used it. Where nobody did, there is no gradient, as on one process.

Buckets are started in the same order on every rank, whatever order gradients arrive in: a message has no name, and
its receiver knows it by its place in the queue.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20
"""The default of Li et al. 2020 (arXiv:2006.15704): large enough to fill a link, small enough to start early."""

Reduction = Iterator[None]
"""The work for one bucket, as a generator: it yields where it would otherwise wait for other ranks."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with a gradient, each once, from the last to the first: about the order in which they get it."""
    return [p for p in model.parameters() if p.requires_grad][::-1]


def make_buckets(params: Iterable[nn.Parameter], most_bytes: float = BUCKET_BYTES) -> list[list[nn.Parameter]]:
    """Parameters in their order, in buckets of one dtype and device and of at most so many bytes, or one parameter.

    The bucket that fills first comes first.
    """
    full: list[list[nn.Parameter]] = []
    open_: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for p in params:
        bucket = open_.setdefault((p.dtype, p.device), [])
        if bucket and sum(q.nbytes for q in bucket) + p.nbytes > most_bytes:
            full.append(bucket)
            open_[p.dtype, p.device] = bucket = []
        bucket.append(p)
    return full + list(open_.values())


def pack(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients, flat, zeros for those that are not there, and a flag for each: to be concatenated."""
    if not params:
        return []
    like = params[0].detach()
    flags = [p.grad is not None for p in params]
    return [
        *(like.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in params),
        like.new_ones(len(params)) if all(flags) else torch.tensor(flags, dtype=like.dtype, device=like.device),
    ]


def packed_length(params: Sequence[nn.Parameter]) -> int:
    return sum(p.numel() for p in params) + len(params)


def unpack(flat: Tensor, params: Sequence[nn.Parameter], divisor: float = 1.0) -> None:
    """Set each `.grad` to its part of a sum of what `pack` gave, over `divisor`; None stays where all flags are 0."""
    if not params:
        return
    *parts, flags = flat.split([*(p.numel() for p in params), len(params)])
    if any(p.grad is None for p in params):  # on a GPU this waits for the sum, so not where every flag is known
        for p, used in zip(params, flags.tolist(), strict=True):
            if p.grad is None and used:
                p.grad = torch.zeros_like(p)
    pairs = [(p.grad, part.view_as(p)) for p, part in zip(params, parts, strict=True) if p.grad is not None]
    for gradient, total in pairs:
        gradient.copy_(total)
        if divisor != 1.0:
            gradient.div_(divisor)


class Pipeline:
    """Reductions that overlap: each start takes all earlier ones a step further, in order, on every rank alike."""

    def __init__(self) -> None:
        self._running: list[Reduction] = []

    def start(self, reduction: Reduction) -> None:
        self._running.append(reduction)
        self._advance(self._running[::-1])

    def finish(self) -> None:
        while self._running:
            self._advance(list(self._running))

    def _advance(self, reductions: list[Reduction]) -> None:
        # The new one is sent off before anyone waits for an old one.
        ended = [reduction for reduction in reductions if next(reduction, self) is self]
        self._running = [reduction for reduction in self._running if reduction not in ended]


class Overlap:
    """Starts a bucket's reduction as soon as the backward pass has made its last gradient.

        ... backward of layer 3 | layer 2         | layer 1
                                | bucket {3} sent | bucket {2} sent, {3} added | ...

    Hooks on the parameters see each gradient arrive. `finish` starts what never filled (parameters that this rank did
    not use) and waits for all. A gradient that comes after its bucket has left raises RuntimeError.
    """

    def __init__(self, buckets: list[list[nn.Parameter]], reduce: Callable[[list[nn.Parameter]], Reduction]):
        self._buckets, self._reduce = buckets, reduce
        self._number = {p: number for number, bucket in enumerate(buckets) for p in bucket}
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._number]
        self._paused = False
        self._begin()

    def _begin(self) -> None:
        self._missing = [set(bucket) for bucket in self._buckets]
        self._started = 0
        self._pipeline = Pipeline()

    def _arrived(self, p: Tensor) -> None:
        if self._paused:
            return
        number = self._number[p]  # type: ignore[index]
        if number < self._started:
            raise RuntimeError(
                f"a gradient of shape {tuple(p.shape)} came after its bucket was sent: run all backward passes of a "
                "step but the last within no_sync(), and call finish() after the last"
            )
        self._missing[number].discard(p)  # type: ignore[arg-type]
        while self._started < len(self._buckets) and not self._missing[self._started]:
            self._start_next()

    def _start_next(self) -> None:
        bucket = self._buckets[self._started]
        self._started += 1
        self._pipeline.start(self._reduce(bucket))

    def finish(self) -> None:
        """Reduce what is left, wait for all, and be ready for the next step."""
        while self._started < len(self._buckets):
            self._start_next()
        self._pipeline.finish()
        self._begin()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes within only add to this rank's gradients."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()


def run(reductions: Iterable[Reduction]) -> None:
    """All of them, each overlapping with the next."""
    pipeline = Pipeline()
    for reduction in reductions:
        pipeline.start(reduction)
    pipeline.finish()
