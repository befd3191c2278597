"""What every strategy sends in a step, in one place: which messages, how many, and of how many bytes.

    strategy   operation        each                     of bytes                                    along
    data       all-reduce       step                     gradients                                   data
    zero       reduce-scatter   step                     gradients                                   data
               all-gather       step                     parameters
    shard      all-gather       unit and pass, twice     parameters of the unit, compute type        shard
               reduce-scatter   unit and pass            gradients of the unit
    tensor     all-reduce       branch and pass, twice   activations X                               tensor
      sequence all-gather and reduce-scatter in place of each all-reduce: the same bytes
    pipeline   send             chunk and pass, twice    activations X                               pipeline
    context    ring: send       layer and pass, N - 1    keys and values; back: those and gradients  context
               gather: all-gather, and a reduce-scatter back
    expert     all-to-all       layer and pass, 4        a row for each pair of token and expert     expert

A pass is the forward and backward pass of one micro-batch, X are the bytes of a micro-batch's hidden states (tokens x
d_model), and "branch" is attention or the feed-forward layer. What a rank sends of a tensor of S bytes on n ranks, and
how many messages it waits for one after the other, is that of a ring:

    all-reduce                      2 (n - 1) / n S     2 (n - 1)
    all-gather, reduce-scatter          (n - 1) / n S       n - 1        S: what all ranks' parts are together
    all-to-all                          (n - 1) / n S       n - 1
    send                                          S             1

Patarasuk and Yuan 2009 (rings); Rajbhandari et al. 2020, section 7 (arXiv:1910.02054); Shoeybi et al. 2019, section 3
(arXiv:1909.08053); Korthikanti et al. 2022 (arXiv:2205.05198); Liu et al. 2023 (arXiv:2310.01889); Lepikhin et al. 2020
(arXiv:2006.16668).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Operation = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]

AROUND = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
"""How often what a ring collective makes goes around the ranks."""


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind, as one rank of `ranks` takes part in them: `count` times the operation on `bytes`."""

    axis: str
    operation: Operation
    ranks: int
    count: float
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that this rank sends."""
        return self.count * wire_share(self.operation, self.ranks) * self.bytes

    @property
    def messages(self) -> float:
        """How many it waits for, one after the other."""
        return self.count * hops(self.operation, self.ranks)


def wire_share(operation: str, ranks: int) -> float:
    """What each rank sends, as a share of the tensor; all of it where only two ends are concerned.

    >>> wire_share("all-reduce", 4), wire_share("all-gather", 4), wire_share("send", 4)
    (1.5, 0.75, 1.0)
    """
    return hops(operation, ranks) / ranks if operation in AROUND else 1.0


def hops(operation: str, ranks: int) -> int:
    """Messages one after the other in a ring.

    >>> hops("all-reduce", 4), hops("reduce-scatter", 4), hops("send", 4)
    (6, 3, 1)
    """
    return AROUND.get(operation, 0) * (ranks - 1) or 1


def fit(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(alpha, beta), both at least 0, for points (messages, bytes, seconds): least squares of the relative errors.

    >>> alpha, beta = fit([(2, 0, 2e-4), (2, 1e6, 2e-4 + 1e-3)])
    >>> round(alpha, 6), round(beta, 12)
    (0.0001, 1e-09)
    """
    rows = np.array([[k / seconds, w / seconds] for k, w, seconds in points])
    both, *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if min(both) >= 0:
        return float(both[0]), float(both[1])
    # One of the two alone: a column's own least squares are (a . 1) / (a . a).
    alone = [column.sum() / (column @ column) if column.any() else 0.0 for column in rows.T]
    errors = [np.square(rows[:, i] * alone[i] - 1).sum() for i in range(2)]
    return (float(alone[0]), 0.0) if errors[0] <= errors[1] else (0.0, float(alone[1]))


def data_parallel(gradient_bytes: float, ranks: int, buckets: int = 1, axis: str = "data") -> list[Traffic]:
    """Gradients summed once in a step, in so many parts."""
    return _of([Traffic(axis, "all-reduce", ranks, buckets, gradient_bytes / buckets)])


