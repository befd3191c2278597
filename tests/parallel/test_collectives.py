"""Sums and copies over ranks, and what their gradients do; `test_tensor` uses them in whole models."""

import torch
import torch.distributed as dist

from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from tests.distributed import run_ranks


def two_matrices(rank, size):
    """relu(x A) B, with the columns of A and the rows of B divided: result and gradients of x and of the slices."""
    generator = torch.Generator().manual_seed(1)
    x, a, b = (torch.randn(shape, generator=generator) for shape in ((3, 4), (4, 2 * size), (2 * size, 5)))
    whole = [t.clone().requires_grad_() for t in (x, a, b)]
    expected = (whole[0] @ whole[1]).relu() @ whole[2]
    expected.square().sum().backward()

    mine = slice(2 * rank, 2 * rank + 2)
    x, a, b = (t.clone().requires_grad_() for t in (x, a[:, mine], b[mine]))
    found = sum_over_ranks((copy_to_ranks(x) @ a).relu() @ b)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, whole[0].grad)
    torch.testing.assert_close(a.grad, whole[1].grad[:, mine])
    torch.testing.assert_close(b.grad, whole[2].grad[mine])


def test_a_divided_layer_is_the_whole_one():
    run_ranks(two_matrices, 2)


def inputs_stay(rank, size):
    x = (torch.arange(6.0).view(2, 3) + rank).T  # not contiguous
    before = x.clone()
    total = sum_over_ranks(x)
    assert torch.equal(x, before) and torch.equal(copy_to_ranks(x), before)
    return total.tolist()


def test_what_is_summed_is_not_changed():
    expected = (2 * torch.arange(6.0).view(2, 3).T + 1).tolist()
    assert run_ranks(inputs_stay, 2) == [expected, expected]


def shared_gradient(rank, size):
    """y = copy(x) + x: the gradient of the second branch must not be summed over ranks with the first's."""
    x = torch.ones(2, requires_grad=True)
    copied = copy_to_ranks(x)
    (copied + x).backward(torch.full((2,), float(rank + 1)))
    assert x.grad is not None
    return x.grad.tolist()


def test_a_gradient_that_goes_two_ways_is_summed_in_one():
    assert run_ranks(shared_gradient, 2) == [[4.0, 4.0], [5.0, 5.0]]


def within_a_group(rank, size):
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    x = torch.tensor([float(rank + 1)], requires_grad=True)
    total = sum_over_ranks(copy_to_ranks(x, groups[rank // 2]), groups[rank // 2])
    total.backward(torch.tensor([1.0]))
    assert x.grad is not None
    return total.item(), x.grad.item()


def test_only_the_ranks_of_a_group_take_part():
    assert run_ranks(within_a_group, 3) == [(3.0, 2.0), (3.0, 2.0), (3.0, 1.0)]
