"""`groundup generate` as a user calls it."""

import io
import json

import pytest

from groundup import presets
from groundup.cli import main
from groundup.cli_generate import own_weights
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat"] * 9, 270, ["<|endoftext|>"])
    config = presets.llama(d_model=16, num_layers=1, num_heads=2, vocab_size=270, context_length=48)
    path = tmp_path_factory.mktemp("models") / "plain"
    write_folder(Source(Transformer(config), tokenizer), path)
    return path


def run(capsys, folder, *arguments):
    code = main(["generate", str(folder), "--device", "cpu", "--max-tokens", "6", *arguments])
    return code, *capsys.readouterr()


def test_text_streams_after_the_prompt(folder, capsys):
    code, out, err = run(capsys, folder, "--prompt", "the cat", "--temperature", "0", "--speed")
    expected = Engine.load(folder, "cpu").generate("the cat", temperature=0, max_tokens=6)
    assert (code, out) == (0, f"the cat{expected.text}\n")
    prompt, answer, machine = err.splitlines()
    assert "ms to the first token" in prompt and "MFU" in prompt and "GB/s" in machine
    assert answer.startswith(f"answer   {len(expected.tokens)} tokens: ") and "MBU" in answer


def test_speed_is_in_the_object(folder, capsys):
    _, out, _ = run(capsys, folder, "--prompt", "the", "--count", "2", "--json", "--speed")
    speed = json.loads(out)["speed"]
    assert (speed["answers"], speed["answer_tokens"]) == (2, 12)
    assert speed["mfu"] == speed["prefill_flops"] / speed["first_token"] / speed["peak_flops"]
    assert speed["mbu"] == speed["step_bytes"] / speed["per_token"] / speed["bandwidth"]


def test_a_model_decodes_in_the_type_in_which_it_was_written(folder):
    engine = Engine.load(folder, "cpu")
    assert own_weights(engine) == "fp32"
    for parameter in engine.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert own_weights(engine) == "bf16"


def test_several_answers_have_seeds_that_follow_each_other(folder, capsys):
    code, out, _ = run(capsys, folder, "--prompt", "the", "--seed", "5", "--count", "3", "--json")
    found = json.loads(out)
    engine = Engine.load(folder, "cpu")
    single = [engine.generate("the", seed=5 + i, temperature=0.8, max_tokens=6).text for i in range(3)]
    assert code == 0 and found["prompt"] == "the"
    assert [answer["text"] for answer in found["answers"]] == single
    _, out, _ = run(capsys, folder, "--prompt", "the", "--seed", "5", "--json")
    assert json.loads(out)["text"] == single[0]
    _, out, _ = run(capsys, folder, "--prompt", "the", "--seed", "5", "--count", "2")
    assert out == f"the{single[0]}\n\n---\n\nthe{single[1]}\n"


def test_the_prompt_comes_from_a_file_or_from_standard_input(folder, capsys, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("the hat")
    _, from_file, _ = run(capsys, folder, "--prompt-file", str(tmp_path / "prompt.txt"), "--temperature", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO("the hat"))
    _, from_input, _ = run(capsys, folder, "--prompt", "-", "--temperature", "0")
    assert from_file == from_input and from_file.startswith("the hat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count 0: expected at least 1"),
        (["--repetition-penalty", "0"], "repetition_penalty=0"),
        (["--prompt", "a", "--prompt-file", "b"], "give one of them"),
        (["--prompt-file", "missing.txt"], "missing.txt: No such file"),
    ],
)
def test_what_makes_no_sense_is_said(folder, capsys, arguments, message):
    code, _, err = run(capsys, folder, *arguments)
    assert code == 1 and message in err
