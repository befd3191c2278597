"""What one layer costs a rank under a plan, in seconds: arithmetic, and the messages of every axis. The analytic model
(`predict.py`) adds these up, the simulator (`simulate.py`) lets them happen; both know nothing else.

    forward     arithmetic | sums (tensor, expert)          gather of the next layer (shard) goes on beside it,
                `-- attention --' beside it: ring (context)  where the hardware can do both
    backward    the same again where it is recomputed, twice as much arithmetic, its own messages;
                beside it: gather of the layer before, reduce of the layer behind (shard)
    step        spread: gradients summed over the ranks that have copies (data, context, expert)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from groundup.accounting import communication
from groundup.accounting.communication import Traffic
from groundup.parallel.plan import AXES, ParallelPlan
from groundup.planning.hardware import Hardware
from groundup.planning.job import FP32_BYTES, Job, Part, parts
from groundup.planning.links import together

BACKWARD = 2.0
"""FLOPs of a backward pass over those of the forward pass: each product has two, for the gradient of either factor."""

COPIES = ("data", "context")
"""Axes along which parameters are copies, whose gradients are summed; along `expert`, those of no expert are too."""


@dataclass(frozen=True)
class Exchange:
    """Seconds of messages in one pass through a layer. All but those of the ring are waited for."""

    tensor: float = 0.0
    expert: float = 0.0
    ring: float = 0.0

    @property
    def sums(self) -> float:
        return self.tensor + self.expert


@dataclass(frozen=True)
class Unit:
    """Seconds of a layer, or of what is before or behind the layers, in one pass of one micro-batch.

    kind: "embed", "layer" or "head". attend: attention's part of the forward pass, beside which a ring turns.
    again: the messages of what is recomputed, None where nothing is. gather, reduce: of its parameters and gradients
    (shard). spread: its gradients' sum, once a step. hand: the new parameters, which one rank updates for all (ZeRO).
    """

    kind: str
    forward: float
    attend: float
    out: Exchange
    back: Exchange
    again: Exchange | None
    gather: float
    reduce: float
    spread: float
    hand: float
    parameters: float

    @property
    def backward(self) -> float:
        """Of arithmetic, what is recomputed not counted."""
        return BACKWARD * self.forward


Chunk = Sequence[tuple[Unit, int]]
"""Units of a stage in order, and how often each comes."""


class Costs:
    """Seconds of messages of a plan on this hardware, whose micro-batches are `rows` rows.

    ValueError where the model cannot be divided so, and where ranks span machines of which it is not known what lies
    between them.
    """

    def __init__(self, plan: ParallelPlan, rows: int, job: Job, hardware: Hardware) -> None:
        self.plan, self.rows, self.job, self.hardware = plan, rows, job, hardware
        check(plan, job)
        self.parts = parts(job.model, plan.tensor)
        self.hidden = rows * job.seq / plan.context * job.model.d_model * job.itemsize

    def seconds(self, traffic: Iterable[Traffic], *axes: str) -> float:
        """Of these messages, in groups along `axes` (default: the axis of each)."""
        return sum(self.hardware.network.seconds(each, self._together(axes or (each.axis,))) for each in traffic)

    def _together(self, axes: Sequence[str]) -> int:
        sizes = [(getattr(self.plan, axis), axis in axes) for axis in reversed(AXES)]
        return together(sizes, self.hardware.network.per_machine)

    @property
    def send(self) -> float:
        """Of one micro-batch's activations to the next stage."""
        return self.seconds([Traffic("pipeline", "send", 2, 1, self.hidden)]) if self.plan.pipeline > 1 else 0.0

    def chunks(self) -> list[Chunk]:
        """The stages of the chain, in order: layers in equal numbers, as `split_blocks` cuts them."""
        count, layers = self.plan.pipeline * self.plan.chunks, self.job.model.num_layers
        bounds = [layers * i // count for i in range(count + 1)]
        layer, embed, head = (self.unit(kind) for kind in ("layer", "embed", "head"))
        stages = [[(layer, end - start)] for start, end in zip(bounds, bounds[1:], strict=False)]
        return [
            [*([(embed, 1)] if i == 0 else []), *stage, *([(head, 1)] if i == count - 1 else [])]
            for i, stage in enumerate(stages)
        ]

    def unit(self, kind: str) -> Unit:
        part: Part = getattr(self.parts, kind)
        plan, speed, is_layer = self.plan, self.hardware.speed, kind == "layer"
        share, again = self.rows / plan.context, is_layer and plan.recompute
        cut = plan.tensor if is_layer else 1
        out = self._exchange(part, 1, 0) if is_layer else Exchange()
        forward = speed.seconds(share * part.flops, cut) if part.flops else 0.0
        gather, reduce = self._sharded(part)
        spread, hand = self._spread(part)
        return Unit(
            kind=kind,
            forward=forward,
            attend=forward * part.attention / part.flops if part.flops else 0.0,
            out=out,
            back=self._exchange(part, 0, 1) if is_layer else Exchange(),
            again=self._repeated(part) if again else None,
            gather=gather,
            reduce=reduce,
            spread=spread,
            hand=hand,
            parameters=self._kept(part),
        )

    def _exchange(self, part: Part, forward: int, backward: int) -> Exchange:
        """Of one layer and pass: half of tensor's and expert's messages go each way."""
        plan, half = self.plan, 0.5
        tensor = communication.tensor_parallel(self.hidden, plan.tensor, 1, 1, sequence=plan.sequence)
        pairs = part.pairs * self.rows / plan.context * self.job.model.d_model * self.job.itemsize
        expert = communication.expert_parallel(pairs, plan.expert, 1, 1)
        return Exchange(half * self.seconds(tensor), half * self.seconds(expert), self._ring(part, forward, backward))

    def _ring(self, part: Part, forward: int, backward: int) -> float:
        """Keys and values on the way there; on the way back those again (ring), and their gradients."""
        plan = self.plan
        kv = part.kv * self.rows / plan.context
        if plan.method == "gather":
            both = communication.context_gather(kv * self.job.itemsize, plan.context, 1, 1)
            chosen = [t for t in both if (t.operation == "all-gather") == bool(forward)]
            return self.seconds(chosen)
        turns = communication.context_ring(kv * self.job.itemsize, kv * FP32_BYTES, plan.context, 1, 1)
        if not turns:
            return 0.0
        shares, gradients = turns
        return 0.5 * self.seconds([shares]) + backward * self.seconds([gradients])

    def _repeated(self, part: Part) -> Exchange:
        """What recomputing sends again."""
        plan = self.plan
        plain = communication.tensor_parallel(self.hidden, plan.tensor, 1, 1, sequence=plan.sequence)
        twice = communication.tensor_parallel(self.hidden, plan.tensor, 1, 1, recompute=True, sequence=plan.sequence)
        pairs = part.pairs * self.rows / plan.context * self.job.model.d_model * self.job.itemsize
        expert = 0.5 * self.seconds(communication.expert_parallel(pairs, plan.expert, 1, 1))
        return Exchange(self.seconds(twice) - self.seconds(plain), expert, self._ring(part, 1, 0))

    def _kept(self, part: Part) -> float:
        """Parameters that a rank of this unit has whole while it computes."""
        return part.parameters - part.expert * (1 - 1 / self.plan.expert)

    def _sharded(self, part: Part) -> tuple[float, float]:
        plan, kept = self.plan, self._kept(part)
        traffic = communication.sharded(self.job.itemsize * kept, FP32_BYTES * kept, plan.shard, 1, 1)
        if not traffic or not kept:
            return 0.0, 0.0
        gathers, reduces = traffic
        return 0.5 * self.seconds([gathers]), self.seconds([reduces])

    def _spread(self, part: Part) -> tuple[float, float]:
        """Of the gradients of what a rank keeps, among those that have the same; and of the new parameters (ZeRO)."""
        plan, spread, hand = self.plan, 0.0, 0.0
        common, dealt = part.parameters - part.expert, part.expert / plan.expert
        for count, axes in ((common, (*COPIES, "expert")), (dealt, COPIES)):
            size = FP32_BYTES * count / plan.shard
            ranks = prod(getattr(plan, axis) for axis in axes)
            if count and plan.zero:
                gradients, parameters = communication.zero(size, size, ranks)
                spread += self.seconds([gradients], *axes)
                hand += self.seconds([parameters], *axes)
            elif count:
                spread += self.seconds(communication.data_parallel(size, ranks), *axes)
        return spread, hand


def check(plan: ParallelPlan, job: Job) -> None:
    """ValueError where the model cannot be divided as the plan says, naming the axis."""
    layers, stages = job.model.num_layers, plan.pipeline * plan.chunks
    faults = {
        f"pipeline={plan.pipeline} chunks={plan.chunks}: {layers} layers": stages > layers,
        f"tensor={plan.tensor}: heads or channels": not job.can_cut(plan.tensor),
        f"context={plan.context}: rows of {job.seq} tokens": plan.context > 1 and job.seq % (2 * plan.context) != 0,
        f"context={plan.context}: recurrences": plan.context > 1 and not job.attends,
        f"expert={plan.expert}: {job.experts} experts": job.experts % plan.expert != 0,
    }
    if fault := next((what for what, wrong in faults.items() if wrong), None):
        raise ValueError(f"plan: {fault} cannot be divided so")
