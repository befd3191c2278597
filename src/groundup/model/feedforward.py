"""The position-wise layer: a plain MLP or a gated one (the GLU family)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.config import nearest
from groundup.model.linear import Linear
from groundup.model.position import Layout

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "relu2", "identity"]


@dataclass(frozen=True)
class MLPConfig:
    """Gated with silu is SwiGLU, gelu GEGLU, relu ReGLU, sigmoid GLU, identity bilinear.

    A gated layer has three matrices, so d_ff = 8/3 d_model costs what 4 d_model does without a gate.
    """

    d_ff: int
    gated: bool = True
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.d_ff < 1:
            raise ValueError(f"feed-forward: d_ff={self.d_ff}; expected at least 1")
        if self.activation not in kernels.ACTIVATIONS:
            known = nearest(self.activation, kernels.ACTIVATIONS)
            raise ValueError(f"feed-forward: activation {self.activation!r} is unknown{known}")


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)) when gated, down(activation(up(x))) otherwise."""

    shard: ClassVar[dict[str, str]] = {"gate": "col", "up": "col", "down": "row"}
    residual_outputs: ClassVar[tuple[str, ...]] = ("down",)

    def __init__(self, config: MLPConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(d_model, config.d_ff, config.bias) if config.gated else None
        self.up = Linear(d_model, config.d_ff, config.bias)
        self.down = Linear(config.d_ff, d_model, config.bias)

    def forward(
        self, x: Float[Tensor, "*batch d_model"], layout: Layout | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        if self.gate is None:
            return self.down(kernels.activate(self.up(x), self.config.activation))
        return self.down(kernels.gated(self.gate(x), self.up(x), self.config.activation))
