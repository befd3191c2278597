"""ZeRO trains as one process does, to the bit, with a share of the state; and its state fits any number of ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from groundup import optim
from groundup.parallel import ZeRO
from tests.distributed import run_ranks
from tests.parallel.counting import counting
from tests.parallel.test_ddp import OPTIMIZERS
from tests.parallel.training import Awkward, accumulated, backward, divide, tokens_of, weight_of
from tests.thorough import times


def trained(rank, size, stage, make, dtype, steps):
    model = Awkward(dtype, seed=rank)
    zero = ZeRO(model, make(model), stage=stage, bucket_bytes=500)
    for step in range(steps):
        zero.zero_grad()
        backward(model, tokens_of(step, rank))
        zero.finish()
        divide(model, weight_of(step, size))
        zero.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def elementwise(rank, size, steps):
    for name, make in OPTIMIZERS.items():
        for dtype in (torch.float32, torch.float64):
            model = Awkward(dtype)
            expected = accumulated(model, make(model), size, steps)
            assert all(tensor.isfinite().all() for tensor in expected.values())
            for stage in (1, 2):
                found = trained(rank, size, stage, make, dtype, steps)
                for key, tensor in expected.items():
                    assert torch.equal(found[key], tensor), f"{key} differs with stage {stage}, {name}, {dtype}"
            assert not torch.equal(expected["long.weight"], Awkward(dtype).long.weight), "the test trains too little"


SIZES = [(2, times(20)), (4, 20)]


@pytest.mark.parametrize(("size", "steps"), SIZES)
def test_ranks_are_micro_batches_to_the_bit(size, steps):
    run_ranks(elementwise, size, steps, timeout=600)


def muon(model):
    made = optim.muon_adamw(model)
    made.optimizers[0].dtype = None
    return made


def by_matrices(rank, size, steps):
    """Optimizers that need whole matrices; Muon stacks those of one shape, here others than on one process."""
    for make in (muon, lambda model: optim.SOAP(model, lr=1e-3), lambda model: optim.Adafactor(model, lr=1e-3)):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            model = Awkward(dtype)
            expected = accumulated(model, make(model), size, steps)
            found = trained(rank, size, 2, make, dtype, steps)
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=tolerance, atol=tolerance)


def test_optimizers_that_need_whole_matrices_have_them():
    run_ranks(by_matrices, 2, 20, timeout=120)


def layers():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(n, n) for n in (24, 24, 24, 24, 24, 24)))


def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def memory(rank, size, stage):
    model = layers()
    one_layer = 4 * (24 * 24 + 24)
    zero = ZeRO(model, torch.optim.AdamW(model.parameters()), stage=stage, bucket_bytes=one_layer)
    during = []
    model[0].weight.register_hook(lambda g: during.append(bytes_of(p.grad for p in model.parameters())))
    model(torch.ones(2, 24)).sum().backward()
    zero.finish()
    zero.step()
    own = [p for name, p in model.named_parameters() if zero.owners[name] == rank]
    state = [t for p in own for t in zero.optimizer.state[p].values()]
    assert len(zero.optimizer.state) == len(own)
    assert bytes_of(state) == 8 * sum(p.numel() for p in own) + 4 * len(own)  # two moments and a step count
    assert bytes_of(p.grad for p in model.parameters()) == bytes_of(own)
    return bytes_of(own), during[0], one_layer


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_holds_its_share(stage, size):
    results = run_ranks(memory, size, stage)
    own, during, (one_layer, *_) = zip(*results, strict=True)
    assert sum(own) == 6 * one_layer
    assert max(own) <= 4 / 3 * 6 * one_layer / size
    for mine, live in zip(own, during, strict=True):
        # When the first layer's turn comes, stage 1 has all five others; stage 2 its own of them and the last bucket.
        assert live >= 5 * one_layer if stage == 1 else live <= mine + one_layer


def volume(rank, size):
    model = layers()
    zero = ZeRO(model, torch.optim.SGD(model.parameters(), lr=0.1), stage=2, bucket_bytes=3000)
    with counting() as reduced:
        model(torch.ones(2, 24)).sum().backward()
        zero.finish()
    with counting() as shared:
        zero.step()
    return reduced.total(), shared.total()


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_sent_is_what_the_formula_says(size):
    """(N - 1) / N of the gradients (and a flag for each) and of the parameters, on average over ranks."""
    results = run_ranks(volume, size)
    parameters = 4 * 6 * (24 * 24 + 24)
    assert sum(reduced for reduced, _ in results) == (size - 1) * (parameters + 4 * 12)
    assert sum(shared for _, shared in results) == (size - 1) * parameters


def clipping(rank, size):
    for dtype in (torch.float32, torch.float64):
        for max_norm in (0.01, 1e6, float("inf")):
            model, whole = layers().to(dtype), layers().to(dtype)
            zero = ZeRO(model, torch.optim.SGD(model.parameters(), lr=0.1))
            inputs = [torch.linspace(-r, 2, 48, dtype=dtype).view(2, 24) for r in range(size)]
            model(inputs[rank]).square().sum().backward()
            zero.finish()
            norm = zero.clip(max_norm, divisor=7.0)
            for x in inputs:
                whole(x).square().sum().backward()
            expected = optim.clip_by_global_norm(whole.parameters(), max_norm, divisor=7.0)
            assert torch.equal(norm, expected)
            for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                assert p.grad is None or torch.equal(p.grad, q.grad)
    with pytest.raises(ValueError, match="max_norm"):
        zero.clip(0.0)
    if rank == 0:
        next(p for p in model.parameters() if p.grad is not None).grad[:] = torch.nan
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert zero.clip(1.0).isnan(), "a rank does not know of another's NaN"
    for gradient, old in zip([p.grad for p in model.parameters() if p.grad is not None], before, strict=True):
        assert torch.equal(gradient.nan_to_num(), old.nan_to_num())


@pytest.mark.parametrize("size", [1, 3])
def test_the_norm_is_that_of_all_ranks_gradients(size):
    run_ranks(clipping, size)


def on_one_rank_of(rank, size, weights, state, first, steps):
    """Rank 0 has all tokens, so the sums are the same on any number of ranks."""
    model = Awkward(torch.float64, seed=rank)
    if weights is not None and rank == 0:  # the others get them from rank 0
        model.load_state_dict(weights)
    zero = ZeRO(model, optim.AdamW(model, lr=1e-2), stage=1 + size % 2)
    if state is not None:
        zero.param_groups[0]["lr"] = 123.0
        zero.load_state_dict(state)
        assert same_state(zero.state_dict(), state)
    for step in range(first, first + steps):
        zero.zero_grad()
        if rank == 0:
            backward(model, tokens_of(step, 0))
        zero.finish()
        zero.step()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return weights, zero.state_dict()


def same_state(a, b):
    return (
        a["groups"] == b["groups"]
        and a["state"].keys() == b["state"].keys()
        and all(
            list(states) == list(b["state"][name])
            and all(torch.equal(t, b["state"][name][k]) for k, t in states.items())
            for name, states in a["state"].items()
        )
    )


def test_a_state_fits_any_number_of_ranks():
    weights = state = None
    for number, size in enumerate((1, 2, 4, 1)):
        results = run_ranks(on_one_rank_of, size, weights, state, 4 * number, 4)
        weights, state = results[0]
        for others, same in results[1:]:
            assert same_state(same, state) and all(torch.equal(others[name], t) for name, t in weights.items())
    model = Awkward(torch.float64)
    optimizer = optim.AdamW(model, lr=1e-2)
    for step in range(16):
        optimizer.zero_grad()
        backward(model, tokens_of(step, 0))
        optimizer.step()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    names = {p: name for name, p in model.named_parameters()}
    assert state["state"].keys() == {names[p] for p in optimizer.state}
    for p, states in optimizer.state.items():
        assert all(torch.equal(state["state"][names[p]][key], value) for key, value in states.items())


def accumulating(rank, size):
    """Whole gradients within no_sync, or divided ones with `finish` after each: the same sum but for its order."""
    found = []
    for divided in (False, True):
        model = Awkward(torch.float64)
        zero = ZeRO(model, torch.optim.SGD(model.parameters(), lr=0.01), bucket_bytes=500)
        for number in range(3):
            if divided or number == 2:
                backward(model, tokens_of(1, 10 * rank + number))
                zero.finish()
            else:
                with zero.no_sync(), counting() as sent:
                    backward(model, tokens_of(1, 10 * rank + number))
                assert not sent
        zero.step()
        found.append(model)
    whole = Awkward(torch.float64)
    for number in (10 * r + n for r in range(size) for n in range(3)):
        backward(whole, tokens_of(1, number))
    torch.optim.SGD(whole.parameters(), lr=0.01).step()
    for model in found:
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_gradients_accumulate():
    run_ranks(accumulating, 2)


def misuse(rank, size):
    model = Awkward()
    with pytest.raises(ValueError, match="stage=3"):
        ZeRO(model, optim.AdamW(model, lr=0.01), stage=3)
    with pytest.raises(ValueError, match="not the model's"):
        ZeRO(model, optim.AdamW(Awkward(), lr=0.01))
    with pytest.raises(ValueError, match="together"):
        ZeRO(model, optim.muon_adamw(model, together=lambda stacks, steps, dtype: stacks))
    zero = ZeRO(model, optim.AdamW(model, lr=0.01), stage=1)
    backward(model, torch.arange(6))
    with pytest.raises(RuntimeError, match="call finish"):
        zero.step()
    zero.finish()
    zero.step()
    state, before = zero.state_dict(), zero.state_dict()
    state["state"]["nobody"] = {}
    with pytest.raises(ValueError, match="nobody"):
        zero.load_state_dict(state)
    del state["state"]["nobody"]
    state["groups"][0]["params"] = state["groups"][0]["params"][::-1]
    with pytest.raises(ValueError, match="groups"):
        zero.load_state_dict(state)
    state = zero.state_dict()
    for name in state["state"]:
        state["state"][name]["exp_avg"] = torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match="has shape"):
        zero.load_state_dict(state)
    assert same_state(zero.state_dict(), before)
    zero.remove()
    dist.barrier()


def test_what_cannot_be_is_refused():
    run_ranks(misuse, 2)
