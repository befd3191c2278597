"""Weights, optimizer state and generators as named tensors; what must not change between two sessions."""

import pytest
import torch

from groundup.optim import AdamW, muon_adamw
from groundup.train.snapshot import capture, fingerprint, restore
from tests.train.small import Batches, tiny_model, tiny_run


def test_everything_has_a_name():
    model, optimizer, _ = tiny_run(1)
    tensors = capture(model, optimizer)
    names = [name for name, _ in model.named_parameters()]
    expected = {f"model.{n}" for n in names} | {
        f"optimizer.{key}.{n}" for key in ("step", "exp_avg", "exp_avg_sq") for n in names
    }
    assert {name for name in tensors if not name.startswith("rng.")} == expected
    assert torch.equal(tensors["model.embed.weight"], model.embed.weight)


def test_state_goes_by_name_and_so_fits_another_grouping():
    model, optimizer, _ = tiny_run(3)
    tensors = {name: t.clone() for name, t in capture(model, optimizer).items()}
    other = tiny_model(seed=1)
    regrouped = AdamW([{"params": [p]} for p in reversed(list(other.parameters()))], lr=1e-2)
    restore(tensors, other, regrouped)
    again = capture(other, regrouped)
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[n], again[n]) for n in tensors)


def test_what_is_put_back_is_a_copy():
    model, optimizer, _ = tiny_run(1)
    tensors = {name: t.clone() for name, t in capture(model, optimizer).items()}
    restore(tensors, model, optimizer)
    optimizer.state[model.embed.weight]["exp_avg"].zero_()
    assert tensors["optimizer.exp_avg.embed.weight"].any()


def test_the_generator_goes_on_where_it_was():
    model, optimizer = tiny_model(), AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    tensors = {name: t.clone() for name, t in capture(model, optimizer).items()}
    expected = torch.rand(3)
    torch.manual_seed(99)
    restore(tensors, model, optimizer)
    assert torch.equal(torch.rand(3), expected)


def test_a_parameter_outside_the_model_goes_by_its_number():
    model, free = tiny_model(), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([free], lr=0.1)
    free.grad = torch.ones(2)
    optimizer.step()
    assert "optimizer.exp_avg.#0" in capture(model, optimizer)


def test_state_of_a_shape_that_no_parameter_has_is_refused():
    model, optimizer, _ = tiny_run(1)
    fault = {"optimizer.exp_avg_sq.head.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"there: exp_avg_sq of head.weight has shape \(3,\)"):
        restore(capture(model, optimizer) | fault, model, optimizer, "there")


def test_what_a_checkpoint_holds_its_continuation_to():
    model = tiny_model()
    facts = fingerprint(model, AdamW(model, lr=1e-2), Batches(), {"seed": 1})
    assert facts["source"] == {"fingerprint": None, "tokens_per_batch": 32} and facts["given"] == {"seed": 1}
    assert facts["model"]["num_layers"] == 2
    assert [group["class"] for group in facts["optimizer"]] == ["AdamW", "AdamW"]
    assert facts == fingerprint(model, AdamW(model, lr=5.0, fused=False), Batches(), {"seed": 1})  # rates may change
    assert facts != fingerprint(model, AdamW(model, lr=1e-2, weight_decay=0.5), Batches(), {"seed": 1})
    assert facts != fingerprint(model, muon_adamw(model), Batches(), {"seed": 1})
    assert fingerprint(torch.nn.Linear(1, 1), AdamW(model, lr=1e-2), [], None)["model"] == "Linear"
