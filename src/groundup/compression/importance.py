"""How much each weight, channel, head and layer matters: from the weights alone, or from calibration text.

    weights          |w|                                      nothing but the model
    activations      |w_ij| * ||x_j||                         what input j was on the text ("Wanda")
    gradients        | sum of w * dL/dw over the part |       how the loss answers to the part's output being scaled

A part is scored where it is read: channel j of a feed-forward layer by column j of `down`, a head by its columns of
`wo`. There the gradient form is exactly |dL/dm| for a factor m on the part's output at m = 1, and the activation form
the norm of what the part would take away if inputs were orthogonal.

Wanda: Sun et al. 2023 (arXiv:2306.11695), eq. 1. Gradients: Michel et al. 2019 (arXiv:1905.10650), section 4.1.
Layers by how far they turn the residual stream: Men et al. 2024 (arXiv:2403.03853), eq. 2.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.config import nearest
from groundup.data.batch import Batch, to_device
from groundup.model import AttentionConfig, MLPConfig, Transformer
from groundup.model.linear import Linear
from groundup.model.products import block_layers
from groundup.train.objectives import next_token

KINDS = ("weights", "activations", "gradients")


@dataclass(frozen=True)
class Importance:
    """Scores of the parts of one layer: `heads` (num_heads,), `channels` (d_ff,), and of the layer as a whole.

    Heads or channels are empty where the layer has no attention, or no dense feed-forward layer.
    """

    heads: Float[Tensor, " heads"]
    channels: Float[Tensor, " d_ff"]
    layer: float


@torch.no_grad()
def input_norms(model: Transformer, batches: Iterable[Batch]) -> dict[str, Float[Tensor, " d_in"]]:
    """Path -> ||x_j||_2 of each input of each linear layer of the blocks, over all tokens of the batches."""
    layers = block_layers(model)
    squares = {path: torch.zeros(layer.weight.shape[1], device=model.device) for path, layer in layers.items()}

    def adding(path: str) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[path] += inputs[0].float().flatten(0, -2).square().sum(0)

        return add

    with _in_eval(model), _hooks(layer.register_forward_pre_hook(adding(p)) for p, layer in layers.items()):
        for tokens in _inputs(model, batches):
            model.hidden(tokens)
    return {path: square.sqrt() for path, square in squares.items()}


def weight_scores(
    model: Transformer, by: str = "weights", batches: Iterable[Batch] = ()
) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """Path -> a score for each weight of the linear layers of blocks: |w|, or Wanda's |w_ij| * ||x_j||.

    ValueError for activations without batches.
    """
    if by not in ("weights", "activations"):
        raise ValueError(f"prune: by={by!r}{nearest(by, ('weights', 'activations'))}")
    layers = block_layers(model)
    if by == "weights":
        return {path: layer.weight.detach().abs() for path, layer in layers.items()}
    norms = input_norms(model, _needed(batches, by))
    return {path: layer.weight.detach().abs() * norms[path] for path, layer in layers.items()}


def part_scores(model: Transformer, by: str = "weights", batches: Iterable[Batch] = ()) -> list[Importance]:
    """The scores of each layer's parts, from the first layer to the last.

    ValueError for an unknown `by`, and for activations or gradients without batches of calibration text.
    """
    if by not in KINDS:
        raise ValueError(f"prune: by={by!r}{nearest(by, KINDS)}")
    layers = block_layers(model)
    if by == "weights":
        columns = {path: layer.weight.detach().float().norm(dim=0) for path, layer in layers.items()}
        return [_importance(model, i, columns, None) for i in range(model.config.num_layers)]
    batches = _needed(batches, by)
    if by == "gradients":
        columns = _gate_gradients(model, layers, batches)
        return [_importance(model, i, columns, None, signed=True) for i in range(model.config.num_layers)]
    norms = input_norms(model, batches)
    columns = {path: layer.weight.detach().float().norm(dim=0) * norms[path] for path, layer in layers.items()}
    turned = block_influence(model, batches)
    return [_importance(model, i, columns, turned[i]) for i in range(model.config.num_layers)]


@torch.no_grad()
def block_influence(model: Transformer, batches: Iterable[Batch]) -> list[float]:
    """1 - the mean cosine between what enters and what leaves each block: 0 for one that only rescales."""
    sums = [torch.zeros((), dtype=torch.float64, device=model.device) for _ in model.blocks]

    def adding(total: Tensor) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            total.add_(F.cosine_similarity(inputs[0].float(), output.float(), dim=-1).double().sum())

        return add

    tokens = 0
    pairs = zip(model.blocks, sums, strict=True)
    with _in_eval(model), _hooks(block.register_forward_hook(adding(total)) for block, total in pairs):
        for inputs in _inputs(model, batches):
            model.hidden(inputs)
            tokens += inputs.numel()
    return [1 - float(total) / tokens for total in sums]


def _gate_gradients(model: Transformer, layers: dict[str, Linear], batches: list[Batch]) -> dict[str, Tensor]:
    """Path -> (batches, d_in): sum over outputs of w * dL/dw, the derivative by a factor on each input."""
    found: dict[str, list[Tensor]] = {path: [] for path in layers}
    weights = [layer.weight for layer in layers.values()]
    with _in_eval(model):
        for batch in batches:
            loss = next_token(model, to_device(batch, model.device))
            gradients = torch.autograd.grad(loss.total / loss.weight, weights)
            for path, weight, gradient in zip(layers, weights, gradients, strict=True):
                found[path].append((weight.detach() * gradient).float().sum(0))
    return {path: torch.stack(rows) for path, rows in found.items()}


def _importance(
    model: Transformer, index: int, columns: dict[str, Tensor], turned: float | None, signed: bool = False
) -> Importance:
    """Columns of `wo` and `down` put together to heads, channels, and the layer."""
    block = model.config.block(index)
    columns = {path: scores.cpu() for path, scores in columns.items()}
    heads = channels = torch.empty(0)
    if isinstance(block.mixer, AttentionConfig):
        by_head = columns[f"blocks.{index}.mixer.wo"].unflatten(-1, (block.mixer.num_heads, -1))
        heads = by_head.sum(-1).abs().mean(0) if signed else by_head.norm(dim=-1)
    if isinstance(block.ffn, MLPConfig):
        channels = columns[f"blocks.{index}.ffn.down"]
        channels = channels.abs().mean(0) if signed else channels
    if turned is not None:
        return Importance(heads, channels, turned)
    paths = [p for p in (f"blocks.{index}.mixer.wo", f"blocks.{index}.ffn.down") if p in columns]
    whole = [columns[p].sum(-1).abs().mean() if signed else columns[p].norm() for p in paths]
    return Importance(heads, channels, float(sum(whole)))


def _needed(batches: Iterable[Batch], by: str) -> list[Batch]:
    found = list(batches)
    if not found:
        raise ValueError(f"prune: by={by!r} looks at calibration text; give batches of it, or by='weights'")
    return found


def _inputs(model: Transformer, batches: Iterable[Batch]) -> Iterator[Tensor]:
    return (batch["tokens"][:, :-1].to(model.device) for batch in batches)


@contextlib.contextmanager
def _hooks(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


@contextlib.contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
