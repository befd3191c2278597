"""The z-loss where it is used: from a setting to the logits of a run."""

import pytest
import torch

from groundup.build.settings import BuildSettings
from groundup.optim import AdamW
from groundup.train import Guard, Recorder, next_token, train
from groundup.train.objectives import multi_token, pretraining
from tests.train.small import Batches, batch, tiny_model


def test_the_setting_reaches_the_loss_and_adds_the_square_of_the_lse():
    model, z = tiny_model(), BuildSettings(z_loss=0.25).z_loss
    plain, pulled = pretraining(model)(model, batch(0)), pretraining(model, z)(model, batch(0))
    lse = model(batch(0)["tokens"][:, :-1]).logsumexp(-1)
    torch.testing.assert_close(pulled.total - plain.total, 0.25 * lse.square().sum(), rtol=1e-4, atol=1e-4)
    assert pretraining(model) is next_token and pulled.weight == plain.weight


def test_further_tokens_are_trained_as_without_it():
    model = tiny_model()
    model.multi_token = torch.nn.Identity()
    assert pretraining(model, 0.1).func is multi_token and pretraining(model) is multi_token


def trained(z_loss):
    model, recorder = tiny_model(), Recorder(every=1)
    run = train(
        model, Batches(), pretraining(model, z_loss), AdamW(model, lr=0.05), 100,
        progress=False, recorder=recorder, guard=Guard(sigma=None),
    )  # fmt: skip
    return [record["lse"] for record in recorder.ring], run.losses


def test_at_a_high_rate_logits_drift_without_it_and_stay_with_it():
    """A softmax sees only differences of logits, so nothing but this loss says where they are."""
    (free, _), (held, losses) = trained(0.0), trained(0.01)
    assert free[0] == pytest.approx(held[0], rel=0.1)
    assert max(free) > 2 * free[0] and min(free[-20:]) > 10
    assert max(map(abs, held[-20:])) < 1.5
    assert losses[-1] < 0.1  # it learned nonetheless
