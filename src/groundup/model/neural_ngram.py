"""The neural n-gram as a mixer: the first neural language model, which sees the last few tokens and no others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.position import Layout, Rope
from groundup.model.recurrence import check_sizes, first_tokens, last_inputs, real_tokens, silenced


@dataclass(frozen=True)
class NeuralNgramConfig:
    """The next token from the `order` - 1 before it, through `d_hidden` tanh units; `direct` adds the linear path."""

    order: int = 5
    d_hidden: int = 128
    direct: bool = False

    def __post_init__(self) -> None:
        check_sizes("neural n-gram", self, "d_hidden")
        if self.order < 2:
            raise ValueError(f"neural n-gram: order={self.order}; expected at least 2, as order - 1 tokens are seen")

    @property
    def reach(self) -> int:
        """Tokens that are seen, the newest included."""
        return self.order - 1

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """None: every place in the window has weights of its own."""
        return []


class NeuralNgram(nn.Module):
    r"""wo tanh(wh [x_t; x_{t-1}; ...; x_{t-n+2}]), and with `direct` a linear map of the same window beside it.

    Places before a document's beginning are zeros. As the only block (placement "none", no feed-forward layer, no
    final norm) this is the model of Bengio et al. 2003 (JMLR 3, pages 1137-1155), section 2, equation 1,

        y = b + W x + U tanh(d + H x),

    with H = wh, d its bias, x the window's embeddings, the newest first, and, because the head E is applied after the
    residual sum, U = E wo and W = E ([I 0 ... 0] + direct): factors through d_model channels, where theirs are whole
    matrices, and without b. The newest token therefore always has a direct connection.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("wo", "direct")

    def __init__(self, config: NeuralNgramConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.wh = Linear(config.reach * d_model, config.d_hidden, bias=True)
        self.wo = Linear(config.d_hidden, d_model)
        self.direct = Linear(config.reach * d_model, d_model) if config.direct else None

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        real = real_tokens(layout)
        x = silenced(x, real)  # padding on the left is then the zeros before a beginning
        (before,) = cache.state(x.new_empty(x.shape[0], self.config.reach - 1, x.shape[2]))
        seen = windows(x, before, first_tokens(layout))
        cache.keep(layout.positions, last_inputs(x, before, real))
        out = self.wo(torch.tanh(self.wh(seen)))
        return out if self.direct is None else out + self.direct(seen)


def windows(
    x: Float[Tensor, "batch seq d"], before: Float[Tensor, "batch earlier d"], resets: Bool[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch seq window"]:
    """Each token's vector and those of the tokens before it, newest first, one after the other.

    `before` are the inputs before the first, as many as a window sees besides the newest. With `resets`, a token and
    those after it see zeros in place of what lies before it.
    """
    seq, earlier = x.shape[1], before.shape[1]
    inputs = torch.cat([before.to(x.dtype), x], 1)
    taps = [inputs[:, i : i + seq] for i in range(earlier, -1, -1)]
    if resets is not None:
        document = resets.cumsum(1)
        then = F.pad(document, (earlier, 0))
        same = [then[:, i : i + seq] == document for i in range(earlier, -1, -1)]
        taps = [tap.masked_fill(~kept[..., None], 0.0) for tap, kept in zip(taps, same, strict=True)]
    return torch.cat(taps, -1)
