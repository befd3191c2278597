"""Balancing losses by hand, and the bias update."""

import pytest
import torch

from groundup.model import AttentionConfig, Balance, BlockConfig, ModelConfig, MoEConfig, TopKRouter, Transformer
from groundup.model.balance import (
    count_micro_batch,
    load_balancing_loss,
    router_z_loss,
    routers,
    start_step,
    statistics,
    update_biases,
)  # fmt: skip

ALL = torch.ones(1, 4, dtype=torch.bool)


def one_hot(*experts):
    return torch.nn.functional.one_hot(torch.tensor([experts]), 2).float()


def test_load_balancing_by_hand():
    """Three of four tokens on expert 0, mean scores 0.7 and 0.3: 2 (0.75 * 0.7 + 0.25 * 0.3) = 1.2."""
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]])
    assert load_balancing_loss(scores, one_hot(0, 0, 0, 1), ALL).item() == pytest.approx(1.2)


def test_it_is_one_when_even_and_the_number_of_experts_when_all_choose_one():
    even = torch.full((1, 4, 2), 0.5)
    assert load_balancing_loss(even, one_hot(0, 1, 0, 1), ALL).item() == pytest.approx(1.0)
    one = torch.tensor([1.0, 0.0]).expand(1, 4, 2)
    assert load_balancing_loss(one, one_hot(0, 0, 0, 0), ALL).item() == pytest.approx(2.0)


def test_its_gradient_lowers_the_busy_expert():
    logits = torch.randn(1, 4, 2, requires_grad=True)
    load_balancing_loss(logits.softmax(-1), one_hot(0, 0, 0, 1), ALL).backward()
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1] < 0).all()


def test_padding_counts_nowhere_and_rows_count_by_their_tokens():
    scores, chosen = torch.rand(2, 4, 2).softmax(-1), torch.cat([one_hot(0, 0, 0, 1), one_hot(1, 0, 1, 1)])
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    first, second = (
        load_balancing_loss(scores[i : i + 1, :n], chosen[i : i + 1, :n], ALL[:, :n]) for i, n in ((0, 4), (1, 2))
    )
    torch.testing.assert_close(load_balancing_loss(scores, chosen, valid), (4 * first + 2 * second) / 6)
    assert load_balancing_loss(scores, chosen, torch.zeros_like(valid)).item() == 0.0


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]])
    expected = (torch.tensor(2.0).log() ** 2 + (5 + torch.tensor(2.0).log()) ** 2) / 2
    torch.testing.assert_close(router_z_loss(logits, torch.tensor([True, True, False])), expected)


def model(rate=0.25, **options):
    moe = MoEConfig(4, 1, 8, router=TopKRouter("sigmoid", bias_rate=rate), **options)
    return Transformer(ModelConfig(20, 8, 2, (BlockConfig(AttentionConfig(2, 2, 4), moe),)))


def test_the_bias_goes_up_for_the_idle_and_down_for_the_busy():
    made = model()
    first = next(iter(routers(made).values()))
    first.step_load.copy_(torch.tensor([10.0, 2.0, 4.0, 0.0]))  # mean 4
    update_biases(made)
    assert first.bias.tolist() == [-0.25, 0.25, 0.0, 0.25]
    update_biases(made, skip=torch.tensor(1.0))
    assert first.bias.tolist() == [-0.25, 0.25, 0.0, 0.25]


def test_a_rate_of_zero_keeps_the_bias():
    made = model(rate=0.0)
    for router in routers(made).values():
        router.step_load.copy_(torch.tensor([10.0, 2.0, 4.0, 0.0]))
    update_biases(made)
    assert all((router.bias == 0).all() for router in routers(made).values())


def test_loads_add_up_over_micro_batches_and_padding_is_not_counted():
    made, x = model(), torch.randint(0, 20, (3, 6))
    positions = torch.arange(6).expand(3, 6).clone()
    positions[0, :2] = -1
    start_step(made)
    for rows in (slice(0, 1), slice(1, 3)):
        made.hidden(x[rows], positions[rows])
        count_micro_batch(made)
    for router in routers(made).values():
        assert router.step_load.sum() == 16
    start_step(made)
    assert all(router.step_load.sum() == 0 for router in routers(made).values())


def test_statistics_say_how_uneven_and_how_much_was_dropped():
    made = model(capacity_factor=1.0)
    for router in routers(made).values():
        router.bias.copy_(
            torch.tensor([100.0, 0.0, 0.0, 0.0])
        )  # everybody wants expert 0, which has room for a quarter
    made.hidden(torch.randint(0, 20, (2, 8)))
    assert {name: value.item() for name, value in statistics(made).items()} == {
        "expert_load": 4.0,
        "expert_dropped": 0.75,
    }
    assert statistics(torch.nn.Linear(1, 1)) == {}


def test_errors():
    with pytest.raises(ValueError, match="balance: z=-1"):
        Balance(z=-1.0)
