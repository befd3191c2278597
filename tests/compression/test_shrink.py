import copy
import dataclasses

import pytest
import torch

from groundup.accounting import count_parameters
from groundup.compression.importance import part_scores
from groundup.compression.shrink import Smaller, choose_parts, shrink, silence
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.model.gguf import load_gguf, save_gguf
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.tokenizer import Tokenizer
from tests.compression.small import batches, small_model

SMALLER = [
    Smaller(num_heads=2, num_kv_heads=2),
    Smaller(num_heads=2, num_kv_heads=1),
    Smaller(num_heads=1, num_kv_heads=1, d_ff=20),
    Smaller(num_layers=2),
    Smaller(num_layers=1, num_heads=2, num_kv_heads=1, d_ff=13),
]


def changed(model, **mixer):
    """The same weights where they fit, with another attention; sinks and biases are made to matter."""
    block = model.config.blocks[0]
    config = dataclasses.replace(
        model.config, blocks=(dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, **mixer)),)
    )
    new = Transformer(config).eval()
    torch.manual_seed(1)
    for name, parameter in new.named_parameters():
        if "sinks" in name or "bias" in name:
            torch.nn.init.normal_(parameter)
    return new


@pytest.mark.parametrize("smaller", SMALLER)
@pytest.mark.parametrize("by", ["weights", "activations", "gradients"])
def test_the_small_model_is_the_silenced_one(smaller, by):
    model = small_model()
    kept = choose_parts(model.config, part_scores(model, by, batches()), smaller)
    small, masked = shrink(model, kept), silence(copy.deepcopy(model), kept)
    tokens = batches()[0]["tokens"]
    with torch.no_grad():
        torch.testing.assert_close(small(tokens), masked(tokens), rtol=1e-5, atol=1e-5)
        assert float((small(tokens) - model(tokens)).abs().max()) > 1e-2
    assert sum(p.numel() for p in small.parameters()) == count_parameters(small.config).total
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "variant", [dict(bias=True, out_bias=True), dict(qk_norm=True), dict(sinks=True), dict(window=4), dict(scale=0.3)]
)
def test_every_kind_of_attention(variant):
    model = changed(small_model(tie_embeddings=True), **variant)
    kept = choose_parts(model.config, part_scores(model), Smaller(num_heads=1, num_kv_heads=1, d_ff=24))
    small, masked = shrink(model, kept), silence(copy.deepcopy(model), kept)
    tokens = batches()[0]["tokens"]
    with torch.no_grad():
        torch.testing.assert_close(small(tokens), masked(tokens), rtol=1e-5, atol=1e-5)


def test_it_keeps_what_matters():
    """Heads and channels that were silent before are those that go, and nothing changes."""
    model = small_model()
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            block.mixer.wo.weight.view(32, 4, 8)[:, [(1 + i) % 2, 2 + i % 2]] = 0  # pyright: ignore
            block.ffn.down.weight[:, i % 2 :: 2] = 0  # pyright: ignore
    tokens = batches()[0]["tokens"]
    for by in ("weights", "activations", "gradients"):
        kept = choose_parts(model.config, part_scores(model, by, batches()), Smaller(num_heads=2, d_ff=24))
        assert [parts.heads.tolist() for parts in kept] == [[0, 3], [1, 2], [0, 3]]
        with torch.no_grad():
            torch.testing.assert_close(shrink(model, kept)(tokens), model(tokens), rtol=1e-5, atol=1e-5)


def test_it_saves_loads_and_generates_everywhere(tmp_path):
    tokenizer = Tokenizer.train_from_iterator(["the cat"], 259, special_tokens=["<|endoftext|>"])
    model = small_model(vocab_size=260)
    smaller = Smaller(num_layers=2, num_heads=2, num_kv_heads=1, d_ff=40)
    small = shrink(model, choose_parts(model.config, part_scores(model), smaller))
    tokens = batches()[0]["tokens"]
    save_pretrained(small, None, tmp_path / "hf")
    save_gguf(small, tmp_path / "small.gguf", None, "f32", "small")
    for again in (load_pretrained(tmp_path / "hf"), load_gguf(tmp_path / "small.gguf")):
        assert (again.config.num_layers, again.config.blocks[0].ffn.d_ff) == (2, 40)  # pyright: ignore
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(tokens), small(tokens), rtol=1e-5, atol=1e-5)
    answers = [
        Engine(m, tokenizer).generate([5, 6, 7], temperature=0, max_tokens=8).tokens
        for m in (small, silence(copy.deepcopy(model), choose_parts(model.config, part_scores(model), smaller)))
    ]
    assert answers[0] == answers[1]


def test_layers_of_several_kinds_keep_their_own_block():
    model = small_model()
    local = dataclasses.replace(
        model.config.blocks[0], mixer=dataclasses.replace(model.config.blocks[0].mixer, window=3)
    )
    model = Transformer(dataclasses.replace(model.config, blocks=(local, local, model.config.blocks[0]))).eval()
    with torch.no_grad():
        model.blocks[0].mixer.wo.weight.zero_()  # pyright: ignore
        model.blocks[0].ffn.down.weight.zero_()  # pyright: ignore
    kept = choose_parts(model.config, part_scores(model), Smaller(num_layers=2))
    small = shrink(model, kept)
    assert [parts.layer for parts in kept] == [1, 2]
    assert small.config.blocks == (local, model.config.blocks[2])
    tokens = batches()[0]["tokens"]
    with torch.no_grad():
        torch.testing.assert_close(small(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("smaller", "match"),
    [
        (Smaller(num_layers=4), "num_layers=4; the model has 3"),
        (Smaller(num_heads=3, num_kv_heads=2), "num_heads=3 over num_kv_heads=2"),
        (Smaller(num_kv_heads=3), "num_kv_heads=3"),
        (Smaller(d_ff=49), "d_ff=49"),
    ],
)
def test_what_cannot_be_is_named(smaller, match):
    model = small_model()
    with pytest.raises(ValueError, match=match):
        choose_parts(model.config, part_scores(model), smaller)


def test_attention_whose_heads_hang_together_is_refused():
    for variant, match in ((dict(qk_norm="whole"), "one norm spans"), (dict(alibi=True, rope=None), "ALiBi")):
        model = changed(small_model(), **variant)
        with pytest.raises(ValueError, match=match):
            choose_parts(model.config, part_scores(model), Smaller(num_heads=2))
