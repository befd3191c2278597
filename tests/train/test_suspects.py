"""Rows of a batch and what is odd about them."""

import math

import pytest
import torch

from groundup.train import Loss, next_token
from groundup.train.suspects import (
    RowLoss,
    about_tokens,
    broken_tensors,
    describe,
    guilty,
    mean_loss,
    named_rows,
    row_losses,
)
from tests.train.small import batch, tiny_model


def test_rows_add_up_to_the_batch():
    model, mask = tiny_model(), torch.ones(4, 9)
    mask[1, 4:] = 0
    mask[2] = 0
    b = batch(0) | {"mask": mask}
    model.dropout = 0.5
    model.train()
    rows = row_losses(model, next_token, [b, batch(1)])
    assert [(row.batch, row.row) for row in rows] == [(0, 0), (0, 1), (0, 3)] + [(1, i) for i in range(4)]
    assert model.training and model.blocks[0].training
    model.eval()
    whole = next_token(model, b)
    assert mean_loss(rows[:3]) == pytest.approx(float(whole.total / whole.weight), rel=1e-5)
    assert mean_loss([]) is None


def test_the_guilty_by_hand():
    rows = [RowLoss(0, i, loss, 1.0) for i, loss in enumerate([1.0, 5.0, math.nan, 2.0])]
    assert {row.row for row in guilty(rows, 3.0)} == {1, 2}
    assert [row.row for row in guilty(rows[:2], 9.0)] == [1] and guilty([], 1.0) == []


def test_what_is_odd_about_tokens():
    assert about_tokens([17] * 49 + [3]) == "98 % one token (id 17), 98 % repeat the token before"
    assert about_tokens([1, 1, 2, 2, 3, 3, 4, 4, 5, 5]) == "56 % repeat the token before"
    assert about_tokens([4]) == "1 different tokens among 1" and about_tokens([]) == "no tokens"


def test_the_worst_token_has_its_place():
    model = tiny_model()
    b = batch(0)
    logits = model(b["tokens"][:, :-1])[2]
    nats = torch.nn.functional.cross_entropy(logits, b["tokens"][2, 1:], reduction="none")
    at = int(nats.argmax())
    text = describe(RowLoss(0, 2, float(nats.mean()), 8.0), model, b)
    share = 100 * float(nats[at] / nats.sum())
    assert f"worst at position {at + 1}, token id {int(b['tokens'][2, at + 1])}: {float(nats[at]):.3g} nats" in text
    assert f"{share:.0f} % of the row's loss" in text


def test_a_model_of_another_kind_is_described_without_its_tokens():
    row = describe(RowLoss(0, 0, 2.0, 1.0), torch.nn.Linear(1, 1), {"x": torch.ones(2, 3)})
    assert row == "loss 2"


def test_broken_data():
    x = torch.ones(3, 2)
    x[1, 0] = math.inf
    assert broken_tensors([{"tokens": torch.ones(3, 2, dtype=torch.long)}, {"x": x}]) == [(1, "x", [1])]


def test_an_objective_of_any_kind_is_asked_row_by_row():
    def objective(model, b):
        return Loss((b["x"] ** 2).sum(), torch.tensor(float(len(b["x"]))))

    rows = row_losses(torch.nn.Linear(1, 1), objective, [{"x": torch.tensor([1.0, 3.0])}], most=1)
    assert [(row.row, row.loss) for row in rows] == [(0, 1.0)]


def test_rows_in_words():
    assert named_rows([(0, 3)], 1) == "row 3"
    assert named_rows([(1, 2), (0, 0), (1, 0)], 2) == "row 0 of batch 0; rows 0, 2 of batch 1"