def zero(gradient_bytes: float, parameter_bytes: float, ranks: int, buckets: int = 1) -> list[Traffic]:
    """Stages 1 and 2: gradients summed at their owner, who sends the new parameters. The gradients' bytes are split
    as evenly as owners can be, which is (n - 1) / n on average."""
    return _of([
        Traffic("data", "reduce-scatter", ranks, buckets, gradient_bytes / buckets),
        Traffic("data", "all-gather", ranks, buckets, parameter_bytes / buckets),
    ])  # fmt: skip


def sharded(parameter_bytes: float, gradient_bytes: float, ranks: int, units: int, passes: int) -> list[Traffic]:
    """Stage 3: in each pass parameters, in the type that travels, gathered twice, and gradients reduced."""
    return _of([
        Traffic("shard", "all-gather", ranks, 2 * units * passes, parameter_bytes / units),
        Traffic("shard", "reduce-scatter", ranks, units * passes, gradient_bytes / units),
    ])  # fmt: skip


def tensor_parallel(
    hidden_bytes: float, ranks: int, layers: int, passes: int, recompute: bool = False, sequence: bool = False
) -> list[Traffic]:
    """Sums of activations after each of a layer's two branches, and of their inputs' gradients on the way back.

    Recomputing stops at the last product that is read again, so the sum after the feed-forward layer is not repeated.
    """
    if not sequence:
        return _of([Traffic("tensor", "all-reduce", ranks, (4 + recompute) * layers * passes, hidden_bytes)])
    return _of([
        Traffic("tensor", "all-gather", ranks, (4 + 2 * recompute) * layers * passes, hidden_bytes),
        Traffic("tensor", "reduce-scatter", ranks, (4 + recompute) * layers * passes, hidden_bytes),
    ])  # fmt: skip


def pipeline(hidden_bytes: float, ranks: int, rank: int, microbatches: int, chunks: int = 1) -> list[Traffic]:
    """What rank `rank` of a pipeline sends: activations on from all chunks but the model's last, gradients back from
    all but its first."""
    onward, back = chunks - (rank == ranks - 1), chunks - (rank == 0)
    return _of([Traffic("pipeline", "send", ranks, microbatches * (onward + back), hidden_bytes)])


def context_ring(
    kv_bytes: float, gradient_bytes: float, ranks: int, layers: int, passes: int, recompute: bool = False
) -> list[Traffic]:
    """Keys and values of one rank's tokens go round, forward and back, and their gradients go back with them."""
    round_trips = (ranks - 1) * layers * passes
    return _of([
        Traffic("context", "send", ranks, (2 + recompute) * round_trips, kv_bytes),
        Traffic("context", "send", ranks, round_trips, gradient_bytes),
    ])  # fmt: skip


def context_gather(kv_bytes: float, ranks: int, layers: int, passes: int, recompute: bool = False) -> list[Traffic]:
    """All ranks' keys and values gathered, and their gradients reduced; `kv_bytes` are of one rank's tokens."""
    return _of([
        Traffic("context", "all-gather", ranks, (1 + recompute) * layers * passes, ranks * kv_bytes),
        Traffic("context", "reduce-scatter", ranks, layers * passes, ranks * kv_bytes),
    ])  # fmt: skip


def expert_parallel(pair_bytes: float, ranks: int, layers: int, passes: int, recompute: bool = False) -> list[Traffic]:
    """Rows to their experts and back, forward and backward; `pair_bytes` are those of all pairs of one rank's tokens
    with an expert, which spread evenly."""
    return _of([Traffic("expert", "all-to-all", ranks, (4 + 2 * recompute) * layers * passes, pair_bytes)])


def _of(found: list[Traffic]) -> list[Traffic]:
    """Without what is not sent: a rank alone has nobody to send to."""
    return [each for each in found if each.ranks > 1 and each.count > 0]
