"""Sums and copies over ranks, and what their gradients do; `test_tensor` uses them in whole models."""

import pytest
import torch
import torch.distributed as dist

from groundup.parallel import copy_to_ranks, exchange, gather_from_ranks, scatter_sum_to_ranks, sum_over_ranks
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


def gradient_of(function, x, upstream):
    x = x.clone().requires_grad_()
    result = function(x)
    result.backward(upstream)
    return result.detach(), x.grad


def whole_numbers(rank, *shape):
    return torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(rank)).double()


def gathered_and_scattered(rank, size):
    """Against all ranks' tensors, which each rank can make for itself."""
    for dim, shape in ((0, (3, 2)), (1, (2, 3)), (-1, (2, 1, 4)), (0, (0, 2))):
        wide = list(shape)
        wide[dim] *= size
        parts = [whole_numbers(r, *shape) for r in range(size)]
        wholes = [whole_numbers(50 + r, *wide) for r in range(size)]
        own = sum(wholes).chunk(size, dim)[rank]

        found, gradient = gradient_of(lambda x, d=dim: gather_from_ranks(x, d), parts[rank], wholes[rank])
        assert torch.equal(found, torch.cat(parts, dim)) and torch.equal(gradient, own)

        found, gradient = gradient_of(lambda x, d=dim: scatter_sum_to_ranks(x, d), wholes[rank], parts[rank])
        assert torch.equal(found, own) and torch.equal(gradient, torch.cat(parts, dim))

    strided = whole_numbers(rank, 4, 2 * size).T
    assert torch.equal(scatter_sum_to_ranks(gather_from_ranks(strided)), size * strided)
    if size > 1:
        with pytest.raises(ValueError, match="cannot be divided"):
            scatter_sum_to_ranks(torch.zeros(2 * size + 1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gathering_and_scattering_are_each_others_gradient(size):
    run_ranks(gathered_and_scattered, size)


def exchanged(rank, size):
    rows = [[(a + 2 * b) % 3 for b in range(size)] for a in range(size)]  # rows[a][b]: how many go from a to b
    sent, received = rows[rank], [row[rank] for row in rows]
    xs = [whole_numbers(r, sum(rows[r]), 2) for r in range(size)]
    upstreams = [whole_numbers(50 + r, sum(row[r] for row in rows), 2) for r in range(size)]

    found, gradient = gradient_of(lambda x: exchange(x, sent, received), xs[rank], upstreams[rank])
    assert torch.equal(found, torch.cat([xs[r].split(rows[r])[rank] for r in range(size)]))
    back = [upstreams[r].split([row[r] for row in rows])[rank] for r in range(size)]
    assert torch.equal(gradient, torch.cat(back))
    with pytest.raises(ValueError, match="a number per rank"):
        exchange(xs[rank], [*sent[:-1], sent[-1] + 1], received)

    x = xs[rank].clone().requires_grad_()  # a gradient of a gradient goes there and back once more
    (first,) = torch.autograd.grad(exchange(x, sent, received).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, 6 * x)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_exchanged_goes_back_as_gradient(size):
    run_ranks(exchanged, size)
