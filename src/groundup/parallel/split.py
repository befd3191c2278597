"""A model of embed -> blocks -> head as the stages of a pipeline, under the names that its parameters have."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

_NEEDED = ("blocks", "embed", "final_norm", "embed_tokens", "layout", "run_blocks", "logits")


def split_blocks(model: nn.Module, count: int) -> list[nn.Module]:
    """`count` stages that share the model's parameters: as equal numbers of its blocks as can be.

    The first stage maps tokens (batch, seq) to hidden states, the others hidden states to hidden states, and the last
    ends with the logits. Each is the model's own class with the rest taken out, so blocks keep their numbers, and a
    stage's `state_dict` is a part of the model's. With tied embeddings the table is in the first stage and in the last:
    give its name to the pipeline as `shared`. Each stage takes the keywords positions and segments as the model does
    (and tokens, for layers that look at them).

    Raises ValueError for a model that is not built of those parts, one with parts beside them, and for fewer blocks
    than stages.
    """
    whole: Any = model
    if lacking := [name for name in _NEEDED if not hasattr(model, name)]:
        raise ValueError(f"split_blocks: a {type(model).__name__} has no {', '.join(lacking)}; split it by hand")
    if getattr(model, "multi_token", None) is not None:
        raise ValueError("split_blocks: multi-token modules read the table and the last block; no stage has both")
    blocks = list(whole.blocks.named_children())
    if not 1 <= count <= len(blocks):
        raise ValueError(f"split_blocks: {len(blocks)} blocks cannot be {count} stages")
    bounds = [len(blocks) * i // count for i in range(count + 1)]
    return [
        _stage(whole, blocks[start:end], is_first=start == 0, is_last=end == len(blocks))
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]


def _stage(model: Any, blocks: list[tuple[str, nn.Module]], *, is_first: bool, is_last: bool) -> nn.Module:
    stage = copy.copy(model)
    for name, value in vars(model).items():  # its own hooks, too: what wraps one stage must not wrap the others
        if isinstance(value, dict):
            vars(stage)[name] = copy.copy(value)
    stage.blocks = nn.ModuleList()
    for name, block in blocks:
        stage.blocks.add_module(name, block)
    if not is_first:
        stage.positions = None
        if not is_last or model.head is not None:
            stage.embed = None
    if not is_last:
        stage.final_norm, stage.head = nn.Identity(), None

    def forward(
        x: Tensor,
        tokens: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        if tokens is None:
            tokens = x if is_first else torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        layout = stage.layout(tokens, positions, segments=segments)
        hidden = stage.run_blocks(stage.embed_tokens(x, layout) if is_first else x, layout)
        return stage.logits(stage.final_norm(hidden)) if is_last else hidden

    stage.forward = forward
    return stage
