"""Recipes run, at a size of seconds, and leave what they promise. Their losses are held to sums by hand."""

import json
import math

import numpy as np
import pytest
import torch

from groundup.config import override
from groundup.inference import Engine, SamplingParams
from groundup.model import Transformer
from groundup.presets import llama
from groundup.recipes import RECIPES, run
from groundup.recipes.curve import first_tokens, score
from groundup.recipes.run import make_model, make_optimizer, schedule

TINY = [
    "model.num_layers=1", "model.d_model=16", "model.context_length=16", "batch_size=4", "compile=false",
    "precision=fp32", "warmup=2",
]  # fmt: skip
VERSE = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 12


def heads(recipe) -> list[str]:
    """One head of eight channels, whatever the recipe's number."""
    return [f"model.blocks.0.mixer.{name}" for name in ("num_heads=1", "num_kv_heads=1", "d_head=8")]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_a_made_up_text(name, tmp_path):
    recipe = RECIPES[name]
    small = [*TINY, *heads(recipe), "model.blocks.0.ffn.d_ff=16", "tokens=2560", "minutes=null", "curve_points=3"]
    if not recipe.tail:
        small.append("model.vocab_size=280")
    recipe = override(recipe, *small)
    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text(VERSE if recipe.tail else f"{VERSE}<|endoftext|>" * 3, encoding="utf-8")
    valid.write_text(f"{VERSE[:90]}<|endoftext|>{VERSE[200:300]}", encoding="utf-8")
    out = tmp_path / "run"
    result = run(recipe, [train], [] if recipe.tail else [valid], out=out, device="cpu", progress=False)
    assert result["steps"] == 40 and result["tokens"] == 2560
    assert 0 < result["loss"] < math.log(recipe.model.vocab_size)  # it has learnt something
    assert result == json.loads((out / "result.json").read_text())
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [10, 20, 30]
    assert curve[0]["loss"] > curve[-1]["loss"] and curve[0]["seconds"] < curve[-1]["seconds"]
    assert {"recipe.json", "env.json", "metrics.jsonl", "model.safetensors"} <= {p.name for p in out.iterdir()}
    text = Engine.load(out, device="cpu").generate("To be", SamplingParams(max_tokens=5, temperature=0.0)).text
    assert isinstance(text, str)


def test_a_clock_ends_the_run_and_a_full_folder_is_refused(tmp_path):
    recipe = RECIPES["tinyshakespeare-cpu"]
    recipe = override(recipe, *TINY, *heads(recipe), "minutes=0.05")
    file = tmp_path / "t.txt"
    file.write_text(VERSE, encoding="utf-8")
    result = run(recipe, [file], out=tmp_path / "run", device="cpu", progress=False)
    assert result["stopped_by"] == "clock" and result["clock"] == "everything"
    assert not (tmp_path / "run" / "curve.jsonl").exists()  # this recipe spends nothing on scores
    with pytest.raises(ValueError, match="not empty"):
        run(recipe, [file], out=tmp_path / "run", device="cpu")


def test_a_recipe_trains_in_int8(tmp_path):
    """Its products differ from bf16's by a little, and it learns as well."""
    sizes = [*TINY[2:], "model.num_layers=1", "model.d_model=32", "model.blocks.0.ffn.d_ff=64", "minutes=null"]
    heads = [f"model.blocks.0.mixer.{name}" for name in ("num_heads=2", "num_kv_heads=2", "d_head=16")]
    recipe = override(RECIPES["tinyshakespeare-cpu"], *sizes, *heads, "tokens=2560")
    file = tmp_path / "t.txt"
    file.write_text(VERSE, encoding="utf-8")
    losses = [
        run(override(recipe, f"precision={name}"), [file], out=tmp_path / name, device="cpu", progress=False)["loss"]
        for name in ("bf16", "int8")
    ]
    assert losses[0] != losses[1] == pytest.approx(losses[0], abs=0.05)


def test_a_seed_repeats_a_run_and_another_does_not(tmp_path):
    recipe = RECIPES["tinyshakespeare-cpu"]
    recipe = override(recipe, *TINY, *heads(recipe), "minutes=null", "tokens=640")
    file = tmp_path / "t.txt"
    file.write_text(VERSE, encoding="utf-8")
    losses = [
        run(recipe, [file], out=tmp_path / name, seed=seed, device="cpu", progress=False, data_folder=tmp_path / "data")
        ["loss"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]  # fmt: skip
    assert losses[0] == losses[1] != losses[2]


@torch.no_grad()
def test_the_score_is_the_mean_over_every_token_once():
    """Against one forward pass per window; the last one of a document reaches back, to be as long as the others."""
    model = Transformer(llama(vocab_size=11, num_layers=1, d_model=8, num_heads=1, context_length=4))
    documents = [np.arange(10) % 7, np.array([5, 3])]
    total = 0.0
    for ids in documents:
        known = np.concatenate([[10], ids])
        for first in range(0, len(ids), 4):
            end = min(first + 4, len(ids))
            row = torch.from_numpy(known[max(0, end - 4) : end + 1])
            nats = -model(row[None, :-1]).log_softmax(-1)[0].gather(1, row[1:, None])
            total += nats[first - end :].sum().item()
    assert score(model, documents, begin=10) == pytest.approx(total / 12, rel=1e-6)


def test_the_first_tokens_are_whole_documents():
    documents = [np.arange(5), np.arange(3), np.arange(9), np.arange(1)]
    assert [len(d) for d in first_tokens(documents, 8)] == [5, 3]
    assert [len(d) for d in first_tokens(documents, 4)] == [4]


def test_what_trains_by_which_rule():
    recipe = override(RECIPES["tinyshakespeare-cpu"], *TINY, *heads(RECIPES["tinyshakespeare-cpu"]))
    model = make_model(recipe, torch.device("cpu"), seed=0)
    optimizer = make_optimizer(recipe, model)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    matrices, tables, vectors = optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2} and matrices["lr"] == recipe.muon_rate
    assert matrices["weight_decay"] == recipe.weight_decay and tables["weight_decay"] == 0.0
    assert {id(p) for p in tables["params"]} == {id(model.embed.weight), id(model.head_weight)}
    assert {p.ndim for p in vectors["params"]} == {1}
    tokens = torch.randint(257, (2, 9))
    assert model(tokens).logsumexp(-1).mean().item() == pytest.approx(math.log(257), abs=0.05)


def test_the_rate_falls_by_steps_where_tokens_end_the_run():
    recipe = override(RECIPES["tinystories-cpu"], "tokens=819200", "batch_size=32", "warmup=10", "decay=0.5")
    rate = schedule(recipe)
    assert recipe.steps == 100
    assert [round(rate(step), 2) for step in (0, 9, 49, 75, 99)] == [0.1, 1.0, 1.0, 0.5, 0.02]


@pytest.mark.gpu
def test_a_recipe_runs_compiled_on_a_gpu_with_scores_on_the_way(tmp_path):
    recipe = RECIPES["tinyshakespeare-gpu"]
    sizes = ["model.num_layers=2", "batch_size=8", "model.context_length=64", "warmup=10", "curve_points=2"]
    recipe = override(recipe, *sizes, "tokens=30720", "compile=true", "precision=bf16")
    file = tmp_path / "t.txt"
    file.write_text(VERSE * 4, encoding="utf-8")
    result = run(recipe, [file], out=tmp_path / "run", device="cuda", progress=False)
    assert result["device"] == "cuda" and result["steps"] == 60
    assert result["loss"] < 4.0
    assert len((tmp_path / "run" / "curve.jsonl").read_text().splitlines()) == 2
