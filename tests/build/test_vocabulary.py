"""Models of several vocabularies, trained with the same FLOPs and scored in the same unit."""

import math

import pytest

from groundup.accounting import training_flops_per_token
from groundup.build.vocabulary import LEAST_STEPS, train_at_sizes
from groundup.presets import llama
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.sweep import prefix

TEXTS = [f"the cat number {n} in the hat sat on the mat with the rat. " * 3 for n in range(40)]
SHAPE = {"d_model": 16, "num_layers": 1, "context_bytes": 32, "batch_size": 4}


@pytest.fixture(scope="module")
def tokenizers():
    largest = Tokenizer.train_from_iterator(TEXTS, 300)
    return [prefix(largest, 257), largest]


@pytest.fixture(scope="module")
def trained(tokenizers):
    return train_at_sizes(tokenizers, TEXTS[:30], TEXTS[30:], flops=2e8, device="cpu", **SHAPE)


def test_the_flops_are_spent_and_not_overspent(trained):
    step = 4 * 32 * training_flops_per_token(llama(vocab_size=257, d_model=16, num_layers=1, context_length=32), 32)
    assert trained[0].steps == int(2e8 / step)
    assert trained[0].flops == pytest.approx(trained[0].steps * step)
    for one in trained:
        assert 0.9 * 2e8 < one.flops <= 2e8
        assert one.steps >= LEAST_STEPS


def test_longer_tokens_read_more_text_for_the_same_flops(trained):
    small, large = trained
    assert (small.vocab_size, large.vocab_size) == (257, 300)
    assert large.bytes_seen > 1.5 * small.bytes_seen
    assert small.epochs == pytest.approx(small.steps * 4 * 32 / (sum(map(len, TEXTS[:30])) + 30))


def test_models_learn_and_are_scored_per_byte(trained):
    """Untrained, a model of bytes scores about log2(257) bits each; these texts repeat a lot."""
    for one in trained:
        assert 0 < one.bits_per_byte < 0.6 * math.log2(257)
    assert trained[1].bits_per_byte < trained[0].bits_per_byte


def test_a_seed_repeats(tokenizers, trained):
    again = train_at_sizes(tokenizers[:1], TEXTS[:30], TEXTS[30:], flops=2e8, device="cpu", **SHAPE)
    assert again[0].bits_per_byte == trained[0].bits_per_byte


def test_too_few_flops_are_an_error_before_anything_is_trained(tokenizers):
    seen = []
    with pytest.raises(ValueError, match=r"1e\+07 FLOPs pay for \d steps of the model with 257 tokens; give at least"):
        train_at_sizes(tokenizers, TEXTS, TEXTS, flops=1e7, device="cpu", progress=lambda *s: seen.append(s), **SHAPE)
    assert seen == []
