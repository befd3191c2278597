"""Conversations cut from text: hand-worked passages, masks that cover the answer and nothing else."""

import pytest

from groundup.build.chat import examples, passages
from groundup.tokenizer import Tokenizer

TEXT = (
    "The harvest was good this year. It filled every barn in the valley, and there was much left to sell. "
    "The people were glad.\n\nToo short.\n\n"
    "One two three. " + "word " * 300 + "end."
)


def test_a_sentence_opens_and_the_next_ones_answer():
    pairs = passages([TEXT])
    assert pairs[0] == (
        "The harvest was good this year.",
        "It filled every barn in the valley, and there was much left to sell. The people were glad.",
    )
    assert len(pairs) == 2
    assert pairs[1][0] == "One two three."
    assert len(pairs[1][1].split()) == 160


def test_a_paragraph_without_end_gives_many_pairs_that_share_nothing():
    sentences = [f"This is sentence number {i} of a long speech." for i in range(40)]
    pairs = passages([" ".join(sentences)])
    assert len(pairs) > 3
    assert " ".join(f"{opening} {answer}" for opening, answer in pairs) == " ".join(sentences)


def test_continuations_keep_their_line_breaks_and_openings_are_one_line():
    verse = "Shall I go\nwith you now? We go by night,\nand none shall see us pass the gate.\nCome quietly!"
    assert passages([verse]) == [
        ("Shall I go with you now?", "We go by night,\nand none shall see us pass the gate.\nCome quietly!")
    ]


def test_openings_are_neither_too_long_nor_too_short():
    long = " ".join(f"w{i}" for i in range(40)) + "."
    (pair,) = passages([f"Yes. {long} A sentence that can open. And here is what follows it, at some length."])
    assert pair[0] == "A sentence that can open."


def test_text_without_sentences_is_opened_by_its_first_words():
    (pair,) = passages([" ".join(f"w{i}" for i in range(60))])
    assert len(pair[0].split()) == 12
    assert pair[1].startswith("w12 ")


@pytest.fixture(scope="module")
def tokenizer():
    special = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
    return Tokenizer.train_from_iterator([TEXT], vocab_size=300, special_tokens=special)


def test_mask_covers_the_answer_and_its_end(tokenizer):
    made = examples([TEXT], tokenizer, context_length=2000, seed=0)
    for ids, mask in made:
        answer = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        assert any(answer.startswith(continuation) for _, continuation in passages([TEXT]))
        assert ids[-1] == tokenizer.special_tokens["<|end|>"] or mask[-1] == 0
        assert tokenizer.special_tokens["<|user|>"] in ids


def test_what_does_not_fit_is_left_out_and_order_is_seeded(tokenizer):
    assert examples([TEXT], tokenizer, context_length=10, seed=0) == []
    documents = [f"Number {i} opens like this. And this is the way in which passage {i} goes on." for i in range(20)]
    first, again, other = (examples(documents, tokenizer, 2000, seed) for seed in (1, 1, 2))
    assert first == again != other
