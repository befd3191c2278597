"""Several optimizers as one: the same groups, steps in order, and states that belong to their owners."""

import pytest
import torch

from groundup.optim import AdamW, Optimizers


class Noting(torch.optim.SGD):
    """SGD that notes what it was asked."""

    supports_skip = True

    def __init__(self, params, lr, notes=None):
        super().__init__(params, lr, momentum=0.5)
        self.notes = [] if notes is None else notes

    def step(self, closure=None, *, skip=None):
        self.notes.append((self.param_groups[0]["lr"], None if skip is None else float(skip)))
        return super().step()


def parameter(value=1.0):
    p = torch.nn.Parameter(torch.full((2,), value))
    p.grad = torch.ones(2)
    return p


def pair():
    notes = []
    members = [Noting([parameter()], 0.1, notes), Noting([parameter()], 0.2, notes)]
    return Optimizers(members), notes


def test_a_rate_set_on_the_groups_reaches_its_owner():
    both, notes = pair()
    assert [group["lr"] for group in both.param_groups] == [0.1, 0.2]
    for group in both.param_groups:
        group["lr"] *= 10
    both.step()
    assert [rate for rate, _ in notes] == [1.0, 2.0]
    first, second = (group["params"][0] for group in both.param_groups)
    assert first.tolist() == [0.0, 0.0] and second.tolist() == [-1.0, -1.0]


def test_skipping_is_passed_on_and_needs_every_member():
    both, notes = pair()
    both.step()
    both.step(skip=torch.tensor(1.0))
    assert [skip for _, skip in notes] == [None, None, 1.0, 1.0]
    assert both.supports_skip
    assert not Optimizers([AdamW([parameter()], lr=0.1), torch.optim.SGD([parameter()], lr=0.1)]).supports_skip


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_of_all_members_are_cleared(set_to_none):
    both, _ = pair()
    both.zero_grad(set_to_none)
    gradients = [p.grad for group in both.param_groups for p in group["params"]]
    assert all(g is None if set_to_none else g is not None and not g.any() for g in gradients)


def test_states_go_back_to_their_owners():
    first, _ = pair()
    first.step()
    second, _ = pair()
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first.optimizers, second.optimizers, strict=True):
        mine, other = (next(iter(o.state.values()))["momentum_buffer"] for o in (ours, theirs))
        assert torch.equal(mine, other)


def test_another_number_of_members_is_refused():
    both, _ = pair()
    with pytest.raises(ValueError, match="the state has 2 optimizers, this one has 1"):
        Optimizers([AdamW([parameter()], lr=0.1)]).load_state_dict(both.state_dict())


def test_a_parameter_has_one_owner():
    shared = parameter()
    with pytest.raises(ValueError, match=r"a parameter of shape \(2,\) is in two optimizers"):
        Optimizers([Noting([parameter(), shared], 0.1), Noting([shared], 0.1)])
