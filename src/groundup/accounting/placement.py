"""How a model lies on several devices, and what each way costs in a step beside arithmetic: messages and the update.

Data parallelism gives every device other rows of the batch; sharding (ZeRO-3) lets each keep a part of the training
state only, and gather weights when they are needed. Tensor parallelism (`parallel.tensor`) cuts heads and feed-forward
channels instead: devices of a group work on the same rows. Bytes are those that each device sends, of a ring:

    copies          4 P 2 (D-1)/D                       a step      fp32 gradients, all-reduced
    shards          (2 + 2 + 4) P (D-1)/D               a pass      bf16 weights gathered for forward and backward,
                                                                    fp32 gradients reduced and scattered
    cut by T        4 L x 2 tokens d_model 2 (T-1)/T    a pass      bf16 outputs forward, their inputs' gradients back;
                                                                    5 L where the forward pass is done again

P: parameters that a device computes with, D: data-parallel ranks, L: layers. The formulae are those of
`communication`. Each message costs the link's latency besides. Nothing overlaps with arithmetic here, so this is an
upper bound; `planning/` has the plan of all axes, with what overlaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from groundup.accounting.communication import Traffic, data_parallel, sharded, tensor_parallel
from groundup.accounting.devices import Measured
from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig

BF16_BYTES, FP32_BYTES = 2, 4

UPDATE_BYTES = 28
"""Per parameter kept: AdamW reads fp32 weights, gradients and two moments, and writes all but the gradients."""


@dataclass(frozen=True)
class Placement:
    """`tensor` devices share each layer, `data` groups of them share the batch, and `sharding` ("none" or "full") says
    whether each of these keeps all of its training state or a part."""

    tensor: int
    data: int
    sharding: str


def placements(model: ModelConfig, count: int) -> Iterator[Placement]:
    """All for so many devices: tensor parallelism by divisors that divide heads and channels, too."""
    for tensor in (t for t in range(1, count + 1) if count % t == 0 and can_cut(model, t)):
        for sharding in ("none", "full") if tensor < count else ("none",):
            yield Placement(tensor, count // tensor, sharding)


def can_cut(model: ModelConfig, tensor: int) -> bool:
    """Whether every layer is attention and a feed-forward layer that so many devices can share evenly."""
    return tensor == 1 or all(
        isinstance(block.mixer, AttentionConfig)
        and isinstance(block.ffn, MLPConfig)
        and block.mixer.num_heads % tensor == block.mixer.num_kv_heads % tensor == block.ffn.d_ff % tensor == 0
        for block in model.blocks
    )


def cut(model: ModelConfig, tensor: int) -> ModelConfig:
    """What one device of a tensor-parallel group computes: a share of heads and channels, embeddings and head whole."""
    if tensor == 1:
        return model
    return replace(model, blocks=tuple(_cut_block(block, tensor) for block in model.blocks))


def _cut_block(block: BlockConfig, tensor: int) -> BlockConfig:
    mixer, ffn = block.mixer, block.ffn
    assert isinstance(mixer, AttentionConfig) and isinstance(ffn, MLPConfig), "can_cut says which models can be cut"
    heads, kv_heads = mixer.num_heads // tensor, mixer.num_kv_heads // tensor
    return replace(
        block,
        mixer=replace(mixer, num_heads=heads, num_kv_heads=kv_heads),
        ffn=replace(ffn, d_ff=ffn.d_ff // tensor),
    )


def communication_seconds(
    way: Placement, model: ModelConfig, parameters: int, rows: int, passes: int, recompute: bool, link: Measured
) -> float:
    """Of one step of `passes` passes over `rows` rows on each device; `parameters` are those it computes with.

    0 for one device. ValueError where the link was not measured.
    """
    if way.tensor * way.data == 1:
        return 0.0
    if link.link_bandwidth is None or link.link_latency is None:
        raise ValueError("the time of messages needs a measured link: groundup doctor --links --save")
    each = BF16_BYTES * rows * model.context_length * model.d_model
    traffic = [
        *_data_parallel(way, model, parameters, passes),
        *tensor_parallel(each, way.tensor, model.num_layers, passes, recompute),
    ]
    return sum(t.count * link.link_latency + t.sent / link.link_bandwidth for t in traffic)


def _data_parallel(way: Placement, model: ModelConfig, parameters: int, passes: int) -> list[Traffic]:
    if way.sharding == "none":
        return data_parallel(FP32_BYTES * parameters, way.data)
    return sharded(BF16_BYTES * parameters, FP32_BYTES * parameters, way.data, model.num_layers, passes)


def update_seconds(way: Placement, parameters: int, bandwidth: float) -> float:
    """Of AdamW's pass through what a device keeps, at the rate of its memory in bytes per second."""
    return UPDATE_BYTES * parameters / (way.data if way.sharding == "full" else 1) / bandwidth
