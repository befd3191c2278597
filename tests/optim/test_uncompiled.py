"""An optimizer keeps its books as torch's does, and a program that compiles nothing never loads the compiler."""

import subprocess
import sys

import pytest
import torch

from groundup.optim import AdamW
from groundup.optim.uncompiled import Uncompiled

PROGRAM = """
import sys
import torch
from groundup import presets
from groundup.model import Transformer
from groundup.optim import muon_adamw

model = Transformer(presets.llama(vocab_size=20, d_model=16, num_layers=1, num_heads=2))
optimizer = muon_adamw(model)
for _ in range(2):
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
print([module for module in ("torch._dynamo", "sympy", "triton") if module in sys.modules])
"""


def test_training_without_the_compiler_does_not_load_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_books_are_torchs():
    here, there = (torch.nn.Parameter(torch.arange(3.0)) for _ in range(2))
    ours, torchs = AdamW([here], lr=0.1), torch.optim.AdamW([there], lr=0.1)
    assert isinstance(ours, Uncompiled)
    for optimizer, p in ((ours, here), (torchs, there)):
        p.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert p.grad is None
    (mine,), (other,) = ours.state_dict()["state"].values(), torchs.state_dict()["state"].values()
    assert mine["step"] == other["step"] == 1
    assert ours.state_dict()["param_groups"][0]["params"] == torchs.state_dict()["param_groups"][0]["params"] == [0]
    with pytest.raises(ValueError, match="more than one parameter group"):
        ours.add_param_group({"params": [here]})
    ours.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5})
    assert [group["lr"] for group in ours.param_groups] == [0.1, 0.5]
