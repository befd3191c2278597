"""The benchmark's bookkeeping, the text that it looks for, and the whole of it at a tiny size."""

import json
import math
import sys

import pytest
import torch

from groundup import bench, environ
from groundup.bench import shakespeare, shakespeare_program
from groundup.bench.race import Program
from groundup.bench.shakespeare import OURS, PEER, compare, find_text, losses, programs, table

VERSE = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 30


def ran(program: str, seed: int, loss: float) -> dict:
    return {
        "program": program, "seed": seed, "loss": loss, "loss_sliding": loss - 0.01, "context_length": 64,
        "train_seconds": 180.0, "steps": 5, "tokens": 50, "parameters": 7, "threads": 2,
        "validation_characters": 111_540,
        "versions": {"torch": "2"}, "environment": {"device": "a CPU"},
    }  # fmt: skip


MEASURED = [
    ran(OURS, 0, 1.5), ran(PEER, 0, 1.9), ran(OURS, 1, 1.6), ran(PEER, 1, 1.8), ran(OURS, 2, 1.4),
    {"program": PEER, "seed": 2, "failure": "was killed"},
]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE, encoding="utf-8")
    return path


def test_the_record_is_of_medians_and_shows_every_seed(text):
    made = compare(MEASURED, text, 180.0)
    assert (made.name, made.unit) == ("shakespeare", "nats per character")
    assert (made.ours, made.peer) == (1.5, pytest.approx(1.85))
    assert made.ratio == pytest.approx(1.85 / 1.5)  # less is better, and above 1 we lead
    assert made.details["measured"][OURS]["losses"] == [1.5, 1.6, 1.4]
    assert made.details["measured"][OURS]["range"] == [1.4, 1.6]
    assert made.details["context"] == {OURS: 64, PEER: 64}
    assert json.loads(made.line())["details"]["text"]["file"] == "verse.txt"  # without its folder


def test_the_spread_over_seeds_is_shown():
    said = shakespeare._spread(losses(MEASURED, OURS))
    assert said == "1.5000 nats per character (median of 3 seeds, from 1.4000 to 1.6000)"


def test_without_a_peer_there_is_no_ratio(text):
    made = compare([m for m in MEASURED if m["program"] == OURS], text, 180.0)
    assert (made.peer, made.peer_name, made.ratio) == (None, None, None)


def test_a_run_that_failed_is_a_row_with_its_reason():
    rows = table(MEASURED)
    assert len(rows) == 6
    assert rows[-1]["note"] == "was killed" and rows[-1]["loss"] is None
    assert losses(MEASURED[-1:], PEER) is None


def test_the_text_is_found_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "checkout", lambda: None)
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="--text FILE, or set GROUNDUP_DATA"):
        find_text(None)
    place = tmp_path / "pretrain" / "tinyshakespeare.txt"
    place.parent.mkdir()
    place.write_text("x", encoding="utf-8")
    assert find_text(None) == place
    with pytest.raises(ValueError, match="nowhere.txt: no such file"):
        find_text("nowhere.txt")


def test_a_missing_text_is_one_line_and_exit_code_1(capsys):
    assert bench.run("shakespeare", ["--text", "nowhere.txt"]) == 1
    assert capsys.readouterr().err == "groundup bench shakespeare: --text nowhere.txt: no such file\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--seeds", "0"], "more than 0"),
        (["--seconds", "9", "--save"], "--save is of the recipe as it is, 180 s and 2 threads"),
        (["--threads", "4", "--save"], "2 threads"),
        (["dropout=0.1", "--save"], "--save is of the recipe as it is"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, reason, capsys):
    with pytest.raises(SystemExit):
        shakespeare.main(words)
    assert reason in capsys.readouterr().err


def test_a_program_that_is_not_there_says_why(text):
    options = {"text": str(text), "seconds": 1.0, "seed": 0}
    assert "not installed" in shakespeare.measure(Program(text, "no_such_package"), options)["failure"]


