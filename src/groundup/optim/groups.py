"""Which parameter decays, and which goes to Muon: one visible table."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

Named = Sequence[tuple[str, nn.Parameter]]
"""A model's parameters, or a rank's parts of them, under their names in the model."""

Kind = Literal["matrix", "head", "embedding", "router", "vector"]

# Decay pulls a matrix towards zero and so limits the norm of its output. Norm gains and biases are few and
# their zero means nothing; a rare token's embedding row would shrink between its occurrences.
DECAYS: dict[Kind, bool] = {"matrix": True, "head": True, "embedding": False, "router": True, "vector": False}

# Muon orthogonalises maps between hidden spaces. The two ends talk to a one-hot vocabulary axis, for which
# a steady per-coordinate scale (AdamW) is the right geometry; so do routers to a one-hot axis of experts. A stack
# of experts is a matrix each: Muon orthogonalises over the last two axes. A convolution that works on each channel by
# itself is some numbers per channel, and no map between channels.
TO_MUON: dict[Kind, bool] = {"matrix": True, "head": False, "embedding": False, "router": False, "vector": False}

_EMBEDDINGS = ("embed", "positions")


def kind(name: str, param: Tensor) -> Kind:
    """What a parameter is, from its name in the model and its number of axes."""
    parts = name.split(".")
    if param.ndim < 2 or parts[-1] == "bias" or any(part.endswith("norm") or part == "conv" for part in parts):
        return "vector"
    if any(part in _EMBEDDINGS for part in parts[:-1]):
        return "embedding"
    if "router" in parts[:-1]:
        return "router"
    return "head" if "head" in parts[:-1] else "matrix"


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: `decay` (matrices and the head) and `no_decay` (embeddings, norms, biases).

    A tied head is one parameter under its embedding's name, so it does not decay.
    """
    decayed, plain = [], []
    for name, param in _trainable(model):
        (decayed if DECAYS[kind(name, param)] else plain).append(param)
    table = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decay"},
        {"params": plain, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in table if group["params"]]


def split_for_muon(model: nn.Module | Named) -> tuple[list[nn.Parameter], list[tuple[str, nn.Parameter]]]:
    """(hidden matrices for Muon, the named rest for AdamW)."""
    matrices = [p for name, p in _trainable(model) if TO_MUON[kind(name, p)]]
    rest = [(name, p) for name, p in _trainable(model) if not TO_MUON[kind(name, p)]]
    return matrices, rest


def describe(model: nn.Module) -> str:
    """The table as text: one line per parameter with its shape, kind, and what is done to it."""
    width = max((len(name) for name, _ in _trainable(model)), default=0)
    lines = []
    for name, p in _trainable(model):
        shape, what = "x".join(map(str, p.shape)) or "scalar", kind(name, p)
        decay, owner = "decay" if DECAYS[what] else "-", "muon" if TO_MUON[what] else "adamw"
        lines.append(f"{name:<{width}}  {shape:>12}  {what:<9}  {decay:<5}  {owner}")
    return "\n".join(lines)


def _trainable(model: nn.Module | Named) -> list[tuple[str, nn.Parameter]]:
    named = model.named_parameters() if isinstance(model, nn.Module) else model
    return [(name, p) for name, p in named if p.requires_grad]
