import copy

import pytest
import torch

from groundup.optim import Muon, Optimizers, muon_adamw, orthogonalize


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.final_norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 11, bias=False)


def test_a_rotation_of_a_diagonal_keeps_its_directions():
    """U S V^T with any S becomes about U V^T: singular values in [0.6, 1.25], singular vectors kept."""
    u, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    matrix = u @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.05], dtype=torch.float64)) @ v.T
    result = u.T @ orthogonalize(matrix, dtype=None) @ v
    assert (result.diagonal() > 0.6).all() and (result.diagonal() < 1.25).all()
    assert (result - torch.diag(result.diagonal())).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7), (5, 4, 9), (1, 1)])
def test_singular_values_come_near_one_for_every_shape(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), dtype=None))
    assert values.min() > 0.3 and values.max() < 1.3


def test_a_zero_gradient_gives_zero_and_not_nan():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_stack_is_the_same_as_one_by_one():
    stack = torch.randn(3, 6, 10)
    torch.testing.assert_close(
        orthogonalize(stack, dtype=None), torch.stack([orthogonalize(m, dtype=None) for m in stack])
    )


def test_equals_torchs_muon():
    def run(make):
        generator = torch.Generator().manual_seed(0)
        shapes = [(12, 12), (12, 12), (24, 8), (8, 24)]
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = make(params)
        for _ in range(20):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        return params

    ours = run(lambda p: Muon(p, lr=0.02, momentum=0.95, weight_decay=0.1))
    theirs = run(lambda p: torch.optim.Muon(p, lr=0.02, momentum=0.95, weight_decay=0.1))
    for a, b in zip(ours, theirs, strict=True):
        # Both iterate in bfloat16, in another order of sums.
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_float32_iteration_equals_a_naive_one():
    def naive(g, lr, a=3.4445, b=-4.7750, c=2.0315):
        x = g / g.norm()
        x = x.T if g.shape[0] > g.shape[1] else x
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if g.shape[0] > g.shape[1] else x
        return lr * max(1.0, g.shape[0] / g.shape[1]) ** 0.5 * x

    p = torch.nn.Parameter(torch.randn(9, 4, dtype=torch.float64))
    p.grad = torch.randn(9, 4, dtype=torch.float64)
    # With zero momentum at first, buffer and Nesterov direction are multiples of the gradient.
    expected = p.detach() * (1 - 0.1 * 0.5) - naive(p.grad, 0.1)
    Muon([p], lr=0.1, weight_decay=0.5, dtype=None).step()
    torch.testing.assert_close(p.data, expected)


def test_a_skipped_step_never_happened():
    def run(skips):
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(6, 4, generator=generator))
        optimizer = Muon([p], lr=0.1)
        for step in range(6):
            p.grad = torch.randn(6, 4, generator=generator)
            if step in skips:
                p.grad.fill_(float("nan"))
                before = p.detach().clone(), optimizer.state[p]["momentum"].clone()
                optimizer.step(skip=torch.tensor(1.0))
                assert torch.equal(p, before[0]) and torch.equal(optimizer.state[p]["momentum"], before[1])
            else:
                optimizer.step(skip=torch.tensor(0.0))
        return p

    assert torch.isfinite(run({2, 3})).all()
    assert not torch.equal(run({2, 3}), run(set()))


def test_the_composite_splits_a_model_by_the_table():
    model = Tiny()
    optimizer = muon_adamw(model, lr=1e-3, muon_lr=0.02)
    muon, adamw = optimizer.optimizers
    owned = {id(p) for group in muon.param_groups for p in group["params"]}
    assert owned == {id(block.weight) for block in model.blocks}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert [len(g["params"]) for g in adamw.param_groups] == [1, 5]

    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_composite_saves_and_loads():
    torch.manual_seed(1)
    a, b = Tiny(), Tiny()
    b.load_state_dict(a.state_dict())
    first, second = muon_adamw(a), muon_adamw(b)
    for p in a.parameters():
        p.grad = torch.ones_like(p)
    first.step()
    b.load_state_dict(a.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for model, optimizer in ((a, first), (b, second)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="no matrix"):
        Muon([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="momentum"):
        Muon([torch.nn.Parameter(torch.ones(3, 3))], momentum=1.0)
    p = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ValueError, match="two optimizers"):
        Optimizers([Muon([p]), torch.optim.SGD([p], lr=0.1)])
