from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from groundup.parallel.tensor import cuts, full_parameters, tensor_parallel
from tests.distributed import run_ranks


def config(num_heads=4, num_kv_heads=2, d_ff=24, **attention) -> ModelConfig:
    block = BlockConfig(AttentionConfig(num_heads, num_kv_heads, 4, **attention), MLPConfig(d_ff))
    return ModelConfig(vocab_size=19, d_model=12, num_layers=2, blocks=(block,))


class TwoLayers(nn.Module):
    """y = W2 (W1 x) + b2, small enough to cut by hand."""

    shard = {"first": "col", "second": "row"}

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x))


def cut_by_hand(rank, size):
    model = TwoLayers()
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    tensor_parallel(model)
    assert torch.equal(model.first.weight, whole["first.weight"][2 * rank : 2 * rank + 2])
    assert torch.equal(model.first.bias, whole["first.bias"][2 * rank : 2 * rank + 2])
    assert torch.equal(model.second.weight, whole["second.weight"][:, 2 * rank : 2 * rank + 2])
    assert torch.equal(model.second.bias, whole["second.bias"])
    assert list(dict(model.named_parameters())) == list(whole)
    assert all(torch.equal(p, whole[name]) for name, p in full_parameters(model))
    x = torch.tensor([[1.0, -2.0]])
    expected = (x @ whole["first.weight"].T + whole["first.bias"]) @ whole["second.weight"].T
    torch.testing.assert_close(model(x), expected + whole["second.bias"])


def test_slices_by_hand_and_back():
    run_ranks(cut_by_hand, 2)


def pair(rank, size):
    x = torch.tensor([1.0 + rank], requires_grad=True)
    y = sum_over_ranks(x)  # 1 + 2
    y.backward(torch.tensor([5.0]))
    z = torch.tensor([7.0], requires_grad=True)
    (copy_to_ranks(z) * (rank + 1)).backward()  # 1 + 2
    assert x.grad is not None and z.grad is not None
    return y.item(), x.grad.item(), z.grad.item()


def test_copy_and_sum_are_each_others_gradient():
    assert run_ranks(pair, 2) == [(3.0, 5.0, 3.0), (3.0, 5.0, 3.0)]


def gradients(model, tokens):
    model.zero_grad()
    logits = model(tokens)
    logits.logsumexp(-1).square().sum().backward()
    return logits


def compare_to_single(rank, size, configs):
    """Largest relative difference of logits and of any gradient, per configuration."""
    tokens = torch.randint(0, 19, (2, 7), generator=torch.Generator().manual_seed(1))
    worst = []
    for each in configs:
        single, cut = Transformer(each).double(), Transformer(each).double()
        single.compute_dtype = cut.compute_dtype = torch.float64
        for model in (single, cut):
            generator = torch.Generator().manual_seed(2)
            for p in model.parameters():
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)
        tensor_parallel(cut)
        expected, found = gradients(single, tokens), gradients(cut, tokens)
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-5, atol=1e-5)
        whole = dict(full_parameters(cut, value=lambda p: p.grad))
        grads = {name: p.grad for name, p in single.named_parameters() if p.grad is not None}
        assert whole.keys() == grads.keys()
        worst.append({n: ((whole[n] - g).abs().max() / g.abs().max()).item() for n, g in grads.items()})
    return worst


def test_every_gradient_equals_the_single_process_at_2_and_4_ranks():
    """With one kv head for four ranks, kept whole; with biases; with normalised queries and keys."""
    configs = [
        config(),
        config(4, 1),
        config(bias=True, out_bias=True),
        config(qk_norm=True),
        config(4, 2, qk_norm=True),
    ]
    for size in (2, 4):
        for rank in run_ranks(compare_to_single, size, configs):
            for errors in rank:
                assert max(errors.values()) < 1e-5, errors


def slices_differ(rank, size):
    torch.manual_seed(0)
    model: Any = tensor_parallel(Transformer(config()))
    x = model.blocks[0].mixer.wq.weight.detach().clone()
    others = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(others, x)
    return [tuple(x.shape), sum(p.numel() for p in model.parameters()), torch.equal(others[0], others[1])]


def test_each_rank_holds_its_part_only():
    whole = Transformer(config())
    block = sum(p.numel() for name, p in whole.named_parameters() if ".mixer." in name or ".ffn." in name)
    total = sum(p.numel() for p in whole.parameters())
    assert run_ranks(slices_differ, 2) == [[(8, 12), total - block // 2, False]] * 2


@pytest.mark.parametrize(
    "broken, size, message",
    [
        (config(6, 3), 2, r"blocks\.0\.mixer\.wk: 3 heads cannot be divided over 2"),
        (config(4, 2), 3, r"mixer\.wq: 4 heads cannot be divided over 3"),
        (config(4, 4, d_ff=26), 4, r"ffn\.gate: 26 channels"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(broken, size, message):
    with pytest.raises(ValueError, match=message):
        cuts(Transformer(broken), size)


def test_heads_are_never_cut_in_two():
    """3 heads of 4 channels are 12 rows, which 2 divides; the heads it does not."""
    with pytest.raises(ValueError, match="3 heads"):
        cuts(Transformer(config(3, 3)), 2)


def test_an_unknown_word_is_refused():
    class Odd(TwoLayers):
        shard = {"first": "column"}

    with pytest.raises(ValueError, match="did you mean 'col'|expected one of"):
        cuts(Odd(), 2)
