import json
import subprocess
import sys

import pytest

from groundup.cli import main
from groundup.model.pretrained import save_pretrained
from groundup.tokenizer import Tokenizer
from tests.compression.small import small_model


def test_help_imports_no_torch():
    source = "import sys; from groundup.cli import main\ntry: main(['compress', '--help'])\nexcept SystemExit: pass\n"
    ran = subprocess.run(
        [sys.executable, "-c", source + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.endswith("False\n") and "heal_steps=30" in ran.stdout and "wanda-50" in ran.stdout
    assert "--logits DIR" in ran.stdout and "top_k=64" in ran.stdout


def test_a_comparison_from_the_command_line(tmp_path, capsys):
    tokenizer = Tokenizer.train_from_iterator(["the cat sat"], 260, special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path)
    save_pretrained(small_model(vocab_size=tokenizer.vocab_size, num_layers=1), tmp_path, tmp_path / "m")
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    words = [
        "compress", str(tmp_path / "m"), "--methods", "int8", "--text", str(tmp_path / "text.txt"), "--device", "cpu",
        "--out", str(tmp_path / "out"), "--json", "context_length=16", "score_bytes=300", "decode_tokens=2", "rounds=1",
    ]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert [row["name"] for row in result["rows"]] == ["fp32", "bf16", "int8"]
    assert "bits per byte" in out and (tmp_path / "out" / "report.html").is_file()
    assert main(words) == 0  # all rows are there: only the page is written again
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["heal_step=3"], "did you mean"),
        (["file.txt"], "text is named with --text"),
        (["--methods", "int9"], "did you mean 'int8'"),
        (["rounds=0"], "rounds=0"),
    ],
)
def test_mistakes_are_named(words, match, tmp_path, capsys):
    assert main(["compress", str(tmp_path), *words]) == 1
    assert match in capsys.readouterr().err


def test_a_dry_run_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", "m", "--dry-run", "--json", "--methods", "int8,shallow-50"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["variants"] == ["fp32", "bf16", "int8", "shallow-50"]
    assert not list(tmp_path.iterdir())