def test_the_program_uses_that_cache_whatever_the_environment_says(tmp_path, monkeypatch):
    """Importing torch's compiler, here or in the command, sets the variable that children inherit."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    threads = torch.get_num_threads()
    given = {"recipe": shakespeare.RECIPE, "changes": [], "seconds": 1.0, "threads": threads}
    shakespeare_program.prepare({**given, "compiler_cache": str(tmp_path)})
    assert environ.env("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path)


def test_every_run_has_an_empty_compiler_cache_of_its_own(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os\ndef prepare(options):\n"
        "    cache = options['compiler_cache']\n"
        "    return {}, lambda units: {'cache': cache, 'held': os.listdir(cache)}\n",
        encoding="utf-8",
    )
    first, second = (shakespeare.measure(Program(script, "json"), {"seconds": 1.0}) for _ in range(2))
    assert first["held"] == second["held"] == []
    assert first["cache"] != second["cache"]


def test_a_number_that_the_recipe_lacks_is_refused_before_anything_runs(text, capsys):
    assert bench.run("shakespeare", ["--text", str(text), "drop_out=0.1"]) == 1
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark_at_a_tiny_size(text, capsys):
    """Both programs in processes of their own; two seconds are too short for the peer's 2,000 steps."""
    tiny = [
        "model.num_layers=1", "model.d_model=16", "model.context_length=16", "model.blocks.0.mixer.num_heads=1",
        "model.blocks.0.mixer.num_kv_heads=1", "model.blocks.0.mixer.d_head=16", "model.blocks.0.ffn.d_ff=16",
        "batch_size=4", "compile=false",
    ]  # fmt: skip
    assert shakespeare.main(["--text", str(text), "--seconds", "2", "--threads", "1", *tiny]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["details"]["threads"] == {OURS: 1, PEER: 1}
    by_name = {row["program"]: row for row in made["rows"]}
    assert set(by_name) == {OURS, PEER}
    assert 0 < made["ours"] < 2 * math.log(257) and 0 < made["peer"] < 2 * math.log(65)
    assert made["details"]["text"]["validation_characters"] == len(VERSE) - int(0.9 * len(VERSE))
    assert by_name[PEER]["steps"] < 2000 and by_name[OURS]["parameters"] < 20_000
    assert made["details"]["context"] == {OURS: 16, PEER: 64}


@pytest.fixture
def peer(repository, monkeypatch):
    """The peer's program as a module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks" / "peers"))
    sys.modules.pop("shakespeare_nanogpt", None)
    module = pytest.importorskip("shakespeare_nanogpt")
    yield module
    sys.modules.pop("shakespeare_nanogpt", None)


def test_the_peer_is_a_script_of_the_checkout():
    assert programs()[PEER].absence is None
    assert programs()[PEER].script.name == "shakespeare_nanogpt.py"


def test_the_peer_has_nanogpts_size_and_rates(peer):
    """The README's model has "about 0.80M" parameters, counted without positions; its rates go 1e-3 to 1e-4."""
    model = peer.GPT(65)
    assert sum(p.numel() for p in model.parameters()) - model.positions.weight.numel() == 795_904
    assert peer.rate(99) == pytest.approx(1e-3 * 100 / 101)
    assert peer.rate(100) == 1e-3 and peer.rate(2000) == pytest.approx(1e-4)
    assert peer.rate(1050) == pytest.approx(5.5e-4)  # half-way down the cosine
    decayed, plain = peer.make_optimizer(model).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["betas"]) == (0.1, 0.0, (0.9, 0.99))


@torch.no_grad()
def test_the_peer_is_gpt2_without_biases(peer):
    """The same logits as Hugging Face's GPT-2 with the same weights."""
    transformers = pytest.importorskip("transformers", reason="the oracle is Hugging Face's GPT-2")
    torch.manual_seed(0)
    model = peer.GPT(65)
    config = transformers.GPT2Config(
        vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    theirs.transformer.wte.weight.copy_(model.tokens.weight)
    theirs.transformer.wpe.weight.copy_(model.positions.weight)
    for block, other in zip(model.blocks, theirs.transformer.h, strict=True):
        pairs = [
            (other.attn.c_attn, block.qkv), (other.attn.c_proj, block.attention_out),
            (other.mlp.c_fc, block.up), (other.mlp.c_proj, block.mlp_out),
        ]  # fmt: skip
        for conv, linear in pairs:
            conv.weight.copy_(linear.weight.T)
    tokens = torch.randint(65, (2, 20))
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_peer_scores_every_character_once(peer):
    model = peer.GPT(7)
    ids = torch.randint(7, (150,))
    row = torch.cat([torch.tensor([3]), ids])
    total = 0.0
    for first, end in ((0, 64), (64, 128), (128, 150)):
        window = row[end - 64 : end + 1]
        nats = -model(window[None, :-1]).log_softmax(-1)[0].gather(1, window[1:, None])
        total += nats[first - end :].sum().item()
    assert peer.mean_nats(model, ids, 3, 64) == pytest.approx(total / 150, rel=1e-5)
    assert peer.mean_nats(model, ids[:5], 3, 64) == pytest.approx(
        -model(row[None, :5]).log_softmax(-1)[0].gather(1, row[1:6, None]).mean().item(), rel=1e-5
    )


def test_the_peer_learns_and_obeys_the_clock(peer, monkeypatch):
    monkeypatch.setattr(peer, "STEPS", 12)
    torch.manual_seed(0)
    ids = torch.arange(2000) % 5
    generator = torch.Generator().manual_seed(0)
    model, steps = peer.train(ids, 5, math.inf, generator)
    assert steps == 12
    assert peer.mean_nats(model, ids[:64], 4, 64) < math.log(5) - 0.1
    assert peer.train(ids, 5, -math.inf, generator)[1] == 0
