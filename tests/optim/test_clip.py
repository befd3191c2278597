import pytest
import torch

from groundup.optim import clip_by_global_norm, global_norm


def with_gradients(*values):
    params = [torch.nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(params, values, strict=True):
        p.grad = torch.tensor(v)
    return params


def gradient(p):
    assert p.grad is not None
    return p.grad


def test_three_four_five():
    params = with_gradients([3.0], [0.0, 4.0])
    assert float(clip_by_global_norm(params, 1.0)) == 5.0
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6]))
    torch.testing.assert_close(params[1].grad, torch.tensor([0.0, 0.8]))


def test_small_gradients_keep_their_bits():
    params = with_gradients([0.3, 0.1])
    clip_by_global_norm(params, 1.0)
    assert torch.equal(gradient(params[0]), torch.tensor([0.3, 0.1]))


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_equals_torch(max_norm):
    values = [torch.randn(n).tolist() for n in (1, 7, 129)]
    ours, theirs = with_gradients(*values), with_gradients(*values)
    norm = clip_by_global_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert torch.equal(norm, expected)
    assert all(torch.equal(gradient(a), gradient(b)) for a, b in zip(ours, theirs, strict=True))


def test_sums_are_divided_in_the_same_pass():
    params = with_gradients([30.0], [40.0])
    norm = clip_by_global_norm(params, 100.0, divisor=torch.tensor(10.0))
    assert float(norm) == 5.0
    torch.testing.assert_close(params[0].grad, torch.tensor([3.0]))


def test_edges():
    assert float(global_norm([])) == 0.0
    assert float(clip_by_global_norm(with_gradients(), 1.0)) == 0.0
    for bad in (float("inf"), float("nan")):
        params = with_gradients([bad, 1.0], [5.0])
        assert not torch.isfinite(clip_by_global_norm(params, 1.0))
        assert float(gradient(params[1])) == 5.0  # the fault stays where it was
    assert float(clip_by_global_norm(with_gradients([3.0, 4.0]), float("inf"))) == 5.0
    with pytest.raises(ValueError, match="max_norm"):
        clip_by_global_norm([], 0.0)
