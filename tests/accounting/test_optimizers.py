"""What an optimizer keeps and does: held to what it allocates, and to a counter of FLOPs."""

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup import presets
from groundup.accounting import optimizer_ledger, state_bytes, step_work, training_ledger, training_memory, update_rows
from groundup.accounting.optimizers import ELEMENTWISE_FLOPS, MOVED, SOAP_PERIOD, OptimizerName
from groundup.model import Transformer
from groundup.optim import OPTIMIZERS, SOAP, make_optimizer

NAMES = get_args(OptimizerName)
CONFIG = presets.llama(d_model=16, num_layers=2, num_heads=2, d_ff=24, vocab_size=40)


def test_the_table_knows_every_optimizer():
    assert set(NAMES) == set(OPTIMIZERS)
    assert ELEMENTWISE_FLOPS.keys() == MOVED.keys() == {*NAMES, "muon"} - {"muon_adamw"}


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_that_a_step_allocates(name):
    model = Transformer(CONFIG)
    optimizer = make_optimizer(name, model, lr=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    members = getattr(optimizer, "optimizers", [optimizer])
    kept = sum(t.nbytes for member in members for state in member.state.values() for t in state.values())
    with torch.device("meta"):
        assert state_bytes(Transformer(CONFIG), name) == kept
    assert training_memory(CONFIG, 1, 8, optimizer_states=name).optimizer == kept


def test_states_by_hand():
    """One matrix of 4 x 6: none, one, two; a row and a column; and for SOAP two squares of either side."""
    model = torch.nn.Linear(6, 4, bias=False)
    assert {name: state_bytes(model, name) // 4 for name in NAMES} == {
        "sgd": 0, "momentum": 24, "nesterov": 24, "adagrad": 24, "rmsprop": 24, "lion": 24, "adamw": 2 * 24 + 1,
        "adafactor": 4 + 6 + 1, "muon_adamw": 24, "soap": 2 * 24 + 1 + 2 * 16 + 2 * 36,
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_ledgers_of_flops_and_bytes_have_every_optimizer(name):
    count = sum(p.numel() for p in Transformer(CONFIG).parameters())
    rows = [row for row in training_ledger(CONFIG, 8, optimizer=name) if row.phase == "optimizer"]
    assert rows == optimizer_ledger(CONFIG, name)
    moved = [row for row in step_work(CONFIG, "train", batch=1, seq=8, optimizer=name) if row.phase == "optimizer"]
    assert [(row.name, row.flops) for row in moved] == [(row.name, row.flops) for row in rows]
    # A parameter is read and written, and its gradient read.
    assert sum(row.bytes_moved for row in moved) >= 3 * 4 * count
    if name not in ("muon_adamw",):
        assert rows[0].flops == ELEMENTWISE_FLOPS[name] * count


def test_soaps_products_equal_torchs_counter():
    """Of one step without a renewal, on two matrices, one of which has a basis on one side only."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(4, 6, bias=False))
    optimizer = SOAP(model)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
    rows = {row.name: row for row in update_rows(model, "soap")}
    assert rows["soap_products"].flops == counter.get_total_flops()
    sides = (4, 6, 4, 6)
    assert rows["soap_bases"].flops == sum(14 * s**3 for s in sides) // (3 * SOAP_PERIOD)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_optimizer_names_the_nearest():
    for asked in (state_bytes, update_rows):
        with pytest.raises(ValueError, match="did you mean 'adafactor'"):
            asked(torch.nn.Linear(2, 2), "adafactr")  # type: ignore[arg-type]
