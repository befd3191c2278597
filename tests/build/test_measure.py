"""Samples are drawn whatever the text is: scripts without spaces, and contexts shorter than a prompt."""

import pytest

from groundup import presets
from groundup.build import measure
from groundup.inference import Engine
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")


def engine(context_length: int) -> Engine:
    tokenizer = Tokenizer.train_from_iterator(["abc"], vocab_size=260, special_tokens=SPECIAL)
    config = presets.llama(d_model=16, num_layers=1, num_heads=1, vocab_size=260, context_length=context_length)
    return Engine(Transformer(config), tokenizer)


@pytest.mark.parametrize("context_length", [1, 2, 7, 64])
@pytest.mark.parametrize("text", ["漢字仮名" * 5000, "word " * 500, "", "\n\n"])
def test_samples_of_any_text_fit_any_context(text, context_length):
    drawn = measure.draw_samples(engine(context_length), [text] * 5, seed=0, max_tokens=3)
    assert [d["prompt"] for d in drawn][-1] == ""
    assert len(drawn) == measure.SAMPLES


def test_answers_to_passages_longer_than_the_context():
    passage = "extraordinarily " * 20 + "long. " + "And this is the way in which the passage goes on and on."
    drawn = measure.draw_answers(engine(16), [passage], seed=0, max_tokens=3)
    assert len(drawn) == 1


def test_prompts_are_eight_words():
    assert measure.prompts(["one two three four five six seven eight nine"]) == [
        "one two three four five six seven eight",
        "",
    ]


def test_prompts_keep_their_line_breaks():
    assert measure.prompts(["\n\nKING:\nWhat news,\n\n  my lord, one two three four"])[0] == (
        "KING:\nWhat news,\n\n  my lord, one two three"
    )
    play = "a" * 90 + ". ROMEO:\nWho goes there? " + "word " * 9
    assert measure.prompts([play])[0] == "ROMEO:\nWho goes there? word word word word"


def test_prompts_never_end_in_a_space_nor_are_too_long():
    for text in ("漢字仮名" * 50, "a " * 200, "x" * 79 + " y z", "  \n "):
        for prompt in measure.prompts([text]):
            assert prompt == prompt.strip()
            assert len(prompt) <= measure.PROMPT_CHARACTERS
