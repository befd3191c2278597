import pytest
import torch

from groundup import presets
from groundup.model.transformer import Transformer
from groundup.optim.groups import describe, groups, kind, split_for_muon


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embed.weight", (10, 4), "embedding"),
        ("positions.weight", (10, 4), "embedding"),
        ("head.weight", (10, 4), "head"),
        ("blocks.0.mixer.wq.weight", (4, 4), "matrix"),
        ("blocks.0.mixer.wq.bias", (4,), "vector"),
        ("blocks.0.ffn.experts", (2, 4, 4), "matrix"),
        ("blocks.0.mixer_norm.weight", (4,), "vector"),
        ("blocks.0.mixer.q_norm.weight", (1, 4), "vector"),
        ("scale", (), "vector"),
    ],
)
def test_kind_of_each_name(name, shape, expected):
    assert kind(name, torch.zeros(shape)) == expected


def tiny(**options):
    return Transformer(presets.llama(vocab_size=11, d_model=8, num_layers=2, num_heads=2, d_head=4, d_ff=16, **options))


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_one_group(tied):
    model = tiny(tie_embeddings=tied)
    table = {group["name"]: group for group in groups(model, 0.1)}
    assert table["decay"]["weight_decay"] == 0.1 and table["no_decay"]["weight_decay"] == 0.0
    numbers = [id(p) for group in table.values() for p in group["params"]]
    assert sorted(numbers) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim >= 2 for p in table["decay"]["params"])
    assert any(p is model.embed.weight for p in table["no_decay"]["params"])


def test_muon_gets_exactly_the_matrices_in_the_blocks():
    model = tiny()
    matrices, rest = split_for_muon(model)
    expected = {id(p) for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2}
    assert {id(p) for p in matrices} == expected
    assert {name for name, _ in rest} >= {"embed.weight", "head.weight", "final_norm.weight"}


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model = torch.nn.Linear(2, 2, bias=False)
    assert [g["name"] for g in groups(model, 0.1)] == ["decay"]
    model.weight.requires_grad_(False)
    assert groups(model, 0.1) == []


def test_the_table_is_readable():
    lines = describe(tiny()).splitlines()
    assert any(line.split() == ["embed.weight", "11x8", "embedding", "-", "adamw"] for line in lines)
    assert any(line.split() == ["blocks.0.mixer.wq.weight", "8x8", "matrix", "decay", "muon"] for line in lines)
