"""What holds for every optimizer alike: two paths, skipped steps, saved states, options."""

import copy

import pytest
import torch

from groundup.accounting import state_bytes
from groundup.optim import OPTIMIZERS, SGD, Lion, make_optimizer, stepping
from groundup.train import rehearse_config, snapshot
from tests.optim.stepping_cases import CASES, OURS, make, problem, run
from tests.train.small import Batches, same_weights, tiny_model, tiny_run

BITWISE = [name for name in OURS if not name.startswith(("adafactor", "soap"))]
ROUNDED = [name for name in OURS if name.startswith(("adafactor", "soap"))]


@pytest.mark.parametrize("name", BITWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_path_has_the_bits_of_the_reference(name, dtype):
    fast, _ = run(make(name), dtype)
    plain, _ = run(make(name, foreach=False), dtype)
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 2e-7)])
def test_the_fast_path_equals_the_reference_to_rounding(name, dtype, tolerance):
    """Sums over stacks go in another order, and the step count is a float32 scalar instead of an integer."""
    fast, _ = run(make(name), dtype)
    plain, _ = run(make(name, foreach=False), dtype)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("foreach", [False, True])
def test_a_skipped_step_never_happened(name, foreach):
    """Weights and every state are those of a run that never saw the bad gradients; among them the very first step."""

    def train(give_bad):
        params, new_gradients = problem()
        optimizer = make(name, foreach=foreach)(params)
        for step in range(14):
            new_gradients(step)
            bad = step in (0, 4, 8, 9)
            if bad:
                params[0].grad = torch.full_like(params[0], float("nan"))
            if give_bad or not bad:
                optimizer.step(skip=torch.tensor(float(bad)))
        return params, optimizer

    ours, expected = train(give_bad=True), train(give_bad=False)
    for a, b in zip(ours[0], expected[0], strict=True):
        assert torch.equal(a, b)
        mine, theirs = ours[1].state[a], expected[1].state[b]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", OURS)
def test_a_step_that_might_be_skipped_and_is_not_has_the_same_bits(name):
    def train(**skip):
        params, new_gradients = problem()
        optimizer = make(name)(params)
        for step in range(6):
            new_gradients(step)
            optimizer.step(**skip)
        return params

    for a, b in zip(train(), train(skip=torch.tensor(0.0)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OURS)
def test_the_states_are_those_declared_and_load_back_to_the_bit(name):
    params, optimizer = run(make(name), steps=5)
    for p in params:
        shapes = optimizer.state_shapes(p, optimizer.param_groups[0])
        assert {key: t.shape for key, t in optimizer.state[p].items()} == shapes
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(name)(copies)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(params, copies, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumes_from_its_checkpoint_to_the_bit(name, tmp_path):
    """Of a real model, through files: factored moments and bases have shapes of their own."""

    def fresh():
        model = tiny_model()
        return model, make_optimizer(name, model, lr=3e-3)

    model, optimizer = fresh()
    tiny_run(12, model=model, optimizer=optimizer)
    again, other = fresh()
    tiny_run(7, model=again, optimizer=other, run_dir=tmp_path, checkpoint_every=7)
    again, other = fresh()
    source = Batches()
    tiny_run(12, model=again, optimizer=other, source=source, run_dir=tmp_path, checkpoint_every=100, resume=True)
    assert same_weights(model, again)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("adamw", "muon_adamw")])
def test_a_bad_batch_is_undone_with_a_queue_as_without(name):
    def train(**options):
        model = tiny_model()
        _, _, made = tiny_run(10, model=model, optimizer=make_optimizer(name, model, lr=3e-3), **options)
        return model, made

    bad = {4: {"mask": torch.zeros(4, 9)}}  # a batch without any weight: its mean is NaN
    plain, _ = train(source=Batches(left_out=(4,)))
    queued, made = train(source=Batches(changed=bad), lookahead=1)
    assert made.skipped == 1 and same_weights(plain, queued)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_a_small_model(name):
    model = tiny_model()
    rate = {"sgd": 0.5, "momentum": 0.1, "nesterov": 0.1, "adagrad": 0.05, "lion": 1e-3, "adafactor": 0.1}.get(
        name, 3e-3
    )
    _, _, made = tiny_run(40, model=model, optimizer=make_optimizer(name, model, lr=rate), schedule=None)
    assert sum(made.losses[-5:]) / 5 < 0.9 * made.losses[0]


@pytest.mark.parametrize("name", ["momentum", "lion", "adafactor", "soap"])
def test_a_rehearsal_knows_what_it_keeps(name):
    config = tiny_model().config
    found = rehearse_config(config, 2, 8, optimizer=name)
    assert found.held["optimizer"] == state_bytes(tiny_model(), name)


def test_a_model_is_split_into_groups_with_and_without_decay():
    optimizer = SGD(tiny_model(), lr=0.1, weight_decay=0.2)
    assert [(group["name"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("decay", 0.2),
        ("no_decay", 0.0),
    ]


def test_parameters_without_gradient_are_left_alone_and_a_closure_is_called():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([a, b], lr=0.1, momentum=0.9)

    def closure():
        loss = (3 * a).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert b not in optimizer.state and torch.equal(b.data, torch.ones(2))
    torch.testing.assert_close(a.data, torch.full((2,), 0.7))


def test_a_misspelt_group_option_is_refused_with_the_nearest():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="Lion: a group's option 'weigth_decay' is unknown.*weight_decay"):
        Lion([{"params": [p], "weigth_decay": 0.0}])
    assert Lion([{"params": [p], "name": "all", "lr": 0.5}]).param_groups[0]["lr"] == 0.5


def test_names_and_options_that_are_unknown_are_refused_with_the_nearest():
    model = tiny_model()
    with pytest.raises(ValueError, match="optimizer 'adafactr' is unknown.*adafactor"):
        make_optimizer("adafactr", model)
    with pytest.raises(ValueError, match="optimizer soap: option 'frequencey' is unknown.*frequency"):
        make_optimizer("soap", model, frequencey=3)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}])
def test_impossible_options_are_refused(name, options):
    kind, own = CASES[name]
    with pytest.raises(ValueError, match=f"{kind.__name__} {next(iter(options))}="):
        kind([torch.nn.Parameter(torch.ones(1))], **({"lr": 0.1} | own | options))


def test_chunks_are_of_one_type_and_bounded_and_whole():
    params = [torch.ones(4), torch.ones(4, dtype=torch.float64), torch.ones(100), torch.ones(4), torch.ones(())]
    made = list(stepping.chunks(params, most_bytes=40))
    assert [[t.numel() for t in chunk] for chunk in made] == [[4], [100], [4, 1], [4]]
    assert [chunk[0].dtype for chunk in made] == [torch.float32] * 3 + [torch.float64]


def test_chunks_do_not_change_the_result(monkeypatch):
    whole, _ = run(make("adafactor"), steps=10)
    monkeypatch.setattr(stepping.Stepping, "chunk_bytes", 100)
    parts, _ = run(make("adafactor"), steps=10)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_state_of_another_shape_is_refused_by_its_name(tmp_path):
    model = tiny_model()
    optimizer = make_optimizer("adafactor", model)
    tiny_run(2, model=model, optimizer=optimizer)
    tensors = snapshot.capture(model, optimizer)
    name = next(key for key in tensors if key.startswith("optimizer.row_mean."))
    tensors[name] = tensors[name].mT.contiguous()
    with pytest.raises(ValueError, match="row_mean of .* has shape"):
        snapshot.restore(tensors, model, optimizer)
