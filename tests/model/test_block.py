"""Norm placement: one block, held to each paper's own equation."""

import pytest
import torch

from groundup.model import PLACEMENTS, AttentionConfig, Block, BlockConfig, Layout, MLPConfig, NoCache
from groundup.model import block as block_module
from groundup.model.block import SLOTS

MIXER, FFN = AttentionConfig(2, 2, 4, rope=None), MLPConfig(12)
LAYOUT = Layout(torch.arange(5).expand(2, 5))


def block(placement, norm="rms"):
    made = Block(BlockConfig(MIXER, FFN, norm, placement), 8, norm_bias=True)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


EQUATIONS = {
    "pre": lambda b, x, a, f: (y := x + a(b.mixer_norm(x))) + f(b.ffn_norm(y)),
    "post": lambda b, x, a, f: b.ffn_out_norm((y := b.mixer_out_norm(x + a(x))) + f(y)),
    "sandwich": lambda b, x, a, f: (y := x + b.mixer_post_norm(a(b.mixer_norm(x)))) + b.ffn_post_norm(f(b.ffn_norm(y))),
    "inner": lambda b, x, a, f: (y := x + b.mixer_post_norm(a(x))) + b.ffn_post_norm(f(y)),
    "parallel": lambda b, x, a, f: x + a(b.mixer_norm(x)) + f(b.mixer_norm(x)),
    "none": lambda b, x, a, f: (y := x + a(x)) + f(y),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_each_placement_is_its_equation(placement, norm):
    b, x = block(placement, norm), torch.randn(2, 5, 8)
    expected = EQUATIONS[placement](b, x, lambda x: b.mixer(x, LAYOUT, NoCache()), b.ffn)
    torch.testing.assert_close(b(x, LAYOUT, NoCache()), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_sum_and_its_norm_in_one_kernel_are_the_same_block(placement, norm, monkeypatch):
    """As on a GPU: to the bit, with the gradients of every parameter; asked of the placements that have such a pair."""
    b, x, given = block(placement, norm), torch.randn(2, 5, 8), []
    b.ffn_norm.register_forward_pre_hook(lambda _, inputs: given.append(len(inputs)))

    def run():
        y = b(x, LAYOUT, NoCache())
        return [y, *torch.autograd.grad(y.square().sum(), list(b.parameters()))]

    apart = run()
    monkeypatch.setattr(block_module, "FUSED_SUMS", ("cpu",))
    assert all(torch.equal(p, q) for p, q in zip(apart, run(), strict=True))
    assert given.count(2) == (placement in ("pre", "sandwich"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_the_slots_of_the_table_have_parameters(placement):
    real = {name.split(".")[0] for name, _ in block(placement).named_parameters()} - {"mixer", "ffn"}
    assert real == set(PLACEMENTS[placement]) and real <= set(SLOTS)


@pytest.mark.parametrize("placement", ["pre", "sandwich", "inner", "parallel"])
def test_silent_branches_leave_the_residual_stream_alone(placement):
    b, x = block(placement), torch.randn(2, 5, 8)
    torch.nn.init.zeros_(b.mixer.wo.weight)
    torch.nn.init.zeros_(b.ffn.down.weight)
    b.mixer_post_norm.bias = b.ffn_post_norm.bias = None
    torch.testing.assert_close(b(x, LAYOUT, NoCache()), x)


@pytest.mark.usefixtures("unchecked")
def test_unknown_names():
    with pytest.raises(ValueError, match="placement 'paralel' is unknown; did you mean 'parallel'"):
        BlockConfig(MIXER, FFN, placement="paralel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm 'batch' is unknown"):
        BlockConfig(MIXER, FFN, norm="batch")  # type: ignore[arg-type]
