"""Gated linear attention, and its relatives: RetNet with a fixed decay, linear attention without any."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.config import nearest
from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.position import Layout, Rope
from groundup.model.recurrence import GatedNorm, check_sizes, empty_state, first_tokens, real_tokens, silenced

DECAYS = ("channel", "head", "fixed", "none")
FEATURES = ("identity", "elu")

TEMPERATURE = 16.0
"""A learned decay is a sigmoid to the power 1/16, so that a state begins with a memory of some 23 tokens."""

LEAST_DENOMINATOR = 1e-6


@dataclass(frozen=True)
class GatedLinearConfig:
    """`num_heads` states of `d_key` x `d_value`, and how they decay.

    decay     channel: by the token, for each channel of the key, through `rank` channels (GLA)
              head:    by the token, one for each head
              fixed:   head h keeps 1 - 2^(-5 - h) per token (RetNet, here without its rotation)
              none:    nothing is forgotten (linear attention)
    features  of queries and keys: identity, or elu(x) + 1, which is positive, so that outputs are divided by the
              sum of their weights, as softmax attention's are

    `output_gate`: an RMSNorm on every head's output and a silu gate, as in GLA and RetNet.
    """

    num_heads: int
    d_key: int
    d_value: int
    decay: Literal["channel", "head", "fixed", "none"] = "channel"
    rank: int = 16
    features: Literal["identity", "elu"] = "identity"
    output_gate: bool = True

    def __post_init__(self) -> None:
        check_sizes("gated linear", self, "num_heads", "d_key", "d_value", "rank")
        for name, allowed in (("decay", DECAYS), ("features", FEATURES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"gated linear: {name} {value!r} is unknown{nearest(value, allowed)}")

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """None: the recurrence knows the order of its tokens."""
        return []


class GatedLinear(nn.Module):
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T and out_t = S_t^T q_t / sqrt(d_key) per head; see `kernels.gated_linear`.

    Yang et al. 2023, section 4.4 (arXiv:2312.06635); fixed decay: Sun et al. 2023, eq. 8 (arXiv:2307.08621); no
    decay and elu: Katharopoulos et al. 2020, eq. 7 and 18 to 20 (arXiv:2006.16236).
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: GatedLinearConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        d_keys, d_values = config.num_heads * config.d_key, config.num_heads * config.d_value
        self.wq, self.wk, self.wv = Linear(d_model, d_keys), Linear(d_model, d_keys), Linear(d_model, d_values)
        self.decay_down = Linear(d_model, config.rank) if config.decay == "channel" else None
        self.decay_up = None
        if config.decay in ("channel", "head"):
            outputs = d_keys if config.decay == "channel" else config.num_heads
            self.decay_up = Linear(config.rank if self.decay_down else d_model, outputs, bias=True)
        self.wz = Linear(d_model, d_values) if config.output_gate else None
        self.norm = GatedNorm(config.d_value, norm_eps) if config.output_gate else None
        self.wo = Linear(d_values, d_model)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config, real = self.config, real_tokens(layout)
        q, k, v = (w(x).unflatten(-1, (config.num_heads, -1)) for w in (self.wq, self.wk, self.wv))
        q, k = self._features(q) * config.d_key**-0.5, silenced(self._features(k), real)
        v, log_decay = silenced(v, real), silenced(self._log_decay(x), real)
        if config.features == "elu":
            # One more channel of ones adds up the weights that the outputs are divided by.
            v = F.pad(v, (0, 1), value=1.0)
        (state,) = cache.state(empty_state(x, config.num_heads, config.d_key, v.shape[-1]))
        out, state = kernels.gated_linear(q, k, v, log_decay, state, first_tokens(layout))
        cache.keep(layout.positions, state)
        if config.features == "elu":
            out = out[..., :-1] / out[..., -1:].clamp(min=LEAST_DENOMINATOR)
        if self.norm is not None and self.wz is not None:
            out = self.norm(out, self.wz(x).unflatten(-1, (config.num_heads, -1)))
        return self.wo(out.flatten(2))

    def _features(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1.0 if self.config.features == "elu" else x

    def _log_decay(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq heads channels"]:
        """In float32 at least, one per head or per channel of its key."""
        heads, dtype = self.config.num_heads, torch.promote_types(x.dtype, torch.float32)
        if self.decay_up is None:
            kept = 1.0 - 2.0 ** (-5.0 - torch.arange(heads, dtype=dtype, device=x.device))
            fixed = kept.log() if self.config.decay == "fixed" else torch.zeros_like(kept)
            return fixed[:, None].expand(*x.shape[:2], heads, 1)
        logits = self.decay_up(x if self.decay_down is None else self.decay_down(x))
        return F.logsigmoid(logits.to(dtype)).unflatten(-1, (heads, -1)) / TEMPERATURE
