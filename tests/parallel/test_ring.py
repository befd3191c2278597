"""Our collectives, around a ring and along a tree, against torch.distributed's on 1 to 4 ranks."""

import pytest
import torch
import torch.distributed as dist

from groundup.parallel import ring, tree
from groundup.parallel.point_to_point import post
from tests.distributed import run_ranks

SHAPES = [(12,), (7,), (1,), (0,), (5, 3), (3, 0), (4, 2, 2)]


def tensor_of(rank, shape, dtype=torch.float32):
    """Whole numbers, whose sums do not depend on their order."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randint(-50, 50, shape, generator=generator).to(dtype)


def inputs(rank):
    """Contiguous and not, of several dtypes; with a scalar where that makes sense."""
    yield from (tensor_of(rank, shape) for shape in SHAPES)
    yield from (tensor_of(rank, (5, 3), dtype) for dtype in (torch.float64, torch.bfloat16, torch.int64))
    yield tensor_of(rank, (3, 5)).T
    yield tensor_of(rank, (10,))[::2]
    yield tensor_of(rank, (4,)).requires_grad_()


def same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.is_contiguous() and not found.requires_grad
    assert torch.equal(found, expected.detach())


def broadcasts_and_reductions(rank, size):
    for x in [*inputs(rank), torch.tensor(float(rank))]:
        before = x.detach().clone()
        total, largest = (x.detach().contiguous().clone() for _ in range(2))
        dist.all_reduce(total)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        for way in (ring, tree):
            same(way.all_reduce(x), total)
            same(way.all_reduce(x, op=torch.maximum), largest)
            for root in range(size):
                expected = x.detach().contiguous().clone()
                dist.broadcast(expected, root)
                same(way.broadcast(x, root), expected)
                reduced = way.reduce(x, root)
                assert (reduced is None) == (rank != root)
                if reduced is not None:
                    same(reduced, total)
        assert torch.equal(x, before), "an argument was changed"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_broadcasts_and_reductions_are_those_of_torch(size):
    run_ranks(broadcasts_and_reductions, size, timeout=120)


def pieces(rank, size):
    for x in inputs(rank):
        before, rows = x.detach().clone(), [len(piece) for piece in x.tensor_split(size)]
        total = x.detach().contiguous().clone()
        dist.all_reduce(total)
        same(ring.reduce_scatter(x), total.tensor_split(size)[rank].contiguous())
        everyone = [torch.empty_like(before, memory_format=torch.contiguous_format) for _ in range(size)]
        dist.all_gather(everyone, before.contiguous())
        same(ring.all_gather(x), torch.cat(everyone))
        same(ring.all_to_all(x), torch.cat([other.tensor_split(size)[rank] for other in everyone]))
        uneven = x[: rows[rank]]
        whole = torch.cat([other[:n] for other, n in zip(everyone, rows, strict=True)])
        same(ring.all_gather(uneven, rows), whole)
        for root in range(size):
            same(ring.scatter(x, root), everyone[root].tensor_split(size)[rank].contiguous())
            for found, expected in (
                (ring.gather(x, root), torch.cat(everyone)),
                (ring.gather(uneven, root, rows), whole),
            ):
                assert (found is None) == (rank != root)
                if found is not None:
                    same(found, expected)
        assert torch.equal(x, before), "an argument was changed"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pieces_are_those_of_torch(size):
    run_ranks(pieces, size, timeout=120)


def uneven_exchange(rank, size):
    sent = [(rank + 2 * peer) % 4 for peer in range(size)]
    received = [(peer + 2 * rank) % 4 for peer in range(size)]
    x = tensor_of(rank, (2, sum(sent))).T
    expected = x.new_empty(sum(received), 2)
    dist.all_to_all_single(expected, x.contiguous(), received, sent)
    same(ring.all_to_all(x, sent, received), expected)
    for wrong in ([*sent[:-1], sent[-1] + 1], sent + [0]):
        with pytest.raises(ValueError, match="a number per rank"):
            ring.all_to_all(x, wrong, received)
    with pytest.raises(ValueError, match="has length"):
        ring.all_gather(x, [len(x) + 1] * size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_uneven_exchange_is_that_of_torch(size):
    run_ranks(uneven_exchange, size)


def in_the_order_said(rank, size):
    """Terms so far apart that the order of a sum shows."""
    terms = [torch.tensor([1e8, 1.0, -1e8, 3e-3][r]).repeat(size) for r in range(size)]

    def added(ranks):
        total = terms[ranks[0]]
        for r in ranks[1:]:
            total = total + terms[r]
        return total[:1]

    around = [added([(piece + 1 + step) % size for step in range(size)]) for piece in range(size)]
    assert torch.equal(ring.all_reduce(terms[rank]), torch.cat(around))
    assert torch.equal(ring.reduce_scatter(terms[rank]), around[rank])
    reduced = ring.reduce(terms[rank], 1)
    assert rank != 1 or torch.equal(reduced, around[1].repeat(size))
    if size == 4:
        paired = (terms[0] + terms[2]) + (terms[1] + terms[3])
        assert torch.equal(tree.all_reduce(terms[rank]), paired)
    return len(set(torch.cat(around).tolist()))


@pytest.mark.parametrize("size", [3, 4])
def test_sums_are_taken_in_the_order_said(size):
    assert min(run_ranks(in_the_order_said, size)) > 1, "the order made no difference: the test shows nothing"


def within_a_group(rank, size):
    groups = [dist.new_group([2, 0]), dist.new_group([1])]
    group, x = groups[rank % 2], torch.tensor([float(rank + 1), 10.0 * rank])
    place = dist.get_rank(group)
    total = [4.0, 20.0] if rank != 1 else [2.0, 10.0]
    for way in (ring, tree):
        assert way.all_reduce(x, group).tolist() == total
        first = dist.get_global_rank(group, 0) if rank != 1 else 1
        assert way.broadcast(x, 0, group).tolist() == [first + 1.0, 10.0 * first]
    assert ring.reduce_scatter(x, group).tolist() == (total if rank == 1 else [total[place]])


def test_ranks_are_those_within_the_group():
    run_ranks(within_a_group, 3)


def counted(rank, size):
    """Bytes that this rank sends, per algorithm, by what is handed to torch.distributed."""
    sent, original = [0], dist.batch_isend_irecv

    def counting(operations):
        sent[0] += sum(operation.tensor.nbytes for operation in operations if operation.op is dist.isend)
        return original(operations)

    x, found = torch.zeros(12 * size), {}
    calls = {
        "all_reduce": lambda: ring.all_reduce(x),
        "reduce_scatter": lambda: ring.reduce_scatter(x),
        "all_gather": lambda: ring.all_gather(x),
        "all_to_all": lambda: ring.all_to_all(x),
        "broadcast": lambda: ring.broadcast(x),
        "tree all_reduce": lambda: tree.all_reduce(x),
    }
    dist.batch_isend_irecv = counting
    for name, call in calls.items():
        sent[0] = 0
        call()
        found[name] = sent[0] / x.nbytes
    dist.batch_isend_irecv = original
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_sends_what_the_formulas_say(size):
    found = run_ranks(counted, size)
    part = (size - 1) / size
    for rank, sent in enumerate(found):
        assert sent["all_reduce"] == 2 * part
        assert sent["reduce_scatter"] == sent["all_to_all"] == part
        assert sent["all_gather"] == size - 1
        assert sent["broadcast"] == (rank < size - 1)
    assert sum(sent["tree all_reduce"] for sent in found) == 2 * (size - 1)
    assert found[0]["tree all_reduce"] == (size - 1).bit_length()


def crossing(rank, size):
    """Messages between the same two ranks, many at once: each arrives in the place of its number."""
    other = 1 - rank
    mine = [torch.full((n,), float(n + rank)) for n in (3, 100_000, 1, 7)]
    rooms = [torch.zeros(n) for n in (3, 100_000, 1, 7)]
    pending = [post([(a, other)], [(b, other)]) for a, b in zip(mine, rooms, strict=True)]
    for each in reversed(pending):
        each.wait()
    assert all((room == len(room) + other).all() for room in rooms)


def test_messages_keep_their_order():
    run_ranks(crossing, 2)
