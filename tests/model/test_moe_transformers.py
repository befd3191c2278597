"""The layer against the mixtures of experts in `transformers`, in float64, with the same weights."""

import pytest
import torch

from groundup.model import Layout, MoE, MoEConfig, TopKRouter

pytest.importorskip("transformers", reason="transformers is not installed")

BATCH, SEQ, D_MODEL, D_FF, EXPERTS, TOP_K = 2, 7, 16, 12, 8, 3
COMMON = dict(
    hidden_size=D_MODEL,
    num_attention_heads=4,
    num_experts_per_tok=TOP_K,
    hidden_act="silu",
    experts_implementation="eager",
)
NARROW = dict(moe_intermediate_size=D_FF, intermediate_size=32, n_shared_experts=2, routed_scaling_factor=2.5)


def mixtral():
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(**COMMON, num_local_experts=EXPERTS, intermediate_size=D_FF)
    return MixtralSparseMoeBlock(config), MoEConfig(EXPERTS, TOP_K, D_FF)


def olmoe(renormalise):
    from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(**COMMON, num_experts=EXPERTS, intermediate_size=D_FF, norm_topk_prob=renormalise)
    return OlmoeSparseMoeBlock(config), MoEConfig(EXPERTS, TOP_K, D_FF, router=TopKRouter(renormalise=renormalise))


def deepseek_v2(groups):
    from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

    method = dict(topk_method="group_limited_greedy", n_group=4, topk_group=2) if groups else dict(topk_method="greedy")
    config = DeepseekV2Config(**COMMON, **NARROW, n_routed_experts=EXPERTS, **method)
    router = TopKRouter(renormalise=False, scale=2.5, num_groups=4 if groups else 1, top_groups=2 if groups else 1)
    return DeepseekV2Moe(config), MoEConfig(EXPERTS, TOP_K, D_FF, 2, router)


def deepseek_v3(renormalise):
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        **COMMON, **NARROW, n_routed_experts=EXPERTS, n_group=4, topk_group=2, norm_topk_prob=renormalise
    )
    router = TopKRouter("sigmoid", renormalise, 2.5, 4, 2, bias_rate=0.001)
    return DeepseekV3MoE(config), MoEConfig(EXPERTS, TOP_K, D_FF, 2, router)


CASES = {
    "mixtral": mixtral,
    "olmoe": lambda: olmoe(False),
    "olmoe, renormalised": lambda: olmoe(True),
    "deepseek-v2": lambda: deepseek_v2(False),
    "deepseek-v2, groups": lambda: deepseek_v2(True),
    "deepseek-v3": lambda: deepseek_v3(True),
    "deepseek-v3, gates as they are": lambda: deepseek_v3(False),
}


def names(moe, peer):
    """{ours: (theirs, slice)}: gate and up are one fused stack there."""
    table = {
        "router.weight": peer.gate.weight,
        "experts.gate.weight": peer.experts.gate_up_proj[:, :D_FF],
        "experts.up.weight": peer.experts.gate_up_proj[:, D_FF:],
        "experts.down.weight": peer.experts.down_proj,
    }
    if moe.shared is not None:
        table |= {
            f"shared.{n}.weight": getattr(peer.shared_experts, f"{n}_proj").weight for n in ("gate", "up", "down")
        }
    if moe.router.bias is not None:
        table["router.bias"] = peer.gate.e_score_correction_bias
    return table


@pytest.fixture
def double_routers(monkeypatch):
    """Their routers insist on float32, which hides what comes after the seventh digit; here that means float64."""
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal(case, request):
    peer, config = CASES[case]()
    moe = MoE(config, D_MODEL).double()
    peer = peer.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*peer.parameters(), *peer.buffers()):
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator))
        for name, value in names(moe, peer).items():
            moe.get_parameter(name).copy_(value) if name != "router.bias" else moe.router.bias.copy_(value)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = moe(ours, Layout(torch.arange(SEQ).expand(BATCH, SEQ)))
    found.square().sum().backward()
    request.getfixturevalue("double_routers")
    expected = peer(theirs)
    expected.square().sum().backward()
    assert (found - expected).abs().max() < 1e-8
    fused = peer.experts.gate_up_proj.grad
    grads = {"x": theirs.grad, "experts.gate.weight": fused[:, :D_FF], "experts.up.weight": fused[:, D_FF:]}
    grads |= {n: value.grad for n, value in names(moe, peer).items() if getattr(value, "grad", None) is not None}
    own = {"x": ours.grad} | {name: p.grad for name, p in moe.named_parameters()}
    assert own.keys() == grads.keys()
    for name, gradient in grads.items():
        assert (own[name] - gradient).norm() <= 1e-6 * gradient.norm() and gradient.norm() > 0, name
