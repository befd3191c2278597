"""What the compiled decode step does not cover, said with a reason; torch runs it then."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.model import (
    AttentionConfig,
    GatedDeltaConfig,
    GatedLinearConfig,
    LatentAttentionConfig,
    Mamba2Config,
    MLPConfig,
    Transformer,
)
from groundup.model.attention import Sinks
from groundup.model.delta import GatedDelta
from groundup.model.linear import Linear
from groundup.model.mamba import Mamba2
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.recurrence import GatedNorm, ShortConvolution

KEYS = 16  # that attention takes at a time, all of one page
MIXERS = (AttentionConfig, LatentAttentionConfig, Mamba2Config, GatedDeltaConfig, GatedLinearConfig)
KNOWN = (Linear, RMSNorm, LayerNorm, Sinks, Mamba2, GatedDelta, ShortConvolution, GatedNorm)


@dataclass(frozen=True)
class Refusal:
    """Why a model is left to torch."""

    reason: str


def refusal(model: Transformer, streams: Sequence[Sequence[Tensor]], page_size: int) -> Refusal | None:
    """What stands against a compiled step for this model over these pages, or None."""
    if page_size % KEYS:
        return Refusal(f"pages have {page_size} tokens, and the compiled step reads {KEYS} at once")
    if model.device.type != "cpu":
        return Refusal(f"the compiled decode step runs on a CPU, and the model is on {model.device}")
    for layer in range(model.config.num_layers):
        block = model.config.block(layer)
        if not isinstance(block.mixer, MIXERS):
            known = ", ".join(mixer.__name__ for mixer in MIXERS)
            return Refusal(f"layer {layer} has {type(block.mixer).__name__}; the compiled step knows {known}")
        if block.ffn is not None and not isinstance(block.ffn, MLPConfig):
            return Refusal(
                f"layer {layer} has {type(block.ffn).__name__}, and the compiled step knows dense layers only"
            )
        if block.cross is not None or (isinstance(block.mixer, AttentionConfig) and not block.mixer.causal):
            return Refusal(f"layer {layer} looks ahead or at a source, which generating token by token does not")
        if any(stream.dtype not in (torch.float32, torch.bfloat16) for stream in streams[layer]):
            return Refusal(f"layer {layer} remembers {streams[layer][0].dtype}; expected float32 or bfloat16")
    for name, module in model.blocks.named_modules():
        if any(True for _ in module.parameters(recurse=False)) and type(module) not in KNOWN:
            return Refusal(f"blocks.{name} is a {type(module).__name__}, which the compiled step does not know")
    return None
