"""What a plan is for: a model, the rows of a step, and in which types; and the FLOPs and parameters of its parts."""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch

from groundup.accounting.flops import ledger
from groundup.accounting.params import count_parameters
from groundup.accounting.placement import can_cut, cut
from groundup.model import AttentionConfig, ModelConfig, MoEConfig

FP32_BYTES = 4


@dataclass(frozen=True)
class Job:
    """Training of `model` on `rows` rows of its context length in a step, computed and sent in `dtype`. Parameters,
    gradients and both moments of AdamW are fp32."""

    model: ModelConfig
    rows: int
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"plan: {self.rows} rows in a step; expected at least 1")

    @property
    def seq(self) -> int:
        return self.model.context_length

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with, and sent."""
        return self.dtype.itemsize

    @cached_property
    def experts(self) -> int:
        """What the experts of every mixture can be dealt over: their number, 1 where there are none."""
        counts = {block.ffn.num_experts for block in self.model.blocks if isinstance(block.ffn, MoEConfig)}
        return min(counts, default=1)

    @cached_property
    def attends(self) -> bool:
        """Whether all that looks at other tokens is attention, so that positions can be dealt out."""
        return all(isinstance(block.mixer, AttentionConfig) for block in self.model.blocks)

    def can_cut(self, tensor: int) -> bool:
        return can_cut(self.model, tensor)


@dataclass(frozen=True)
class Part:
    """One layer, or what is before and behind the layers, as one tensor-parallel rank has it.

    flops: of the forward pass of one row, those of attention's products with scores apart. parameters: `expert` are
    those of them that expert parallelism deals out. kv: numbers in keys and values of one row. pairs: of a token with
    an expert, in one row.
    """

    flops: float
    attention: float
    parameters: int
    expert: int = 0
    kv: float = 0.0
    pairs: float = 0.0


@dataclass(frozen=True)
class Parts:
    """The embedding (first stage), a layer (the mean of those that take turns), and final norm and head (last stage).
    `tied`: the head reads the embedding, which both stages then hold."""

    embed: Part
    layer: Part
    head: Part
    tied: bool


@cache
def parts(model: ModelConfig, tensor: int) -> Parts:
    """Of the model cut over so many ranks, embedding and head whole on each."""
    period = len(model.blocks)
    part = replace(cut(model, tensor), num_layers=period)
    rows = ledger(part, model.context_length)
    count = count_parameters(part)
    blocks = [row for row in rows if row.layer is not None and row.kind != "elementwise"]
    layer = Part(
        flops=sum(row.flops for row in blocks) / period,
        attention=sum(row.flops for row in blocks if row.kind == "attention") / period,
        parameters=count.blocks // period,
        expert=sum(_expert_parameters(block.ffn, model.d_model) for block in part.blocks) // period,
        kv=sum(_kv(block.mixer) for block in part.blocks) / period * model.context_length,
        pairs=sum(getattr(block.ffn, "top_k", 0) for block in part.blocks) / period * model.context_length,
    )
    head = next(row.flops for row in rows if row.name == "head")
    rest = count.total - count.blocks - count.embedding
    return Parts(Part(0.0, 0.0, count.embedding), layer, Part(head, 0.0, rest), model.tie_embeddings)


def _expert_parameters(ffn: object, d_model: int) -> int:
    return ffn.num_experts * (2 + ffn.gated) * d_model * ffn.d_ff if isinstance(ffn, MoEConfig) else 0


def _kv(mixer: object) -> int:
    return 2 * mixer.num_kv_heads * mixer.d_head if isinstance(mixer, AttentionConfig) else 0
