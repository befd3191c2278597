"""Both forms against the formula in float64, with everything that changes a loss."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from groundup.kernels import cross_entropy, linear_cross_entropy

OPTIONS = {
    "plain": {},
    "z_loss": {"z_loss": 0.01},
    "softcap": {"softcap": 2.0},
    "both": {"z_loss": 0.01, "softcap": 2.0},
}


def formula(hidden, weight, targets, weights, z_loss=0.0, softcap=None):
    """Written from the definition, without a log-sum-exp function."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    lse = logits.exp().sum(-1).log()
    losses = lse - logits[torch.arange(len(targets)), targets] + z_loss * lse**2
    return (losses * weights).sum()


def random(tokens=11, vocab=13, d_model=6, dtype=torch.float64):
    hidden = torch.randn(tokens, d_model, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, d_model, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, vocab, (tokens,)), torch.rand(tokens, dtype=dtype)


def test_by_hand():
    """Even odds among four tokens cost ln 4 each; a masked token costs nothing."""
    total, count = cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[1, 3]]), torch.tensor([[1.0, 0.0]]))
    assert total.item() == pytest.approx(math.log(4)) and count.item() == 1
    total, count = linear_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2]), z_loss=0.5)
    assert total.item() == pytest.approx(3 * (math.log(4) + 0.5 * math.log(4) ** 2)) and count.item() == 3


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("chunk", [1, 4, 11, 64, None])
def test_linear_against_the_formula_with_gradients(option, chunk):
    hidden, weight, targets, weights = random()
    expected = formula(hidden, weight, targets, weights, **OPTIONS[option])
    gradients = torch.autograd.grad(expected, (hidden, weight))
    total, count = linear_cross_entropy(hidden, weight, targets, weights, chunk=chunk, **OPTIONS[option])
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(count, weights.sum())
    for got, want in zip(torch.autograd.grad(total, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradcheck(option):
    hidden, weight, targets, weights = random(tokens=5, vocab=4, d_model=3)

    def scaled(h, w):
        return 3 * linear_cross_entropy(h, w, targets, weights, chunk=2, **OPTIONS[option])[0]

    assert torch.autograd.gradcheck(scaled, (hidden, weight))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_cross_entropy_against_torch(z_loss):
    hidden, weight, targets, weights = random()
    logits = (hidden @ weight.T).float()
    total, count = cross_entropy(logits, targets, weights.float(), z_loss)
    expected = (
        F.cross_entropy(logits, targets, reduction="none") + z_loss * logits.logsumexp(-1) ** 2
    ) @ weights.float()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(count, weights.float().sum())


def test_negative_targets_are_ignored_and_leading_axes_do_not_matter():
    hidden, weight, targets, _ = random(tokens=12)
    targets = targets.where(torch.rand(12) < 0.6, -100)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    for total, count in (
        linear_cross_entropy(hidden.view(3, 4, -1), weight, targets.view(3, 4), chunk=5),
        cross_entropy(logits.view(3, 4, -1), targets.view(3, 4)),
    ):
        torch.testing.assert_close(total, expected)
        assert count == (targets >= 0).sum()


def test_a_masked_token_has_no_gradient_even_when_its_loss_is_infinite():
    logits = torch.tensor([[0.0, float("-inf")], [0.0, 1.0]], requires_grad=True)
    total, _ = cross_entropy(logits, torch.tensor([1, 1]), torch.tensor([0.0, 1.0]))
    assert total.isfinite()
    hidden, weight, targets, weights = random()
    weights[3] = 0
    linear_cross_entropy(hidden, weight, targets, weights, chunk=4)[0].backward()
    assert hidden.grad is not None and hidden.grad[3].abs().max() == 0 and hidden.grad[4].abs().max() > 0


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens):
    hidden, weight, targets, weights = random(tokens=tokens)
    total, count = linear_cross_entropy(hidden, weight, targets, weights)
    total.backward()
    assert count == weights.sum() and weight.grad is not None and (tokens or weight.grad.abs().max() == 0)


def test_confident_predictions_keep_their_precision():
    """A certain right answer costs the others' tiny odds, a certain wrong one its whole margin."""
    hidden, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    for target, expected in ((0, 0.0), (1, 200.0), (2, 400.0)):
        total, _ = linear_cross_entropy(hidden, weight, torch.tensor([target]))
        assert total.item() == pytest.approx(expected)


def test_bfloat16_sums_in_float32():
    hidden, weight, targets, _ = random(tokens=300, vocab=50, d_model=16, dtype=torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    total, count = linear_cross_entropy(half, weight, targets, chunk=64)
    total.backward()
    assert total.dtype == count.dtype == torch.float32 and count == 300
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    got = weight.grad.clone()
    exact, _ = cross_entropy(half.detach().float() @ weight.T, targets)
    assert total.item() == pytest.approx(exact.item(), rel=2e-3)
    (want,) = torch.autograd.grad(exact, weight)
    assert (got - want).norm() / want.norm() < 0.01


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_what_needs_no_gradient_gets_none(frozen):
    hidden, weight, targets, _ = random()
    full = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets)[0], (hidden, weight))
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    total, _ = linear_cross_entropy(hidden, weight, targets, chunk=4)
    assert total.requires_grad == (frozen != "both")
    if frozen != "both":
        leaf, index = (weight, 1) if frozen == "hidden" else (hidden, 0)
        torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], full[index])


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_of_all_tokens_never_exist():
    tokens, vocab, d_model, chunk = 96, 200, 3, 8
    hidden, weight, targets, _ = random(tokens, vocab, d_model, torch.float32)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets, chunk=chunk)[0].backward()
    assert largest.elements == chunk * vocab


@pytest.mark.parametrize(("option", "backend"), [("plain", "aot_eager"), ("both", "aot_eager"), ("z_loss", "eager")])
def test_compiled_into_one_graph_it_gives_the_same_gradients(option, backend):
    hidden, weight, targets, weights = random(tokens=10, dtype=torch.float32)
    targets[2] = -100

    def loss(h, w):
        total, count = linear_cross_entropy(h.relu(), w, targets, weights, chunk=4, **OPTIONS[option])
        return total / count

    expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    got = torch.autograd.grad(torch.compile(loss, backend=backend, fullgraph=True)(hidden, weight), (hidden, weight))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_between_the_products_changes_no_gradient(dtype, monkeypatch):
    """By a compiler that traces both pieces and runs them as they are."""
    compiled = importlib.import_module("groundup.kernels.cross_entropy")._compiled
    compiled.cache_clear()
    made, compiler = [], torch.compile

    def traced(function, **options):
        made.append(function.__name__)
        return compiler(function, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", traced)
    hidden, weight, targets, weights = random(tokens=10, dtype=torch.float32)
    hidden = hidden.detach().to(dtype).requires_grad_()
    results = []
    for is_compiled in (False, True):
        total, _ = linear_cross_entropy(hidden, weight, targets, weights, chunk=4, compiled=is_compiled)
        results.append(torch.autograd.grad(total, (hidden, weight)))
    compiled.cache_clear()
    assert sorted(made) == ["_add", "_pointwise_chunk_loss"]
    close = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(results[1], results[0], **close)
