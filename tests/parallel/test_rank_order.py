"""A sum in rank order has the bits of a loop over the ranks, whatever the number of ranks and the shape."""

import pytest
import torch

from groundup.parallel import ring, sum_in_rank_order
from groundup.parallel.rank_order import Exchange, even_lengths, start_gather
from tests.distributed import run_ranks


def terms(size, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).mul(10.0 ** (r % 3)).to(dtype) for r in range(size)]


def added(tensors):
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def sums(rank, size):
    differs = False
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((1000,), (7, 3), (1,), (0,), ()):
            xs = terms(size, shape, dtype)
            before = xs[rank].clone()
            assert torch.equal(sum_in_rank_order(xs[rank]), added(xs))
            assert torch.equal(xs[rank], before)
        differs |= not torch.equal(
            ring.all_reduce(terms(size, (1000,), dtype)[rank]), added(terms(size, (1000,), dtype))
        )
    strided = terms(size, (3, 5), torch.float32)
    assert torch.equal(sum_in_rank_order(strided[rank].T), added(strided).T)
    return differs


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_bits_are_those_of_a_loop(size):
    differs = run_ranks(sums, size)
    assert all(differs) == (size > 2), "a ring should give other bits on more than two ranks"


def uneven_pieces(rank, size):
    lengths = [4, 0, 3][:size]
    xs = terms(size, (sum(lengths),), torch.float32)
    flat = xs[rank].clone()
    own = Exchange(flat, lengths).add()
    assert torch.equal(own, added(xs).split(lengths)[rank])
    start_gather(flat, lengths).wait()
    assert torch.equal(flat, added(xs))


def test_pieces_may_have_any_lengths():
    run_ranks(uneven_pieces, 3)


def test_even_lengths_are_those_of_tensor_split():
    for total in range(12):
        for ranks in range(1, 6):
            assert even_lengths(total, ranks) == [len(piece) for piece in torch.zeros(total).tensor_split(ranks)]
