"""One small trained tokenizer per pattern, for all tests of the room."""

import gzip

import pytest

from groundup.tokenizer import Tokenizer
from tests.tokenizer.awkward import FRAGMENTS

SPECIAL_TOKENS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
PROSE = (
    "It's 1999, and the cat isn't in the hat; the hat's in the cat. They'll pay $1,000  or more!\n\n"
    "Über die Brücke gehen 12 Katzen. 你好，世界。 नमस्ते दुनिया 🌍👨‍👩‍👧‍👦\r\n\tdef f(x): return x**2\n"
)


@pytest.fixture(scope="session")
def trained():
    """pattern -> Tokenizer, trained on prose and on awkward fragments."""
    corpus = [PROSE * 3, " ".join(FRAGMENTS)] * 2
    patterns = ("gpt2", "cl100k", "o200k", "none")
    return {p: Tokenizer.train_from_iterator(corpus, 500, SPECIAL_TOKENS, p) for p in patterns}


@pytest.fixture(scope="session")
def real_text(shared_data):
    """50 kB of English and 1,500 sentences in 75 languages."""
    english = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text("utf-8")[:50_000]
    with gzip.open(shared_data / "langid" / "lingua_sentences_dev.tsv.gz", "rt", encoding="utf-8") as file:
        return english + "".join(file.readlines()[::24])
