"""Checkpoints of many ranks: what is loaded under any layout has the bits of what was saved under any other."""

import os

import torch
from torch import nn

from groundup.optim import AdamW
from groundup.parallel import checkpoint_index, save_attempt
from groundup.parallel.pieces import Parts
from groundup.parallel.sharded_checkpoint import load_sharded, read_whole
from groundup.parallel.sharded_saving import ShardedSaver, latest_sharded

STATE = {"loader": {"samples": 12}, "rng": [1, 2], "text": "ü", "none": None}


class Small(nn.Module):
    """Shapes and types that are easily forgotten, and a tied weight."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 9)
        self.short = nn.Parameter(torch.randn(5).to(torch.bfloat16))
        self.scalar = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.randn(3, dtype=torch.float64), requires_grad=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("counts", torch.arange(4) + seed)


def stepped(model, seed=0):
    """An AdamW of the model with states as after training."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=False)
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    optimizer.step()
    return optimizer


def bits(model, optimizer):
    """Every tensor of both, by name, as they are in a checkpoint."""
    parts = Parts.of_modules([model], optimizer)
    states = {f"optimizer.{key}.{name}": piece.tensor for name, key, piece in parts.states()}
    return {f"model.{name}": piece.tensor.clone() for name, piece in parts.weights.items()} | {
        name: tensor.clone() for name, tensor in states.items()
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def save_one(folder, step=3, seed=0, **options):
    model = Small(seed)
    optimizer = stepped(model)
    with ShardedSaver(folder, **options) as saver:
        saver.save(step, Parts.of_modules([model], optimizer), STATE)
        path = saver.finish()
    return path, bits(model, optimizer)


def other():
    model = Small(seed=5)
    return model, stepped(model)


def test_round_trip_on_one_process(tmp_path):
    path, saved = save_one(tmp_path / "run")
    assert path == tmp_path / "run" / "step-3" == latest_sharded(tmp_path / "run")
    model, optimizer = other()
    assert not same(bits(model, optimizer), saved)
    assert load_sharded(path, Parts.of_modules([model], optimizer)) == STATE
    assert same(bits(model, optimizer), saved)
    assert same(read_whole(path, ""), saved)
    assert set(read_whole(path)) == {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    assert sorted(os.listdir(tmp_path / "run")) == ["step-3"]
    assert sorted(os.listdir(path)) == ["index.json", "rank-00000-00001.safetensors"]


def test_weights_without_an_optimizer_and_states_that_never_were(tmp_path):
    path, saved = save_one(tmp_path)
    model = Small(1)
    load_sharded(path, Parts.of_modules([model]))
    assert same(bits(model, None), {name: t for name, t in saved.items() if name.startswith("model.")})
    with ShardedSaver(tmp_path) as saver:
        saver.save(4, Parts.of_modules([model], AdamW(model.parameters(), lr=1e-2)))
    model, optimizer = other()
    assert load_sharded(tmp_path / "step-4", Parts.of_modules([model], optimizer)) == {}
    assert list(Parts.of_modules([model], optimizer).states()) == []


def test_many_files_and_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(save_attempt, "SHARD_BYTES", 100)
    for module in (checkpoint_index, "groundup.parallel.stored_parts"):
        monkeypatch.setattr(*((module, "CHUNK_BYTES") if module is checkpoint_index else (f"{module}.CHUNK_BYTES",)), 16)  # fmt: skip
    path, saved = save_one(tmp_path)
    assert len(list(path.glob("*.safetensors"))) > 5
    assert same(read_whole(path, ""), saved)
    index = checkpoint_index.read_index(path)
    assert len(index.tensors["model.up.weight"].parts[0].crc32) == -(-6 * 9 * 4 // 16)
