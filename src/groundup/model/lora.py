"""LoRA: a trained low-rank change beside frozen weights, on any linear map that a name pattern chooses."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.config import near, plural
from groundup.model.linear import Linear, truncated_normal_

# Read by their weight and never called (the head in the fused loss), so an adapter beside the weight would be passed
# over without a word. Modules name those of their own: latent attention's absorbed form, an LSTM's recurrence.
READ_AS_MATRIX = ("head",)
SHOWN = 4


@dataclass(frozen=True)
class LoRAConfig:
    """Rank `r`, scale `alpha` / r, and patterns of module paths, such as `blocks.*.mixer.w[qv]`.

    `dropout` is the share of the adapter's inputs that training sets to zero; the base sees all of them.
    """

    r: int = 8
    alpha: float = 16.0
    patterns: tuple[str, ...] = ("blocks.*.mixer.w[qv]",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"LoRA: r={self.r}; expected a rank of at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"LoRA: alpha={self.alpha}; expected a positive number, such as r or 2 r")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoRA: dropout={self.dropout}; expected a share of inputs, from 0 to below 1")
        if not self.patterns:
            raise ValueError("LoRA: no patterns; expected at least one, such as 'blocks.*.mixer.w[qv]'")


class LoRALinear(Linear):
    r"""y = W x + b + (alpha / r) B A x, with W and b frozen, A of shape (r, d_in) and B of shape (d_out, r).

    B is zero at first, so that step 0 is the base to the bit; A is normal with standard deviation 1 / sqrt(d_in).
    While `merged`, W holds the whole sum and the adapter rests. Names of the base's parameters stay as they were.

    Hu et al. 2021, section 4.1 (arXiv:2106.09685).
    """

    def __init__(self, base: Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = base.weight, base.bias
        d_out, d_in = base.weight.shape
        self.scale, self.dropout, self.merged = config.alpha / config.r, config.dropout, False
        device = base.weight.device
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        self.lora_a = nn.Parameter(torch.empty(config.r, d_in, device=device, dtype=dtype))
        self.lora_b = nn.Parameter(torch.zeros(d_out, config.r, device=device, dtype=dtype))

    def reset_adapter(self, generator: torch.Generator | None = None) -> None:
        """A drawn anew and B zero: no change to the base."""
        truncated_normal_(self.lora_a, self.lora_a.shape[1] ** -0.5, generator)
        nn.init.zeros_(self.lora_b)

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        super().reset_weights(generator, scale)
        self.reset_adapter(generator)

    def change(self) -> Float[Tensor, "d_out d_in"]:
        """(alpha / r) B A: what the adapter adds to W."""
        return self.scale * (self.lora_b @ self.lora_a)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        base = super().forward(x)
        if self.merged:
            return base
        seen = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(seen, self.lora_a.to(x.dtype))
        return base + self.scale * F.linear(low, self.lora_b.to(x.dtype))

    @property
    def shard(self) -> dict[str, str]:
        """Tensor parallelism asks every module for its table. Cut W alone, and B A would be of another shape."""
        raise ValueError(
            "LoRA: tensor parallelism cuts no adapters; `fold` them into the weights first, or train them on one rank"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.lora_a.shape[0]}, scale={self.scale:g}"


def linear_maps(model: nn.Module) -> dict[str, Linear]:
    """Path -> every linear map that can have an adapter."""
    passed_over = read_as_matrices(model)
    return {
        path: module for path, module in model.named_modules() if isinstance(module, Linear) and path not in passed_over
    }


def read_as_matrices(model: nn.Module) -> set[str]:
    """Paths of the linear maps that are read by their weight and never called."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name in (*READ_AS_MATRIX, *getattr(module, "read_as_matrix", ()))
        if hasattr(module, name)
    }


