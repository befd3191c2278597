"""A conversation in the terminal: what is said, what is forgotten, and what a line with a slash does."""

import json

import pytest

from groundup import presets
from groundup.cli import main
from groundup.cli_chat import Talk, converse
from groundup.cli_generate import visible
from groundup.inference import Engine, SamplingParams
from groundup.model import Transformer
from groundup.model.source import Source, write_folder
from groundup.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator(["The harvest was good this year."], 280, special_tokens=SPECIAL)


@pytest.fixture
def talk(tokenizer):
    config = presets.llama(d_model=16, num_layers=1, num_heads=1, vocab_size=280, context_length=32)
    return Talk(Engine(Transformer(config), tokenizer), SamplingParams(max_tokens=3, temperature=0))


@pytest.fixture
def say(talk, monkeypatch, capsys):
    """Says these lines, and returns what was shown on both streams."""

    def said(*lines):
        left = iter([*lines, "/exit"])
        monkeypatch.setattr("builtins.input", lambda _: next(left))
        assert converse(talk) == 0
        return capsys.readouterr()

    return said


def test_a_message_longer_than_the_context_does_not_end_the_talk(say):
    shown = say("harvest " * 100, "The harvest")
    assert "too long" in shown.err
    assert shown.out.count("model: ") == 1


def test_the_answer_is_the_engines_and_is_remembered(talk, say):
    shown = say("The harvest")
    question = [{"role": "user", "content": "The harvest"}]
    answer = talk.engine.chat(question, talk.params).text
    assert shown.out == f"model: {answer}\n"
    assert talk.turns == [*question, {"role": "assistant", "content": answer}]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk, say):
    say(*["good year"] * 9)
    assert 2 <= len(talk.turns) < 18
    assert len(talk.engine.chat_prompt(talk.turns)) <= talk.engine.context_length


def test_undo_retry_and_reset(talk, say):
    say("The harvest", "good", "/undo")
    assert [turn["content"] for turn in talk.turns][0] == "The harvest" and len(talk.turns) == 2
    assert say("/retry").out.startswith("model: ")
    assert len(talk.turns) == 2
    say("/reset")
    assert talk.turns == []
    assert say("/retry").out == ""


def test_settings_and_instructions(talk, say):
    shown = say("/set temperature 0.5", "/set top_k 7", "/set top_p none", "/set warmth 1", "/set", "/system Be kind.")
    assert (talk.params.temperature, talk.params.top_k, talk.params.top_p) == (0.5, 7, None)
    assert "warmth: no such setting" in shown.err and "top_k 7" in shown.err
    assert talk.messages([])[0] == {"role": "system", "content": "Be kind."}
    assert "temperature=-1" in say("/set temperature -1").err
    assert talk.params.temperature == 0.5


def test_a_conversation_is_saved(talk, say, tmp_path):
    say("/system Short.", "good", f"/save {tmp_path / 'talk.json'}")
    assert json.loads((tmp_path / "talk.json").read_text()) == talk.messages(talk.turns)
    assert "the file is missing" in say("/save").err


def test_an_unknown_command_names_the_nearest(say):
    assert "did you mean '/reset'" in say("/rest").err
    assert "/undo" in say("/help").err


def test_ctrl_c_stops_the_answer_and_frees_its_pages(talk, say, monkeypatch):
    pieces = []

    def stop(text):
        pieces.append(text)
        raise KeyboardInterrupt

    talk.params = SamplingParams(max_tokens=20, temperature=0)
    tokens, _, _ = talk.ask("The harvest", stop)
    assert tokens == 0 and talk.turns[-1] == {"role": "assistant", "content": pieces[0]}
    stats = talk.engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_a_model_cannot_command_the_terminal(monkeypatch):
    assert visible("\x1b[2J") == "\x1b[2J"  # into a file as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert visible("a\x1b[2J\x07\x7f\x9b\r\n\tb") == "a␛[2J␇␡\ufffd␍\n\tb"


def test_one_message_from_the_command_line(talk, tokenizer, tmp_path, capsys):
    write_folder(Source(talk.engine.model, tokenizer), tmp_path / "run")
    write_folder(Source(talk.engine.model, tokenizer), tmp_path / "run" / "chat")
    arguments = ["chat", str(tmp_path / "run"), "--temperature", "0", "--max-tokens", "3", "--device", "cpu"]
    assert main([*arguments, "--message", "The harvest"]) == 0
    expected = talk.engine.chat([{"role": "user", "content": "The harvest"}], talk.params).text
    assert capsys.readouterr().out == expected.strip() + "\n"
    assert main([*arguments, "--message", "good", "--system", "Be kind."]) == 0


def test_a_model_without_turns_is_refused(tmp_path, capsys):
    plain = Tokenizer.train_from_iterator(["abc"], 260, special_tokens=["<|endoftext|>"])
    config = presets.llama(d_model=16, num_layers=1, num_heads=1, vocab_size=260, context_length=32)
    write_folder(Source(Transformer(config), plain), tmp_path / "model")
    assert main(["chat", str(tmp_path / "model"), "--message", "x"]) == 1
    assert "it was not tuned to chat; use `groundup generate`" in capsys.readouterr().err
