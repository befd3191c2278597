"""A model from the meta device gets the memory that torch's own way would give it."""

import torch

from groundup import presets
from groundup.model import Transformer
from groundup.model.empty import to_empty


def described(model):
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: (t.shape, t.dtype, t.stride(), t.device, t.requires_grad) for name, t in named}


def test_it_leaves_what_torch_leaves():
    sizes = {"vocab_size": 50, "d_model": 16, "num_layers": 2, "num_heads": 2}
    for config in (presets.llama(**sizes), presets.gpt2(**sizes)):
        with torch.device("meta"):
            ours, torchs = Transformer(config), Transformer(config)
        ours.embed.weight.requires_grad_(False)
        torchs.embed.weight.requires_grad_(False)
        to_empty(ours, torch.device("cpu"))
        torchs.to_empty(device=torch.device("cpu"))
        assert described(ours) == described(torchs)
        assert not any(p.is_meta for p in ours.parameters())


def test_a_shared_parameter_becomes_what_torch_makes_of_it():
    with torch.device("meta"):
        first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    both = torch.nn.ModuleList([first, second])
    torchs = torch.nn.ModuleList([torch.nn.Linear(3, 3, device="meta"), torch.nn.Linear(3, 3, device="meta")])
    torchs[1].weight = torchs[0].weight
    to_empty(both, torch.device("cpu"))
    torchs.to_empty(device="cpu")
    assert (first.weight is second.weight) == (torchs[0].weight is torchs[1].weight)