def add_lora(
    model: nn.Module, config: LoRAConfig, *, seed: int = 0, base_dtype: torch.dtype | None = None
) -> nn.Module:
    """Freeze `model` and put an adapter beside each linear map that a pattern matches, in place; returns `model`.

    Build optimizers afterwards. `base_dtype` (such as bfloat16) stores the frozen matrices in fewer bytes; the
    adapters, their gradients and optimizer states stay in float32. The head, latent attention's `wkv_up` and an
    LSTM's `wh` are read as matrices and cannot have adapters.

    Raises ValueError for a pattern that matches nothing (with the nearest paths), a model that has adapters, and
    one that is cut by tensor parallelism.
    """
    chosen = matching(model, config.patterns)
    _check_free(model, chosen)
    for p in model.parameters():
        p.requires_grad_(False)
        if base_dtype is not None and p.ndim > 1:
            p.data = p.data.to(base_dtype)
    for path, linear in chosen.items():
        adapter = LoRALinear(linear, config)
        adapter.reset_adapter(_generator(seed, path))
        model.set_submodule(path, adapter.train(linear.training))
    return model


def matching(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, Linear]:
    """Path -> linear map, for those that any of the patterns matches; every pattern has to match one."""
    maps = linear_maps(model)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in maps):
            if any(fnmatchcase(path, pattern) for path in read_as_matrices(model)):
                why = ": it is read as a matrix and never called, so an adapter beside it would do nothing"
            else:
                why = _nearest_paths(pattern, maps)
            raise ValueError(f"LoRA: pattern {pattern!r} matches no linear map{why}")
    return {path: linear for path, linear in maps.items() if any(fnmatchcase(path, p) for p in patterns)}


def _nearest_paths(pattern: str, maps: dict[str, Linear]) -> str:
    general = list(dict.fromkeys(_any_layer(path) for path in maps))
    shown = ", ".join(general[:SHOWN]) + (", ..." if len(general) > SHOWN else "")
    return near(_any_layer(pattern), general, SHOWN) or f"; there are {shown or 'none in this model'}"


def _any_layer(path: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in path.split("."))


def _check_free(model: nn.Module, chosen: dict[str, Linear]) -> None:
    if any(adapters(model)):
        raise ValueError("LoRA: the model has adapters already; `fold` or `remove` them first")
    cut = [path for path, linear in chosen.items() if hasattr(linear, "cut_dims")]
    if cut:
        raise ValueError(f"LoRA: {cut[0]} is cut by tensor parallelism; adapters are for whole models")


def _generator(seed: int, path: str) -> torch.Generator:
    digest = hashlib.sha256(f"lora {seed} {path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(path, module) of every adapter."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoRALinear))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W <- W + (alpha / r) B A everywhere, in place: the same logits without the adapters' cost.

    The adapters stay, at rest and without gradients, until `unmerge`. A base in 16 bits rounds the sum to its type.
    """
    for _, adapter in adapters(model):
        if not adapter.merged:
            adapter.weight.add_(adapter.change().to(adapter.weight.dtype))
            _set_merged(adapter, True)


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Take the change out again; W comes back up to rounding."""
    for _, adapter in adapters(model):
        if adapter.merged:
            adapter.weight.sub_(adapter.change().to(adapter.weight.dtype))
            _set_merged(adapter, False)


def _set_merged(adapter: LoRALinear, merged: bool) -> None:
    adapter.merged = merged
    adapter.lora_a.requires_grad_(not merged)
    adapter.lora_b.requires_grad_(not merged)


def fold(model: nn.Module) -> nn.Module:
    """`merge` for good: a plain model again, all of it trainable, that can be saved, cut or adapted anew."""
    merge(model)
    return _replace_adapters(model)


def remove(model: nn.Module) -> nn.Module:
    """Take the adapters away, and with them what they learnt; the base is trainable again."""
    unmerge(model)
    return _replace_adapters(model)


def _replace_adapters(model: nn.Module) -> nn.Module:
    for path, adapter in list(adapters(model)):
        with torch.device("meta"):
            plain = Linear(adapter.weight.shape[1], adapter.weight.shape[0])
        plain.weight, plain.bias = adapter.weight, adapter.bias
        model.set_submodule(path, plain.train(adapter.training))
    return model.requires_grad_(True)


class Trained(NamedTuple):
    """Numbers of parameters: those that get a gradient, and all."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {plural(self.total, 'parameter')} are trained ({share:.2%})"


def count_trained(model: nn.Module) -> Trained:
    """Trainable and all parameters; on a model of the meta device this costs no memory."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Trained(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))
