import doctest

from hypothesis import given

from groundup.tokenizer import protocol
from groundup.tokenizer.protocol import BytePair, TextTokenizer
from tests.tokenizer.awkward import texts


def test_examples_in_docstrings():
    assert doctest.testmod(protocol).failed == 0


@given(texts)
def test_byte_pairs_under_a_name_are_the_same_tokenizer(trained, text):
    bpe = BytePair(trained["gpt2"], "mine")
    assert isinstance(bpe, TextTokenizer)
    assert (bpe.name, bpe.vocab_size, bpe.lossless, bpe.unknown) == ("mine", 500, True, None)
    assert bpe.encode(text) == trained["gpt2"].encode(text)
    assert bpe.decode(bpe.encode(text)) == text
