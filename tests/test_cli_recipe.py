"""`groundup recipe`: the list, one recipe, and a run, as a person types them."""

import json

import pytest

from groundup.cli import main
from groundup.recipes import RECIPES

TINY = [
    "model.num_layers=1", "model.d_model=16", "model.context_length=16", "model.blocks.0.mixer.num_heads=1",
    "model.blocks.0.mixer.num_kv_heads=1", "model.blocks.0.mixer.d_head=16", "batch_size=4", "compile=false",
    "precision=fp32",
]  # fmt: skip


def test_the_list_says_what_is_measured(capsys):
    assert main(["recipe", "--json"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
    assert json.loads(printed.splitlines()[-1])["openwebtext-90m"] == "recipe, not yet measured"


def test_one_recipe_is_shown_with_the_users_numbers(capsys):
    assert main(["recipe", "openwebtext-90m", "batch_size=128", "--minutes", "45", "--dry-run", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "OpenWebText" in printed and "for 45 minutes" in printed
    shown = json.loads(printed.splitlines()[-1])
    assert shown["recipe"]["batch_size"] == 128 and shown["recipe"]["minutes"] == 45.0


def test_minutes_take_the_place_of_tokens(capsys):
    assert main(["recipe", "tinystories-cpu", "--minutes", "5", "--dry-run"]) == 0
    assert "for 5 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["tinystory-cpu"], "did you mean 'tinystories-cpu'"),
        (["tinystories-cpu", "batchsize=3"], "did you mean 'batch_size'"),
        (["tinyshakespeare-cpu"], "give one file and no --valid"),
        (["tinystories-cpu", "--valid", "x.txt"], "needs files to train on"),
    ],
)
def test_mistakes_are_answered_in_a_line(words, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", *words]) == 1
    assert reason in capsys.readouterr().err


def test_a_run_ends_with_its_loss_beside_the_goal(capsys, tmp_path):
    text = tmp_path / "verse.txt"
    text.write_text("To be, or not to be, that is the question:\n" * 40, encoding="utf-8")
    words = ["recipe", "tinyshakespeare-cpu", str(text), *TINY, "minutes=null", "tokens=640"]
    assert main([*words, "--out", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result["steps"] == 10 and result["run"] == str(tmp_path / "run")
    assert any(f"loss    {result['loss']:.4f} nats per token" in line and "missed" in line for line in printed)
    assert (tmp_path / "data" / "prepared.json").is_file() and not (tmp_path / "run" / "data").exists()
