"""What a mixture of experts costs: work goes by the experts that a token passes through, memory by all of them."""

from groundup.model.moe import MoEConfig
from groundup.model.router import ExpertChoiceRouter, HashRouter

ROUTER_FLOPS = 5
"""Per score: an exponential, a sum, a division, a comparison, and the gate."""


def pairs(ffn: MoEConfig, tokens: int) -> int:
    """Most pairs of token and expert that are computed; fewer where tokens find their expert full, or are padding.

    >>> pairs(MoEConfig(num_experts=8, top_k=2, d_ff=64), tokens=100)
    200
    >>> pairs(MoEConfig(num_experts=8, top_k=2, d_ff=64, capacity_factor=0.5), tokens=100)
    104
    """
    if isinstance(ffn.router, ExpertChoiceRouter):
        return ffn.num_experts * -(-tokens * ffn.top_k // ffn.num_experts)
    if ffn.capacity_factor is None:
        return tokens * ffn.top_k
    room = -int(-tokens * ffn.top_k * ffn.capacity_factor / ffn.num_experts // 1)
    return min(tokens * ffn.top_k, ffn.num_experts * room)


def expert_matmuls(ffn: MoEConfig, d_model: int, tokens: int) -> dict[str, int]:
    """FLOPs of each matrix product. The shared experts come last, as in the layer itself."""
    names = ("gate", "up", "down") if ffn.gated else ("up", "down")
    rows = {} if isinstance(ffn.router, HashRouter) else {"router": 2 * tokens * d_model * ffn.num_experts}
    rows |= {f"expert_{name}": 2 * pairs(ffn, tokens) * d_model * ffn.d_ff for name in names}
    if ffn.num_shared:
        rows |= {f"shared_{name}": 2 * tokens * d_model * ffn.num_shared * ffn.d_ff for name in names}
    return rows


def expert_elementwise(ffn: MoEConfig, d_model: int, tokens: int, activation_flops: int) -> dict[str, int]:
    """FLOPs beside the products: activations, scores, and adding up what the experts gave."""
    hidden = (pairs(ffn, tokens) + tokens * ffn.num_shared) * ffn.d_ff
    return {
        "activation": (activation_flops + ffn.gated) * hidden,
        "routing": ROUTER_FLOPS * tokens * ffn.num_experts,
        "combine": 2 * pairs(ffn, tokens) * d_model + tokens * d_model * bool(ffn.num_shared),
    }


def inactive_parameters(ffn: MoEConfig, d_model: int) -> int:
    """Parameters of the experts that a token does not pass through (with expert choice: on average)."""
    return (ffn.num_experts - ffn.top_k) * (2 + ffn.gated) * d_model * ffn.d_ff
